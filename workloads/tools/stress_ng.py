"""stress-ng 0.15: command lines of antagonists and what it says it did. Never a victim: its units are bogus by name."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from workloads.base import Invalid
from workloads.tools.totals import possible

_METRIC = re.compile(r"metrc: \[\d+\] (?P<name>[a-z][a-z-]*)\s+(?P<ops>\d+)\s+(?P<real>\d+\.\d+)(?:\s+[0-9.]+){4}\s*$")


@dataclass(frozen=True, slots=True)
class Stress:
    """`ops` bogus operations over all workers in `elapsed_s` of wall time."""

    ops: int
    elapsed_s: float


def cpu_argv(hogs: int, seconds: float, *, directory: str) -> tuple[str, ...]:
    """`hogs` processes that compute all the time. `directory` must be writable: stress-ng insists on one."""
    return ("stress-ng", "--cpu", str(hogs), *_common(seconds, directory))


def fsync_argv(writers: int, seconds: float, *, directory: str, file_mib: int) -> tuple[str, ...]:
    """`writers` processes; each writes one file of `file_mib` over and over, flushed after every write."""
    return (
        *("stress-ng", "--hdd", str(writers), "--hdd-bytes", f"{file_mib}M", "--hdd-opts", "wr-seq,fsync"),
        *_common(seconds, directory),
    )


def parse(stderr: bytes) -> Stress:
    """Read the metrics of a run with one stressor. Raises Invalid when there are none or nothing was done."""
    text = stderr.decode(errors="replace")
    found = next(filter(None, map(_METRIC.search, text.splitlines())), None)
    if found is None:
        raise Invalid("stress-ng", f"no metrics in its output: {text.strip()[-200:] or 'it said nothing'}")
    stress = Stress(ops=int(found["ops"]), elapsed_s=float(found["real"]))
    if not possible(stress.ops, stress.elapsed_s):
        raise Invalid("stress-ng", "it stressed nothing")
    return stress


def _common(seconds: float, directory: str) -> tuple[str, ...]:
    return ("--timeout", str(math.ceil(seconds)), "--metrics-brief", "--temp-path", directory)
