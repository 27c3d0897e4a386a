"""What is written down of a user's containers, each in a directory of its own; a crash at any point can be told.

Below `<root>/containers/`: `<id>/` with `container.json` (what it is), `config.json` (the OCI document), `run.json`
(its last start and end, written by the keeper alone), `paused`, `lock`, the writable layer and the logs;
`names/<name>`, a link to the id; `partial-<id>/`, what is being made or removed. Not what runs nor how it is done.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from runtime.container import storage
from runtime.container.names import check_name, random_name
from runtime.errors import TareError
from runtime.ledger import boot_id
from runtime.linux import flock
from runtime.record import field, record

DOCUMENT, FACTS, RUN, PAUSED, LOCK, LOGS = "config.json", "container.json", "run.json", "paused", "lock", "logs"
NAMES_LOCK = "names.lock"
UNKNOWN_CODE = 137
"""The exit code of a container whose keeper ended first: it was killed with it, and nobody saw how it ended."""


@record
class Settings:
    """What a container was asked to be, beyond its OCI configuration. `network` is a mode as in Docker."""

    terminal: bool = False
    stdin_open: bool = False
    stdin_once: bool = False
    auto_remove: bool = False
    init: str = ""
    """The host's program that is process 1 and starts the container's own; none where that is process 1 itself."""
    restart: str = "no"
    restart_most: int = 0
    """How often it is started again on failure; 0 is without an end."""
    network: str = "none"
    ports: tuple[tuple[str, int, int, str], ...] = ()
    """(host address, host port or 0 for any, port inside, protocol)"""
    exposed: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    stop_signal: int = 15
    stop_timeout_s: int = 10
    log_bytes: int = 10 << 20
    log_files: int = 3
    privileged: bool = False
    binds: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    dns_options: tuple[str, ...] = ()
    extra_hosts: tuple[str, ...] = ()


@record
class Run:
    """One start of a container, as its keeper wrote it down.

    `start` is the process's start time (proc(5), field 22); `exit_code` None means that nobody saw an end.
    `error` says why it did not start; times are UTC, ISO 8601.
    """

    pid: int = 0
    start: int | None = None
    boot: str = ""
    started_at: str = ""
    finished_at: str = ""
    exit_code: int | None = None
    oom_killed: bool = False
    error: str = ""
    keeper: int = 0
    restarts: int = 0
    """How often it was started again by itself since a user started it."""
    restarter: int = 0
    """The start time of the keeper that will start it again, where one will."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What was made for it on the host: cgroup, address, interface…"""


@record
class Record:
    """One container as it is now. `status` is created, running, paused, restarting or exited."""

    id: str
    name: str
    directory: Path
    image: str
    image_digest: str
    layers: tuple[str, ...]
    argv: tuple[str, ...]
    created_at: str
    settings: Settings = field(default_factory=Settings)
    run: Run | None = None
    status: str = "created"

    @property
    def short_id(self) -> str:
        """The first 12 digits, as shown in listings."""
        return self.id[:12]

    @property
    def running(self) -> bool:
        """Whether its processes exist, paused or not."""
        return self.status in ("running", "paused")

    @property
    def restarting(self) -> bool:
        """Whether it has ended and its keeper will start it again."""
        return self.status == "restarting"

    @property
    def exit_code(self) -> int:
        """Of the last end; 0 before the first."""
        return 0 if self.run is None or self.run.exit_code is None else self.run.exit_code

    @property
    def pid(self) -> int:
        """The host's number of the main process; 0 when it does not run."""
        return self.run.pid if self.run is not None and self.running else 0


class StateDirectory:
    """All containers below one state root. Construction touches nothing."""

    def __init__(self, root: Path, proc: Path = Path("/proc")) -> None:
        self.base = root / "containers"
        self._names = self.base / "names"
        self._proc = proc
        self._boot = ""

    def draw_id(self) -> str:
        """A fresh id: 256 random bits in hex."""
        return os.urandom(32).hex()

    # --- reading

    def ids(self) -> list[str]:
        """Every container's id."""
        try:
            return [name for name in os.listdir(self.base) if len(name) == 64]  # noqa: PTH208 - names alone
        except FileNotFoundError:
            return []

    def all(self) -> list[Record]:
        """Every container, the newest first; one that is being removed meanwhile is left out."""
        found = []
        for container_id in self.ids():
            with suppress(FileNotFoundError, ValueError, KeyError):
                found.append(self.read(container_id))
        return sorted(found, key=lambda record: record.created_at, reverse=True)

    def read(self, container_id: str) -> Record:
        """The container with exactly this id. Raises FileNotFoundError, ValueError."""
        directory = self.base / container_id
        words = json.loads((directory / FACTS).read_bytes())
        settings = _of(Settings, words["settings"])
        run = self._run(directory)
        return Record(
            id=container_id,
            name=words["name"],
            directory=directory,
            image=words["image"],
            image_digest=words["image_digest"],
            layers=tuple(words["layers"]),
            argv=tuple(words["argv"]),
            created_at=words["created_at"],
            settings=settings,
            run=run,
            status=self._status(directory, run),
        )

    def document(self, container_id: str) -> dict[str, Any]:
        """Its OCI document."""
        document: dict[str, Any] = json.loads((self.base / container_id / DOCUMENT).read_bytes())
        return document

    def find(self, text: str) -> Record:
        """By id, name, or the beginning of an id. Raises TareError when none or several are meant."""
        candidates = [text] if len(text) == 64 and (self.base / text).is_dir() else []
        if not candidates and text and "/" not in text:
            with suppress(OSError):
                candidates = [os.readlink(self._names / text)]  # noqa: PTH115 - not a path
        if not candidates and text:
            candidates = [found for found in self.ids() if found.startswith(text)]
        if len(candidates) > 1:
            raise TareError(f"container {text}", f"{len(candidates)} ids begin so", "give more of the id")
        try:
            return self.read(candidates[0])
        except (IndexError, FileNotFoundError):
            raise TareError(f"container {text}", "no such container", "see: tare ps -a") from None

    def _run(self, directory: Path) -> Run | None:
        try:
            text = (directory / RUN).read_bytes()
        except FileNotFoundError:
            return None
        try:
            run: Run = _of(Run, json.loads(text))
        except ValueError:  # the host lost power before it was on the disk
            run = Run()
        return run

    def _status(self, directory: Path, run: Run | None) -> str:
        if run is None or (run.error and not run.started_at):
            return "created"
        if run.exit_code is not None and self._awaits(run):
            return "restarting"
        if run.exit_code is not None or not self.exists(run):
            return "exited"
        return "paused" if (directory / PAUSED).exists() else "running"

    def exists(self, run: Run) -> bool:
        """Whether the process of this start is still there.

        A zombie is as long as its parent is the keeper, which writes first and reaps then.
        """
        found = self._process(run, run.pid)
        return found is not None and found[2] == run.start and not (found[0] and found[1] != run.keeper)

    def _awaits(self, run: Run) -> bool:
        """Whether the keeper that is to start it again is still there."""
        found = self._process(run, run.keeper) if run.restarter else None
        return found is not None and found[2] == run.restarter and not found[0]

    def _process(self, run: Run, pid: int) -> tuple[bool, int, int] | None:
        """Of a process of this run's boot: whether it has ended, its parent and its start time."""
        self._boot = self._boot or boot_id(self._proc)
        if run.boot != self._boot:
            return None
        try:
            stat = (self._proc / str(pid) / "stat").read_bytes()
        except OSError:
            return None
        fields = stat[stat.rindex(b")") + 2 :].split()
        return fields[0] in (b"Z", b"X"), int(fields[1]), int(fields[19])

    # --- changing

    def create(self, record: Record, document: Mapping[str, Any]) -> Record:
        """Write down a new container under `record.name`, or one drawn for it. All of it appears at once or nothing.

        Raises TareError when the name is taken or none.
        """
        self._names.mkdir(parents=True, exist_ok=True, mode=0o700)
        final, partial = self.base / record.id, self.base / f"partial-{record.id}"
        if record.name:
            check_name(record.name)
        lock = self._begin(partial)
        try:
            (partial / LOGS).mkdir(mode=0o700)
            write_json(partial / DOCUMENT, document)
            record = replace(record, directory=final, name=self._claim(record.name, record.id))
            try:
                write_json(partial / FACTS, _facts(record))
                partial.rename(final)
            except BaseException:
                (self._names / record.name).unlink(missing_ok=True)
                raise
        except BaseException:
            _remove(partial)
            raise
        finally:
            os.close(lock)
        return record

    def _begin(self, partial: Path) -> int:
        """Make the directory of what is not yet there, and the held lock in it that tells it from a ruin."""
        with flock.held(self.base / NAMES_LOCK):
            storage.make(str(partial))
            lock = os.open(partial / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
        return lock

    def rename(self, record: Record, name: str) -> Record:
        """Give it another name; hold its lock. Raises TareError when the name is taken or none."""
        check_name(name)
        renamed = replace(record, name=self._claim(name, record.id))
        try:
            write_json(record.directory / FACTS, _facts(renamed))
        except BaseException:
            self._release(name, record.id)
            raise
        (self._names / record.name).unlink(missing_ok=True)
        return renamed

    def rewrite(self, record: Record, document: Mapping[str, Any]) -> None:
        """Exchange its OCI document; hold its lock."""
        write_json(record.directory / DOCUMENT, document)

    def change(self, record: Record, settings: Settings) -> None:
        """Give it other settings; hold its lock."""
        write_json(record.directory / FACTS, _facts(replace(record, settings=settings)))

    def remove(self, record: Record) -> None:
        """Forget it with everything in its directory; hold its lock. A crash meanwhile leaves what `sweep` removes."""
        partial = self.base / f"partial-{record.id}"
        record.directory.rename(partial)
        self._release(record.name, record.id)
        _remove(partial)

    @contextmanager
    def locked(self, record: Record) -> Iterator[Record]:
        """Hold the container's lock, and read it again under it. Raises TareError when it is gone by then."""
        try:
            with flock.held(record.directory / LOCK, create=False):
                try:
                    fresh = self.read(record.id)
                except FileNotFoundError:
                    raise _gone(record) from None
                yield fresh
        except FileNotFoundError as error:
            if record.directory.exists():
                raise
            raise _gone(record) from error

    @contextmanager
    def try_locked(self, record: Record) -> Iterator[Record | None]:
        """As `locked`, but nothing when somebody else holds it or it is gone."""
        try:
            with flock.held(record.directory / LOCK, create=False, wait=False):
                yield self.read(record.id)
        except (BlockingIOError, FileNotFoundError):
            yield None

    @contextmanager
    def lock(self, name: str) -> Iterator[None]:
        """Hold a lock of all containers for something short, such as choosing what none else has."""
        self.base.mkdir(parents=True, exist_ok=True, mode=0o700)
        with flock.held(self.base / f"{name}.lock"):
            yield

    def sweep(self) -> list[str]:
        """Remove what interrupted creations and removals left; says what went. Those under way are left alone."""
        removed = []
        for path in sorted(self.base.glob("partial-*")):
            with flock.held(self.base / NAMES_LOCK), suppress(BlockingIOError), flock.held(path / LOCK, wait=False):
                _remove(path)
                removed.append(f"half-made container {path}")
        for link in sorted(self._names.glob("*")):
            with flock.held(self.base / NAMES_LOCK):
                if link.is_symlink() and not self._used(link):
                    link.unlink(missing_ok=True)
                    removed.append(f"name {link.name} of no container")
        return removed

    def _claim(self, name: str, container_id: str) -> str:
        with flock.held(self.base / NAMES_LOCK):
            wanted = name or random_name()
            while True:
                link = self._names / wanted
                if link.is_symlink() and not self._used(link):
                    link.unlink()
                try:
                    link.symlink_to(container_id)
                    return wanted
                except FileExistsError:
                    if name:
                        owner = os.readlink(link)[:12]  # noqa: PTH115 - not a path
                        raise TareError(
                            f"name {name}", f"taken by container {owner}", "choose another, or remove that one"
                        ) from None
                wanted = f"{random_name()}{os.urandom(1)[0] % 10}"

    def _release(self, name: str, container_id: str) -> None:
        with flock.held(self.base / NAMES_LOCK), suppress(OSError):
            if os.readlink(self._names / name) == container_id:  # noqa: PTH115 - not a path
                (self._names / name).unlink()

    def _used(self, link: Path) -> bool:
        """Whether a name belongs to a container that is, or is being made."""
        target = os.readlink(link)  # noqa: PTH115 - not a path
        if (self.base / target).is_dir():
            return True
        try:
            with flock.held(self.base / f"partial-{target}" / LOCK, create=False, wait=False):
                return False
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Replace a file by another in one step: readers see the old one or the new one."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        partial.write_text(json.dumps(value))
        partial.rename(path)
    except BaseException:  # a full disk
        partial.unlink(missing_ok=True)
        raise


def _facts(record: Record) -> dict[str, Any]:
    words = asdict(record)
    return {key: words[key] for key in ("name", "image", "image_digest", "layers", "argv", "created_at", "settings")}


def _of(kind: Any, words: Mapping[str, Any]) -> Any:
    """A flat dataclass from its JSON; what a later version has added is ignored."""
    known = {item.name for item in fields(kind)}
    return kind(**{key: _tuples(value) for key, value in words.items() if key in known})


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _remove(directory: Path) -> None:
    """Remove a container's directory; the lock goes last, so that a sweep finds it held meanwhile."""
    for entry in os.scandir(directory):
        if entry.is_dir(follow_symlinks=False):
            storage.remove_tree(entry.path)
        elif entry.name != LOCK:
            os.unlink(entry.path)  # noqa: PTH108
    (directory / LOCK).unlink(missing_ok=True)
    directory.rmdir()


def _gone(record: Record) -> TareError:
    return TareError(f"container {record.name}", "no such container any more", "see: tare ps -a")
