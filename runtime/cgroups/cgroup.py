"""One interface to a control group, whichever hierarchy the host has: limits, accounting, freezing, removal.

Paths are arguments, so that everything here works on a recorded tree. Not which hierarchy the host
has (that is `detect`), and not when a process joins (that is whoever starts it).
"""

from __future__ import annotations

import errno
import os
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from runtime.errors import TareError
from runtime.instance import LimitReading, Usage
from runtime.spec import Limits, parse_cpuset

PERIOD_US = 100_000
"""The CFS bandwidth period: the kernel's default, and Docker's."""


class Cgroup(ABC):
    """The control group of one instance. Construction touches nothing; `create()` makes it.

    Limits that the host cannot enforce are refused by name with a TareError, never dropped.
    """

    method: str
    guards_devices = False
    """Whether the group confines its processes to the usual device nodes."""

    def __init__(self, instance_id: str, io_device: str | None = None) -> None:
        self.id = instance_id
        self.io_device = io_device

    @abstractmethod
    def directories(self) -> tuple[Path, ...]:
        """Every directory that `create()` makes, for the ledger."""

    def possible_directories(self) -> tuple[Path, ...]:
        """Every directory that a group of this name may have, whatever limits it was made for."""
        return self.directories()

    @abstractmethod
    def create(self) -> None:
        """Make the group, empty and unlimited. Raises OSError."""

    @abstractmethod
    def apply(self, limits: Limits) -> None:
        """Set every limit that is not None. Raises TareError naming the first one the host lacks."""

    @abstractmethod
    def readings(self, limits: Limits) -> tuple[LimitReading, ...]:
        """Each limit of `limits` read back from the kernel."""

    @abstractmethod
    def usage(self) -> Usage:
        """CPU time, memory, processes and I/O of the whole group; `pss_bytes` is not a cgroup's to know."""

    @abstractmethod
    def set_frozen(self, frozen: bool, timeout_s: float = 5.0) -> None:
        """Freeze or thaw all processes; returns when the kernel says it is done. Raises TareError on time-out."""

    def freeze(self) -> None:
        """Freeze every process of the group."""
        self.set_frozen(True)

    def thaw(self) -> None:
        """Let a frozen group run again."""
        self.set_frozen(False)

    @abstractmethod
    def join_files(self) -> tuple[Path, ...]:
        """Files to which a process writes `0` to enter by itself; empty where `clone_into()` is given."""

    @abstractmethod
    def clone_into(self) -> Path | None:
        """The directory to open for CLONE_INTO_CGROUP, where that covers all controllers (v2)."""

    @abstractmethod
    def mounts_inside(self) -> tuple[tuple[str, str], ...]:
        """What to mount to show the group to its own processes: (controllers, name below /sys/fs/cgroup)."""

    def add_pid(self, pid: int) -> None:
        """Move process `pid` with all its threads in. Raises OSError."""
        for directory in self.directories():
            write(directory / "cgroup.procs", str(pid))

    def pids(self) -> tuple[int, ...]:
        """The group's processes as the host numbers them; empty when it does not exist."""
        return members(self.directories()[0])

    def kill(self) -> None:
        """Send SIGKILL to every process of the group."""
        for directory in self.directories():
            kill_members(directory)

    def exists(self) -> bool:
        """Whether any directory of the group is there."""
        return any(directory.is_dir() for directory in self.possible_directories())

    def remove(self, timeout_s: float = 5.0) -> None:
        """Remove the group, killing what is still in it. Removing an absent group is no error.

        Raises TareError when it is still busy after `timeout_s`.
        """
        remove_directories(self.possible_directories(), timeout_s)


def remove_directories(directories: Iterable[Path], timeout_s: float = 5.0) -> None:
    """Remove one instance's cgroup directories, of either version, killing what is still in them.

    A reaped task leaves its cgroup only when it has switched out for the last time, which v1
    announces nowhere: rmdir is retried on EBUSY until `timeout_s`. Raises TareError after that.
    """
    deadline = time.monotonic() + timeout_s
    everywhere = tuple(directories)
    for directory in everywhere:
        for _ in pauses(deadline):
            try:
                directory.rmdir()
            except FileNotFoundError:
                break
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                for any_directory in everywhere:
                    kill_members(any_directory)
            else:
                break
        else:
            raise TareError(f"cgroup {directory}", f"still busy after {timeout_s:g} s", "look at its cgroup.procs")


def members(directory: Path) -> tuple[int, ...]:
    """The processes in a cgroup directory; none when it does not exist."""
    try:
        return tuple(int(word) for word in (directory / "cgroup.procs").read_text().split())
    except OSError as error:
        if not absent(error):
            raise
        return ()


def absent(error: OSError) -> bool:
    """Whether `error` says that the group is not there: never made, or removed since its file was opened (ENODEV)."""
    return error.errno in (errno.ENOENT, errno.ENODEV, errno.ESRCH)


def kill_members(directory: Path) -> None:
    """SIGKILL to every process in a cgroup directory; thawed, as a frozen one cannot die on v1."""
    for pid in members(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(OSError):
        write(directory / "freezer.state", "THAWED")


def pauses(deadline: float, longest_s: float = 0.01) -> Iterator[None]:
    """Yield at once, then after waits that double up to `longest_s`, until monotonic time `deadline`.

    For the few states of a v1 hierarchy that can be read but not waited for.
    """
    pause_s = 0.0001
    while True:
        yield
        if time.monotonic() >= deadline:
            return
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, longest_s)


def write(path: Path, value: str) -> None:
    """Write `value` in one go, as control files demand. Raises OSError naming the file and the value."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} writing {value!r}", str(path)) from error
    finally:
        os.close(descriptor)


def limit(name: str, path: Path, value: str) -> None:
    """Set limit `name`. Raises TareError when the host has no such control or rejects the value."""
    try:
        write(path, value)
    except FileNotFoundError as error:
        raise TareError(f"limit {name}", f"this host has no {path.name}", "leave it out, or enable it") from error
    except OSError as error:
        raise TareError(f"limit {name}", f"{path}: {error.strerror}", "choose a value this host accepts") from error


def number(path: Path) -> int | None:
    """The one number in a control file; None if the file is absent or says `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def reading(name: str, asked: str, path: Path, parse: Callable[[str], str] = str.strip) -> LimitReading:
    """Read `path` back and compare it with `asked`, the text the kernel shows when the limit is in force."""
    try:
        read = parse(path.read_text())
    except OSError as error:
        read = error.strerror or str(error)
    return LimitReading(name=name, asked=asked, read=read, source=str(path), holds=read == asked)


def whole_pages(size_bytes: int) -> str:
    """A memory limit as the kernel keeps it: rounded down to pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    return str(size_bytes // page * page)


def cpu_list(text: str) -> str:
    """A CPU list as the kernel shows it: `3,1,0` → `0-1,3`."""
    cpus = parse_cpuset(text)
    firsts = sorted(cpu for cpu in cpus if cpu - 1 not in cpus)
    lasts = sorted(cpu for cpu in cpus if cpu + 1 not in cpus)
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(firsts, lasts, strict=True))


def line_of_device(device: str | None) -> Callable[[str], str]:
    """A parser that finds what a per-device control file says about `device`; empty if nothing."""

    def parse(text: str) -> str:
        rows = (line.split(None, 1) for line in text.splitlines())
        return next((row[1].strip() for row in rows if len(row) == 2 and row[0] == device), "")

    return parse


def need_device(name: str, device: str | None) -> str:
    """The device number `MAJOR:MINOR` that I/O limits apply to. Raises TareError where there is none."""
    if device is None:
        raise TareError(
            f"limit {name}",
            "the file system of the state directory lies on no block device",
            "move it (TARE_ROOT) or leave the limit out",
        )
    return device


def scheduler(device: str, sys: Path = Path("/sys")) -> str:
    """The I/O scheduler of `MAJOR:MINOR`, the one in brackets; empty when the disk tells none."""
    try:
        text = (sys / f"dev/block/{device}/queue/scheduler").read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def refuse_weight(device: str, found: str) -> TareError:
    """Why an I/O weight cannot be enforced: its file exists in every group, whether or not anything reads it."""
    return TareError(
        "limit io_weight",
        f"the scheduler of disk {device} is {found or 'unknown'}, which obeys no weights",
        f"leave it out, or: echo bfq > /sys/dev/block/{device}/queue/scheduler",
    )
