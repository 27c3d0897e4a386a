"""Which settings of the host `tare bench --tune` changes for the length of a run, and to what.

They are those of the doctor's warnings (`harness.hostchecks`) that can be changed and put back while everything
else goes on. Hyperthreads are not among them: on cgroup v1 a CPU that was offline has left every cpuset for good.
How settings are changed, noted and put back is `runtime.tuning`'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.environment import PROC, SYS, meminfo
from runtime import tuning
from runtime.errors import TareError
from runtime.tuning import Change

MIB = 1 << 20


def plan(proc: Path = PROC, sys: Path = SYS) -> list[Change]:
    """What would change on this host; nothing that is as wanted already. Swap comes last: it takes longest."""
    return [*_frequency(sys / "devices/system/cpu"), *_memory(proc, sys / "kernel/mm"), *tuning.swap_areas(proc)]


def _frequency(cpu: Path) -> Iterator[Change]:
    """A frequency that follows neither load (governor) nor heat and neighbours (turbo)."""
    for policy in sorted((cpu / "cpufreq").glob("policy*"), key=lambda path: int(path.name[6:])):
        offered = _reading(policy / "scaling_available_governors")
        if offered is None or "performance" in offered.split():
            yield from _wanted(f"governor {policy.name}", policy / "scaling_governor", "performance")
    yield from _wanted("turbo", cpu / "intel_pstate/no_turbo", "1")
    yield from _wanted("turbo", cpu / "cpufreq/boost", "0")


def _memory(proc: Path, mm: Path) -> Iterator[Change]:
    """Pages that are not merged (2 also parts those merged before), grown or moved behind a measurement's back."""
    yield from _wanted("same-page merging", mm / "ksm/run", "2", only_from="1")
    yield from _wanted("huge pages", mm / "transparent_hugepage/enabled", "madvise", only_from="always")
    yield from _wanted("NUMA balancing", proc / "sys/kernel/numa_balancing", "0")


def _reading(path: Path) -> str | None:
    try:
        return tuning.reading(path)
    except OSError:
        return None


def _wanted(name: str, path: Path, value: str, *, only_from: str = "") -> Iterator[Change]:
    present = _reading(path)
    if present and present != value and only_from in ("", present):
        yield Change(name=name, path=str(path), before=present, during=value)


@contextmanager
def tuned(run: Path, *, proc: Path = PROC, sys: Path = SYS) -> Iterator[dict[str, str]]:
    """Change what `plan` says until the block is left; yields it as text, by setting, for the run's header.

    Raises TareError, with nothing changed, where a setting resists or what lies in swap would not fit into memory.
    """
    _demand_room(proc)
    changes = plan(proc, sys)
    with tuning.changed(run, changes, proc=proc, sys=sys):
        yield {each.name: f"{each.before} → {each.during}" for each in changes}


def _demand_room(proc: Path) -> None:
    sizes = meminfo(proc)
    swapped, available = sizes.get("SwapTotal", 0) - sizes.get("SwapFree", 0), sizes.get("MemAvailable", 0)
    if swapped > available // 2:
        why = f"{swapped // MIB} MiB lie in swap and only {available // MIB} MiB of memory are available"
        raise TareError("bench --tune", why, "end what fills the memory, or leave out --tune")
