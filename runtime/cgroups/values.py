"""Values of `Resources` checked before any file is written: what no kernel would take is refused by name.

What only the host can tell (a memory limit below what is used, a CPU that is offline) is the kernel's to refuse.
"""

from __future__ import annotations

import re

from runtime.cgroups.controls import Names
from runtime.cgroups.resources import HugepageLimit, Memory
from runtime.cgroups.weights import SHARES_MAX, SHARES_MIN, cpu_list, huge_page_bytes
from runtime.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

UNLIMITED: Final = -1
_HUGE = re.compile(r"([1-9]\d*)([KMG])i?B?", re.IGNORECASE)


def given(value: int | None) -> bool:
    """Whether a number asks for anything: callers write 0 and -1 for "leave it as it is"."""
    return value is not None and value > 0


def cpus(names: Names, name: str, text: str) -> str:
    """A list of CPUs or nodes as the kernel shows it."""
    try:
        return cpu_list(text.replace(" ", ""))
    except UsageError as error:
        raise UsageError(f"limit {names(name)}", f"{text!r}: {error.why}", "write it like 0-2,5") from error


def shares(names: Names, value: int | None) -> int | None:
    """v1's CPU shares; 0 is as Docker writes "not asked"."""
    if not value:
        return None
    if not SHARES_MIN <= value <= SHARES_MAX:
        raise _outside(names, "cpu.shares", value, f"{SHARES_MIN} and {SHARES_MAX}")
    return value


def weight(names: Names, name: str, value: int) -> int:
    """A block I/O weight. OCI says 10–1000; down to 1, as BFQ counts, since `Limits` does."""
    if not 1 <= value <= 1000:
        raise _outside(names, name, value, "10 and 1000")
    return value


def swappiness(names: Names, value: int | None) -> int | None:
    """0–100; -1 is as Docker writes "not asked", in unsigned 64 bits too."""
    if value is None or value in (-1, (1 << 64) - 1):
        return None
    if not 0 <= value <= 100:
        raise _outside(names, "memory.swappiness", value, "0 and 100")
    return value


def swap_alone(names: Names, memory: Memory, limit_now: int | None = None) -> int | None:
    """Bytes of swap on top of memory, as v2 limits it; UNLIMITED, or None when nothing is asked.

    `limit_now` is the memory limit that the group has, for an update that leaves it alone.
    """
    limit, both = memory.limit or limit_now, memory.swap or None
    if both == UNLIMITED or (limit == UNLIMITED and both is None):
        return UNLIMITED
    if both is None:
        return None
    if limit is None or limit == UNLIMITED:
        raise UsageError(
            f"limit {names('memory.swap')}", "memory and swap together are limited, memory is not", "limit memory too"
        )
    if both < limit:
        raise UsageError(
            f"limit {names('memory.swap')}",
            f"{both} bytes of memory and swap are fewer than the {limit} of memory",
            "it is the sum of both",
        )
    return both - limit


def huge_limit(names: Names, limit: HugepageLimit) -> tuple[str, str]:
    """The page size as the kernel names it, and the limit as it keeps it: whole pages, in bytes."""
    match = _HUGE.fullmatch(limit.page_size)
    if match is None or limit.limit < 0:
        name = f"limit {names('hugepageLimits')}"
        raise UsageError(name, f"{limit.limit} bytes of {limit.page_size!r}", "write the size like 2MB or 1GB")
    size = _canonical(f"{match[1]}{match[2].upper()}B")
    page = huge_page_bytes(size)
    return size, str(limit.limit // page * page)


def _canonical(size: str) -> str:
    """1024MB → 1GB: the kernel's names use the largest unit (hugetlb_cgroup.c, mem_fmt)."""
    size_bytes = huge_page_bytes(size)
    for shift, unit in ((30, "GB"), (20, "MB")):
        if size_bytes >= 1 << shift:
            return f"{size_bytes >> shift}{unit}"
    return f"{size_bytes >> 10}KB"


def _outside(names: Names, name: str, value: int, bounds: str) -> UsageError:
    return UsageError(f"limit {names(name)}", f"{value} does not lie between {bounds}", "correct it or leave it out")
