# ruff: noqa: PTH102, PTH103, PTH105, PTH106, PTH108, PTH110, PTH112, PTH116, PTH118, PTH123, PTH208
# Lean: an engine calls the runtime four times a container, and pathlib and dataclasses are half of such a call.
"""The state directory of `tare oci`: one directory a container, so that a crash at any moment can be told and undone.

`<root>/<id>/` holds `state.json` (replaced as a whole), `config.json` (what the container was created from), `fifo`
(there until `start` lets the program go) and `lock`. What a container is doing is derived from them and from its
process each time, never written down. Not how containers are made: that is `oci`.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import TareError

MAX_ID = 1024
STATE, CONFIG, FIFO, LOCK = "state.json", "config.json", "fifo", "lock"
_ABSENT = "container does not exist"
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-.")


class Record:
    """What is written down of one container. `pid` 0: its process does not exist yet.

    `start` is the process's start time (proc(5), field 22) and `boot` the boot it counts from; `created` is UTC.
    `groups` are the directories its control group may have; `freezer` is the file that tells whether it is frozen.
    """

    __slots__ = (
        "annotations",
        "boot",
        "bundle",
        "cgroup_name",
        "cgroup_parent",
        "config_sha256",
        "created",
        "freezer",
        "groups",
        "id",
        "oci_version",
        "owner",
        "pid",
        "rootfs",
        "start",
    )

    def __init__(
        self,
        *,
        id: str,  # noqa: A002 - the specification's name
        bundle: str,
        rootfs: str,
        oci_version: str,
        created: str,
        owner: str,
        config_sha256: str,
        annotations: dict[str, str],
        boot: str,
        cgroup_name: str,
        cgroup_parent: str,
        groups: list[str],
        freezer: str | None = None,
        pid: int = 0,
        start: int = 0,
    ) -> None:
        self.id = id
        self.bundle = bundle
        self.rootfs = rootfs
        self.oci_version = oci_version
        self.created = created
        self.owner = owner
        self.config_sha256 = config_sha256
        self.annotations = annotations
        self.boot = boot
        self.cgroup_name = cgroup_name
        self.cgroup_parent = cgroup_parent
        self.groups = groups
        self.freezer = freezer
        self.pid = pid
        self.start = start

    def document(self) -> dict[str, object]:
        """As it is written."""
        return {name: getattr(self, name) for name in self.__slots__}


class Place:
    """Where one container's state lies. Nothing is touched by making one."""

    __slots__ = ("directory", "id", "locked")

    def __init__(self, root: str, container_id: str) -> None:
        self.id = container_id
        self.locked = False
        self.directory = os.path.join(root, container_id)

    def path(self, name: str) -> str:
        """Of one of the files."""
        return os.path.join(self.directory, name)

    def load(self) -> Record | None:
        """What was written down; None while nothing is (a container being made, or a crash right then).

        Raises TareError when there is no such container, or what is there is not ours to read.
        """
        try:
            with open(self.path(STATE), "rb") as file:
                return Record(**json.loads(file.read()))
        except FileNotFoundError:
            if os.path.isdir(self.directory):
                return None
            raise absent(self.id) from None
        except (ValueError, TypeError) as error:
            raise TareError(f"container {self.id}", f"{self.path(STATE)}: {error}", "delete it with --force") from error

    def save(self, record: Record) -> None:
        """Write it down, whole or not at all."""
        self._replace(STATE, json.dumps(record.document()).encode())

    def save_config(self, text: bytes) -> None:
        """Keep the configuration: what the bundle becomes later must not change the container."""
        self._replace(CONFIG, text)

    def config(self) -> dict[str, object]:
        """The configuration the container was created from."""
        with open(self.path(CONFIG), "rb") as file:
            document = json.loads(file.read())
        assert isinstance(document, dict)
        return document

    def held(self) -> bool:
        """Whether the program has not been let go yet."""
        return os.path.exists(self.path(FIFO))

    def remove(self) -> None:
        """Remove the directory, the record of what else there is last. Removing an absent one is no error."""
        try:
            for name in sorted(os.listdir(self.directory), key=lambda name: name in (STATE, LOCK)):
                os.unlink(self.path(name))
            os.rmdir(self.directory)
        except FileNotFoundError:
            return

    def _replace(self, name: str, text: bytes) -> None:
        partial = self.path(f"{name}.partial")
        with open(partial, "wb") as file:
            file.write(text)
        os.replace(partial, self.path(name))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other commands from changing the container meanwhile.

        A record lock (fcntl(2)): it ends with this very process, and no child that outlives it inherits it.
        """
        try:
            descriptor = os.open(self.path(LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            raise absent(self.id) from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX)
            if not self._is_lock(descriptor):  # deleted, perhaps made anew, while we waited
                raise absent(self.id)
            self.locked = True
            yield
        finally:
            self.locked = False
            os.close(descriptor)

    def _is_lock(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.stat(self.path(LOCK)), os.fstat(descriptor))
        except FileNotFoundError:
            return False


def absent(container_id: str) -> TareError:
    """There is no such container."""
    return TareError(f"container {container_id}", _ABSENT, "list shows those there are")


def is_absent(error: TareError) -> bool:
    """Whether `error` says that there is no such container."""
    return error.why == _ABSENT


def check_id(container_id: str) -> None:
    """Raises TareError unless it can name a container."""
    letters = set(container_id) <= _LETTERS
    if not container_id or not letters or container_id in (".", "..") or len(container_id) > MAX_ID:
        raise TareError("container", f"invalid id {container_id!r}", "use letters, digits, and any of _+-.")


def reserve(root: str, container_id: str) -> Place:
    """Take the id for a new container by making its directory. Raises TareError when it is taken or invalid."""
    check_id(container_id)
    place = Place(root, container_id)
    try:
        for last in (False,) * 100 + (True,):
            os.makedirs(root, 0o700, exist_ok=True)
            try:
                os.mkdir(place.directory, 0o700)
                break
            except FileNotFoundError:  # an empty root may be removed at any time (`tare clean`)
                if last:
                    raise
    except FileExistsError:
        raise TareError(
            f"container {container_id}", "container with given ID already exists", "delete it first"
        ) from None
    except OSError as error:
        raise TareError(f"state directory {root}", error.strerror or str(error), "give another with --root") from error
    return place


def find(root: str, container_id: str) -> Place:
    """An existing container's place. Raises TareError when there is none."""
    check_id(container_id)
    place = Place(root, container_id)
    if not os.path.isdir(place.directory):
        raise absent(container_id)
    return place


def ids(root: str) -> list[str]:
    """Of every container, sorted."""
    try:
        return sorted(name for name in os.listdir(root) if os.path.isdir(os.path.join(root, name)))
    except FileNotFoundError:
        return []


def status(place: Place, record: Record | None, proc: str = "/proc") -> str:
    """What the container is doing: creating, created, running, paused or stopped."""
    if record is None or not record.pid:
        return "creating" if _locked(place) else "stopped"
    if record.boot != boot_id(proc) or process_start(record.pid, proc) != record.start:
        return "stopped"
    if is_frozen(record):
        return "paused"
    return "created" if place.held() else "running"


def process_start(pid: int, proc: str = "/proc") -> int | None:
    """When a process started, in clock ticks since boot; None when it has ended, reaped or not."""
    try:
        with open(f"{proc}/{pid}/stat") as file:
            stat = file.read()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def boot_id(proc: str = "/proc") -> str:
    """What names this boot of the host."""
    with open(f"{proc}/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def is_frozen(record: Record) -> bool:
    """Whether the container's control group is frozen."""
    if record.freezer is None:
        return False
    try:
        with open(record.freezer) as file:
            return file.read().strip() in ("FROZEN", "1")
    except OSError:
        return False


def _locked(place: Place) -> bool:
    """Whether another command is at work on the container. Closing the file would end a lock of our own."""
    if place.locked:
        return False
    try:
        descriptor = os.open(place.path(LOCK), os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(descriptor)
    return False
