"""Control files and group directories, whichever version: writing, reading, members, removal.

Every path is an argument. Not which file holds what: that is `v1_controls` and `v2_controls`.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.errors import TareError

_IO_CAPS = {
    **{f"blkio.throttle.{which}_device": "0" for which in ("read_bps", "write_bps", "read_iops", "write_iops")},
    "io.max": "rbps=max wbps=max riops=max wiops=max",
}
"""Where a group's caps on I/O stand, v1 and v2, a device a line, and what says that a device has none."""


def write(path: Path, value: str) -> None:
    """Write `value` in one go, as control files demand. Raises OSError naming the file and the value."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} writing {value!r}", str(path)) from error
    finally:
        os.close(descriptor)


def write_lines(path: Path, values: Iterable[str]) -> None:
    """Write `values` one after the other into a file that takes one a time. Raises OSError naming file and value."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    value = ""
    try:
        for value in values:
            os.write(descriptor, value.encode())
    except OSError as error:
        raise OSError(error.errno, f"{os.strerror(error.errno or 0)} writing {value!r}", str(path)) from error
    finally:
        os.close(descriptor)


@contextmanager
def whole(directory: Path) -> Iterator[Path]:
    """Make a group that nobody may use before it is ready: under another name, which it loses at the end."""
    partial = directory.with_name(f"{directory.name}.{os.getpid()}")
    partial.mkdir(0o755, exist_ok=True)
    try:
        yield partial
        with suppress(OSError):  # somebody else was faster
            partial.rename(directory)
    finally:
        with suppress(FileNotFoundError):
            partial.rmdir()


def number(path: Path) -> int | None:
    """The one number in a control file; None if the file is absent or says `max`."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.lstrip("-").isdigit() else None


def keyed(path: Path) -> dict[str, int]:
    """A flat keyed file: one `name number` a line; empty when it is not there."""
    try:
        return parse_keyed(path.read_text())
    except OSError:
        return {}


def parse_keyed(text: str) -> dict[str, int]:
    """The text of a flat keyed file; lines of another form are left out."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].lstrip("-").isdigit()}


def absent(error: OSError) -> bool:
    """Whether `error` says that the group is not there: never made, or removed since its file was opened (ENODEV)."""
    return error.errno in (errno.ENOENT, errno.ENODEV, errno.ESRCH)


def members(directory: Path) -> tuple[int, ...]:
    """The processes in a cgroup directory; none when it does not exist, or is for threads of those of the one above."""
    try:
        return tuple(int(word) for word in (directory / "cgroup.procs").read_text().split())
    except OSError as error:
        if not absent(error) and error.errno != errno.EOPNOTSUPP:
            raise
        return ()


def family(directory: Path) -> tuple[Path, ...]:
    """`directory` and the groups made below it, the deepest first. A container may have made some of its own."""
    try:
        if directory.stat().st_nlink <= 2:  # what the cgroup file system counts: two, and one for each group below
            return (directory,)
        below = [Path(entry.path) for entry in os.scandir(directory) if entry.is_dir(follow_symlinks=False)]
    except OSError as error:
        if not absent(error):
            raise
        return (directory,)
    return (*(path for child in below for path in family(child)), directory)


def kill_members(directory: Path) -> None:
    """SIGKILL to every process in a cgroup directory; thawed, as a frozen one cannot die on v1."""
    for pid in members(directory):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    with suppress(OSError):
        write(directory / "freezer.state", "THAWED")
    lift_io_caps(directory)


def lift_io_caps(directory: Path) -> None:
    """Let go of what waits for its turn below a cap on I/O: until that comes, not even SIGKILL ends a process."""
    for name, none in _IO_CAPS.items():
        with suppress(OSError):
            for line in (directory / name).read_text().splitlines():
                write(directory / name, f"{line.split()[0]} {none}")


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


def remove_directories(
    directories: Iterable[Path | str], timeout_s: float = 5.0, *, made: Collection[Path | str] = ()
) -> None:
    """Remove one instance's cgroup directories, of either version, killing what is still in them or below.

    Those that whoever asks has `made` are there, as far as he knows; the others may be.
    A reaped task leaves its cgroup only when it has switched out for the last time, which v1
    announces nowhere: rmdir is retried on EBUSY until `timeout_s`. Raises TareError after that.
    """
    deadline = time.monotonic() + timeout_s
    everywhere = tuple(directories)
    for directory in everywhere:
        # Most hierarchies have none of this name, and to be told so by an error costs more than to ask.
        if (directory in made or os.access(directory, os.F_OK)) and not _removed(directory):
            _remove_busy(directory, everywhere, deadline, timeout_s)


def _removed(directory: Path | str) -> bool:
    """Remove a group; False while it is busy. An absent one is removed."""
    try:
        os.rmdir(directory)  # noqa: PTH106 - text or a path, as it comes: half the removals are a launch's
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return False
    return True


def _remove_busy(directory: Path | str, everywhere: Iterable[Path | str], deadline: float, timeout_s: float) -> None:
    for _ in pauses(deadline):
        _empty([Path(top) for top in everywhere])
        if _removed(directory):
            return
    raise TareError(f"cgroup {directory}", f"still busy after {timeout_s:g} s", "look at its cgroup.procs")


def _empty(directories: Iterable[Path]) -> None:
    """Kill what is in the groups, and take away those below them as far as they are empty."""
    for top in directories:
        for directory in family(top):
            kill_members(directory)
            if directory != top:
                with suppress(OSError):
                    directory.rmdir()
