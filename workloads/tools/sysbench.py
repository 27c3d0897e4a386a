"""sysbench 1.0: command lines and what its report says. Not what the figures mean; workloads decide that."""

from __future__ import annotations

import re
from dataclasses import dataclass

from workloads.base import Invalid
from workloads.tools.totals import possible

PROBE = ("sysbench", "--version")
_TOTAL_TIME = re.compile(r"^\s*total time:\s+(\d+\.\d+)s$", re.MULTILINE)
_EVENTS = re.compile(r"^\s*total number of events:\s+(\d+)$", re.MULTILINE)
_TRANSFERRED = re.compile(r"^(\d+\.\d+) MiB transferred \(", re.MULTILINE)
_TROUBLE = re.compile(r"^(?:FATAL|ALERT|WARNING): .*$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Work:
    """What was done: `events` (for `memory` one per block), `mib` moved (0 for `cpu`), in `elapsed_s` by its clock."""

    events: int
    mib: float
    elapsed_s: float


def cpu_argv(seconds: float, threads: int = 1) -> tuple[str, ...]:
    """Verify primes up to 10000 by trial division, one event a round. sysbench takes whole seconds, at least one."""
    return ("sysbench", "cpu", f"--threads={threads}", f"--time={_whole(seconds)}", "--cpu-max-prime=10000", "run")


def memory_argv(seconds: float, block_mib: int, total_mib: int = 1 << 30) -> tuple[str, ...]:
    """Write one block from front to back until `total_mib` were written; by default time ends it, long before."""
    return (
        "sysbench",
        "memory",
        "--threads=1",
        f"--time={_whole(seconds)}",
        f"--memory-block-size={block_mib}M",
        f"--memory-total-size={total_mib}M",
        "--memory-oper=write",
        "--memory-access-mode=seq",
        "run",
    )


def parse(output: bytes) -> Work:
    """Read the report of a `cpu` or `memory` run. Raises Invalid for trouble in it, a missing line, or no work."""
    text = output.decode(errors="replace")
    trouble = _TROUBLE.search(text)
    if trouble is not None:
        raise Invalid("sysbench", trouble[0])
    time, events, moved = _TOTAL_TIME.search(text), _EVENTS.search(text), _TRANSFERRED.search(text)
    if time is None or events is None:
        raise Invalid("sysbench", f"no totals in its output: {text.strip()[-200:] or 'it said nothing'}")
    work = Work(events=int(events[1]), mib=float(moved[1]) if moved else 0.0, elapsed_s=float(time[1]))
    if not possible(work.events, work.elapsed_s):
        raise Invalid("sysbench", "it did no work")
    return work


def _whole(seconds: float) -> int:
    return max(1, round(seconds))
