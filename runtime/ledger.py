"""What exists on the host, per instance: written down before it is made, struck out when it is gone.

One append-only file an instance under `<run>/instances/`. After a crash the file is all that is
needed to find and remove what the dead process left; a driver's sweep does the removing. Not a
registry of running containers for users: that is the lifecycle's state directory.

A page is opened before anything else of an instance is made, under a lock shared with other pages: whoever holds
that lock alone sees no page whose first line is still to come.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.record import ordered_record

PREFIX = "tare-"
_MAKING_ATTEMPTS = 100


def new_id() -> str:
    """A fresh instance id: `tare-` and 48 random bits in hex, fit for a host name, a cgroup, a domain."""
    return PREFIX + os.urandom(6).hex()


def process_start(pid: int, proc: Path = Path("/proc")) -> int | None:
    """When process `pid` started, in clock ticks since boot (proc(5), stat field 22); None if none runs.

    With the pid it names a process for good: pids are reused, this pair is not within one boot. A
    zombie does not run: it holds nothing any more, and some inits take seconds to reap an orphan.
    """
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else int(fields[19])


def boot_id(proc: Path = Path("/proc")) -> str:
    """The kernel's random identity of this boot."""
    return (proc / "sys/kernel/random/boot_id").read_text().strip()


@ordered_record
class Resource:
    """One thing on the host: `kind` says what (cgroup, mount, dir, file, pid, domain, link), `value` which.

    A pid is written `PID:START` (see `process_start`).
    """

    kind: str
    value: str


@ordered_record
class Stale:
    """An instance whose owner is dead. `same_boot` is False when pids, mounts and cgroups are certainly gone."""

    id: str
    driver: str
    resources: tuple[Resource, ...]
    same_boot: bool


class Entry:
    """The open page of one instance, owned by this process."""

    def __init__(self, path: Path, instance_id: str) -> None:
        self.id = instance_id
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def note(self, kind: str, value: str) -> None:
        """Write down that `kind` `value` is about to exist. One line, one write: never torn by another writer.

        Raises OSError when there is no room for all of it: then it must not be made.
        """
        self._write({"kind": kind, "value": value})

    def _write(self, line: dict[str, object]) -> None:
        import json  # not for those who only want an id or a start: each clone of theirs would copy it

        data = json.dumps(line).encode() + b"\n"
        if os.write(self._fd, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self, gone: bool) -> None:
        """Stop writing; strike the page out if the instance is `gone`, otherwise leave it for the sweep."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        if gone:
            self._path.unlink(missing_ok=True)


class Ledger:
    """All pages under one run directory."""

    def __init__(self, run: Path, proc: Path = Path("/proc")) -> None:
        self._directory = run / "instances"
        self._proc = proc

    def open(self, instance_id: str, driver: str, owner: int | None = None) -> Entry:
        """Begin the page of a new instance, owned by this process or by `owner`, a pid.

        The caller notes every resource before it makes it.
        """
        pid = os.getpid() if owner is None else owner
        head = {"driver": driver, "pid": pid, "start": process_start(pid, self._proc), "boot": boot_id(self._proc)}
        while True:
            make_directory(self._directory)
            with self._locked(fcntl.LOCK_SH) as same:
                if same:
                    entry = Entry(self._directory / f"{instance_id}.jsonl", instance_id)
                    try:
                        entry._write(head)
                    except BaseException:
                        entry.close(gone=True)
                        raise
                    return entry

    @contextmanager
    def _locked(self, how: int) -> Iterator[bool]:
        """Hold the directory's lock; False when the directory is gone, or was by the time the lock was given."""
        try:
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(descriptor, how)
            try:
                same = os.path.samestat(os.fstat(descriptor), self._directory.stat())
            except FileNotFoundError:
                same = False
            yield same
        finally:
            os.close(descriptor)

    def stale(self, driver: str) -> Iterator[Stale]:
        """Every page of `driver` whose owner no longer runs."""
        for path in sorted(self._directory.glob("*.jsonl")) if self._directory.is_dir() else ():
            lines = _lines(path) or self._begun(path)
            head = lines[0] if lines else {}
            if lines and head.get("driver") != driver:
                continue
            same_boot = head.get("boot") == boot_id(self._proc)
            pid = head.get("pid")
            if same_boot and isinstance(pid, int) and process_start(pid, self._proc) == head.get("start"):
                continue
            resources = tuple(Resource(str(line["kind"]), str(line["value"])) for line in lines[1:] if "kind" in line)
            yield Stale(id=path.stem, driver=driver, resources=resources, same_boot=same_boot)

    def _begun(self, path: Path) -> list[dict[str, object]]:
        """The lines of a page that seemed empty, once nobody is at writing its first."""
        with self._locked(fcntl.LOCK_EX):
            return _lines(path)

    def live(self) -> list[tuple[str, int]]:
        """The (instance id, owner pid) of every page whose owner still runs."""
        found = []
        for path in sorted(self._directory.glob("*.jsonl")) if self._directory.is_dir() else ():
            head = next(iter(_lines(path)), {})
            pid = head.get("pid")
            if (
                isinstance(pid, int)
                and head.get("boot") == boot_id(self._proc)
                and process_start(pid, self._proc) == head.get("start")
            ):
                found.append((path.stem, pid))
        return found

    def resources(self, instance_id: str) -> tuple[Resource, ...] | None:
        """What the page of an instance notes; None when it has no page."""
        path = self._directory / f"{instance_id}.jsonl"
        if not path.exists():
            return None
        return tuple(Resource(str(line["kind"]), str(line["value"])) for line in _lines(path) if "kind" in line)

    def instances(self) -> list[str]:
        """Every instance that has a page."""
        return [path.stem for path in self._directory.glob("*.jsonl")] if self._directory.is_dir() else []

    def of_driver(self, driver: str) -> list[str]:
        """The instances that have a page of `driver`, whoever owns it."""
        paths = sorted(self._directory.glob("*.jsonl")) if self._directory.is_dir() else []
        return [path.stem for path in paths if next(iter(_lines(path)), {}).get("driver") == driver]

    def page(self, instance_id: str) -> Path:
        """Where the page of an instance lies: whoever ends it may unlink it."""
        return self._directory / f"{instance_id}.jsonl"

    def strike(self, instance_id: str) -> None:
        """Forget an instance whose resources have all been removed."""
        (self._directory / f"{instance_id}.jsonl").unlink(missing_ok=True)


def make_directory(directory: Path) -> None:
    """Make it and those above, private to us, whoever removes empty ones meanwhile (`tare clean`)."""
    for last in (False,) * _MAKING_ATTEMPTS + (True,):
        try:
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        except FileNotFoundError:  # one above was removed after it was seen, or made
            if last:
                raise
        except FileExistsError:  # or itself
            if last or _is_other(directory):
                raise
        else:
            return


def _is_other(path: Path) -> bool:
    """Whether something is there that is no directory, told by one look."""
    try:
        return not stat.S_ISDIR(path.stat().st_mode)
    except FileNotFoundError:
        return False


def _lines(path: Path) -> list[dict[str, object]]:
    """The page's lines; a torn last one (a crash while writing) is left out, as what it announced was not made."""
    import json

    lines: list[dict[str, object]] = []
    try:
        rows = path.read_bytes().splitlines()
    except FileNotFoundError:
        return lines
    for row in rows:
        try:
            lines.append(json.loads(row))
        except ValueError:
            break
    return lines
