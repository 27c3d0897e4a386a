"""What the host was doing while something ran: CPU time, steal, pressure, load, frequency.

Cheap enough to stand before and after every cell: under a millisecond. What the host *is* stands in
`harness.environment`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

PROC = Path("/proc")
SYS = Path("/sys")
_POLICIES = 8  # frequency policies read at most: a big host has one a CPU


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """One reading. `ticks` are the fields of /proc/stat's first line, user to steal, summed over all CPUs.

    `stalled_us` holds the totals of /proc/pressure by name, like `cpu_some`; `frequency_hz` is the mean
    over up to 8 frequency policies. What the host does not tell is empty or None. `suspended_ns` is how long
    it has slept since it booted: time that `at_ns`, the monotonic clock, does not count.
    """

    at_ns: int
    suspended_ns: int = 0
    ticks: tuple[int, ...] = ()
    stalled_us: Mapping[str, int] = field(default_factory=dict)
    load_1min: float | None = None
    frequency_hz: float | None = None

    def delta(self, later: HostState) -> dict[str, float]:
        """What happened from this reading to the `later` one; only what both tell.

        `busy`, `iowait`, `steal`: shares (0-1) of all CPUs' time, absent when no tick passed.
        `pressure_*`: share of the wall time that tasks stalled. `load_1min`, `frequency_hz`: as of `later`.
        """
        elapsed_ns = later.at_ns - self.at_ns
        found: dict[str, float] = {"elapsed_s": elapsed_ns / 1e9}
        spent = [after - before for before, after in zip(self.ticks, later.ticks, strict=False)]
        total = sum(spent)
        if len(spent) >= 8 and total > 0:
            idle, iowait, steal = spent[3], spent[4], spent[7]
            found |= {"busy": 1 - (idle + iowait + steal) / total, "iowait": iowait / total, "steal": steal / total}
        for name in self.stalled_us.keys() & later.stalled_us.keys():
            if elapsed_ns > 0:
                found[f"pressure_{name}"] = (later.stalled_us[name] - self.stalled_us[name]) * 1e3 / elapsed_ns
        for name in ("load_1min", "frequency_hz"):
            value = getattr(later, name)
            if value is not None:
                found[name] = value
        return dict(sorted(found.items()))


def host_state(proc: Path = PROC, sys: Path = SYS) -> HostState:
    """Read the host's state now."""
    load = _read(proc / "loadavg")
    return HostState(
        at_ns=time.monotonic_ns(),
        suspended_ns=_suspended_ns(),
        ticks=tuple(map(int, _read(proc / "stat").partition("\n")[0].split()[1:9])),
        stalled_us=dict(_stalled(proc / "pressure")),
        load_1min=float(load.split()[0]) if load else None,
        frequency_hz=_frequency(sys / "devices/system/cpu/cpufreq"),
    )


def _suspended_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _stalled(pressure: Path) -> list[tuple[str, int]]:
    rows = [
        (f"{topic}_{line.split()[0]}", int(line.rpartition("total=")[2]))
        for topic in ("cpu", "memory", "io")
        for line in _read(pressure / topic).splitlines()
    ]
    return [row for row in rows if row[0] != "cpu_full"]  # undefined for the whole system, always 0


def _frequency(root: Path) -> float | None:
    policies = sorted(root.glob("policy*"))
    chosen = policies[:: max(1, -(-len(policies) // _POLICIES))]
    khz = [int(text) for policy in chosen if (text := _read(policy / "scaling_cur_freq").strip()).isdigit()]
    return 1000 * sum(khz) / len(khz) if khz else None
