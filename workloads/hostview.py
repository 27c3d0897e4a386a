"""What workloads need of the host around their instances: memory left, CPU time spent, tasks, caches, an answer.

Nothing is changed but this process's own limit on open files, which is given back, and what the page cache holds.
"""

from __future__ import annotations

import os
import resource
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
GIB = 1 << 30
REST_S, LOOK_S, STILL_BYTES = 10.0, 1.0, 2 << 20


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


def rest() -> None:
    """Wait, `REST_S` at most, until MemAvailable grows no more: a kernel takes seconds to give groups' memory back."""
    ends_s = time.monotonic() + REST_S
    before, now = 0, memory().available
    while now > before + STILL_BYTES and time.monotonic() < ends_s:
        time.sleep(LOOK_S)
        before, now = now, memory().available


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


def drop_caches(proc: Path = PROC) -> None:
    """Write back and let go of the host's page cache, directory entries and inodes (proc(5)). Raises OSError."""
    os.sync()
    (proc / "sys/vm/drop_caches").write_text("3")


def first_answer_ns(address: str, port: int, timeout_s: float) -> int:
    """When (monotonic_ns) a server at `address` had answered one byte on a fresh TCP connection. Raises OSError."""
    with socket.create_connection((address, port), timeout_s) as connection:
        connection.sendall(b"x")
        if not connection.recv(1):
            raise ConnectionError(f"{address}:{port} hung up without an answer")
        return time.monotonic_ns()


@contextmanager
def many_open_files() -> Iterator[int]:
    """Raise this process's soft limit on open files to its hard one for a while: each instance holds a few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
