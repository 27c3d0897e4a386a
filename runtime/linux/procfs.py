"""What /proc says about processes: state, memory, which mount namespace they are in.

Everything takes the root of /proc as a parameter. A process that ends while it is read is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

PROC = Path("/proc")


def pids(proc: Path = PROC) -> Iterator[int]:
    """Every process there is."""
    return (int(name) for name in os.listdir(proc) if name.isdigit())  # noqa: PTH208 - names are all that is needed


def state(pid: int, proc: Path = PROC) -> str | None:
    """The process's state letter (proc_pid_stat(5)): R, S, D, T, Z…; None when it is gone."""
    try:
        stat = (proc / str(pid) / "stat").read_text()
    except OSError:
        return None
    return stat[stat.rindex(")") + 2]


def mount_namespace(pid: int, proc: Path = PROC) -> int | None:
    """The inode number that names the process's mount namespace; None when it is gone."""
    try:
        link = os.readlink(proc / str(pid) / "ns/mnt")  # noqa: PTH115 - not a path
    except OSError:
        return None
    return int(link.partition("[")[2].rstrip("]"))


def in_mount_namespace(namespace: int, proc: Path = PROC) -> tuple[int, ...]:
    """Every living process in the mount namespace; zombies have left it."""
    return tuple(pid for pid in pids(proc) if mount_namespace(pid, proc) == namespace)


def with_mount_below(directory: Path, proc: Path = PROC) -> tuple[int, ...]:
    """Every living process among whose mounts one comes from below `directory`, told by its last two names.

    The kernel shows such paths from the root of their file system, wherever that is mounted. Empty when this very
    process sees such a mount: then it is the host's, every process has it, and none can be told by it.
    """
    needle = f"/{directory.parent.name}/{directory.name}/"
    if needle in _text(proc / "self/mountinfo"):
        return ()
    return tuple(pid for pid in pids(proc) if needle in _text(proc / str(pid) / "mountinfo"))


def with_variable(name: str, value: str, proc: Path = PROC) -> tuple[int, ...]:
    """Every living process that began with `name`=`value` in its environment."""
    needle = f"\0{name}={value}\0".encode()
    return tuple(pid for pid in pids(proc) if needle in b"\0" + _bytes(proc / str(pid) / "environ"))


def pss_bytes(processes: Iterable[int], proc: Path = PROC) -> int:
    """The processes' proportional set size: private pages, and a fair part of each shared one."""
    rows = (line for pid in processes for line in _text(proc / str(pid) / "smaps_rollup").splitlines())
    return sum(int(row.split()[1]) * 1024 for row in rows if row.startswith("Pss:"))


def cpu_ns(processes: Iterable[int], proc: Path = PROC) -> int:
    """User and system time of the processes and of the children they waited for, at clock-tick resolution."""
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    stats = (_text(proc / str(pid) / "stat") for pid in processes)
    return (
        sum(sum(int(field) for field in stat[stat.rindex(")") + 2 :].split()[11:15]) for stat in stats if stat)
        * tick_ns
    )


def rss_bytes(processes: Iterable[int], proc: Path = PROC) -> int:
    """Resident memory, every shared page counted once a process."""
    texts = (_text(proc / str(pid) / "statm") for pid in processes)
    return sum(int(text.split()[1]) for text in texts if text) * os.sysconf("SC_PAGE_SIZE")


def io_bytes(processes: Iterable[int], proc: Path = PROC) -> tuple[int, int]:
    """Bytes that the processes had read from and written to storage (proc_pid_io(5))."""
    rows = [line.split() for pid in processes for line in _text(proc / str(pid) / "io").splitlines()]
    read, written = (
        sum(int(row[1]) for row in rows if len(row) == 2 and row[0] == key) for key in ("read_bytes:", "write_bytes:")
    )
    return read, written


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
