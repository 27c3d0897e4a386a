"""The few figures of the host that workloads need while they run: memory left, CPU time spent, tasks, room for more.

Readings only; nothing is changed but this process's own limit on open files, and that is given back.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of the host: `total`, and what the kernel thinks new work could get without swapping (proc(5))."""

    total: int
    available: int

    @property
    def reserve(self) -> int:
        """Bytes that must stay available, whatever is measured: 10 % of the host, at least 1 GiB."""
        return max(self.total // 10, GIB)


def memory(proc: Path = PROC) -> Memory:
    """MemTotal and MemAvailable of /proc/meminfo."""
    lines = (line.split() for line in (proc / "meminfo").read_text().splitlines())
    kib = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return Memory(total=kib["MemTotal"] * 1024, available=kib["MemAvailable"] * 1024)


def busy_cpu_s(proc: Path = PROC) -> float:
    """CPU seconds all CPUs have been busy since boot: user, nice, system, irq, softirq of /proc/stat.

    Guest time is inside user already; steal is other machines' work.
    """
    user, nice, system, _idle, _iowait, irq, softirq = map(int, (proc / "stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def task_room(proc: Path = PROC) -> int:
    """How many more tasks (threads) the kernel would create: the lower of pid_max and threads-max, less those there."""
    most = min(int((proc / "sys/kernel" / name).read_text()) for name in ("pid_max", "threads-max"))
    return most - int((proc / "loadavg").read_text().split()[3].partition("/")[2])


@contextmanager
def many_open_files() -> Iterator[int]:
    """Raise this process's soft limit on open files to its hard one for a while: each instance holds a few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
