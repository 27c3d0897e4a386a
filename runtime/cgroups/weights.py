"""One scale of a limit in terms of another: weights, shares, memory in pages, CPU lists.

Pure arithmetic; nothing here reads the host but the size of its pages.
"""

from __future__ import annotations

import os

from runtime.spec import parse_cpuset

SHARES_MIN, SHARES_MAX = 2, 262144
"""What `cpu.shares` holds (MIN_SHARES and MAX_SHARES, kernel/sched); the kernel bends other values silently."""


def cpu_shares(weight: int) -> int:
    """`cpu.shares` for a v2 weight: the kernel's own relation, 100 ↔ 1024 (sched_weight_from_cgroup, kernel/sched)."""
    return max(SHARES_MIN, round(weight * 1024 / 100))


def cpu_weight(shares: int) -> int:
    """`cpu.weight` for v1's shares: the kernel's own relation, 100 ↔ 1024, at the ends the nearest there is.

    Two groups then share a CPU as their shares say, on either version, and one of 1024 counts as one that
    nobody gave a weight. (Runtimes that map 2–262144 onto 1–10000 in a straight line make 39 of the default.)
    """
    return min(10000, max(1, round(shares * 100 / 1024)))


def bfq_weight(weight: int) -> int:
    """A weight of 1–10000 on BFQ's scale of 1–1000, the default 100 kept (as io.weight does, block/bfq-cgroup.c)."""
    return min(1000, max(1, weight))


def io_weight(weight: int) -> int:
    """`io.weight`, 1–10000, for an OCI block I/O weight of 10–1000: the straight line that runtimes agree on."""
    return 1 + (weight - 10) * 9999 // 990


def whole_pages(size_bytes: int) -> str:
    """A memory limit as the kernel keeps it: rounded down to pages."""
    page = os.sysconf("SC_PAGE_SIZE")
    return str(size_bytes // page * page)


def cpu_list(text: str) -> str:
    """A CPU or node list as the kernel shows it: `3,1,0` → `0-1,3`. Raises UsageError for what is none."""
    cpus = parse_cpuset(text)
    firsts = sorted(cpu for cpu in cpus if cpu - 1 not in cpus)
    lasts = sorted(cpu for cpu in cpus if cpu + 1 not in cpus)
    return ",".join(f"{a}-{b}" if a != b else str(a) for a, b in zip(firsts, lasts, strict=True))


def huge_page_bytes(size: str) -> int:
    """Bytes of a huge page size as the controller's files name it: `2MB`, `1GB`, `64KB`. Raises ValueError."""
    return int(size[:-2]) << {"KB": 10, "MB": 20, "GB": 30}.get(size[-2:], -1)
