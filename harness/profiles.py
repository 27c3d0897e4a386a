"""How much is measured: the four profiles, from a test of the suite itself to a publication.

Numbers only. The order is `harness.schedule`'s, what a parameter means the workload's.

The sums behind the budgets are for 2 CPUs without usable hardware virtualisation, images cached:
a visit's launch and end cost about 0.05 s for native and containers, 5 s for a microvm, 32 s for
a vm (`_BOOT_S`), all within one CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from runtime.driver import Kind
from runtime.errors import UsageError
from runtime.spec import Limits

COMPARATORS = ("docker", "runc", "crun", "youki", "runsc", "tare-oci")
"""Other ways to a container, measured to tell ours from theirs; no claim is about them."""

_MOST_STRETCHED = 1000.0
_BOOT_S = {"microvm": 3.5, "vm": 24.0, "docker": 0.5, "tare-oci": 0.4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """How a profile runs one workload.

    `drivers` restricts it (None: every driver of the run that its kinds allow). Comparators run it where it says
    so, `repeats` times more where that is what it does. On those of `rare` it
    runs in the first block alone where they are emulated in software, as the profile has no time for
    figures that can carry no verdict. `once` moves it from every block to a closing visit after the last
    one. `params` go to the workload, `by_kind` over them. `limit_s` ends the cell, which should take
    `expect_s` and `boots` launches.
    """

    drivers: tuple[str, ...] | None = None
    comparators: bool = False
    repeats: int = 0
    rare: tuple[str, ...] = ()
    once: bool = False
    params: Mapping[str, float] = field(default_factory=dict)
    by_kind: Mapping[Kind, Mapping[str, float]] = field(default_factory=dict)
    limit_s: float = 60.0
    expect_s: float = 2.0
    boots: int = 0

    def takes(self, driver: str) -> bool:
        """Whether the workload runs on `driver` in this profile."""
        if driver in COMPARATORS:
            return self.comparators
        return self.drivers is None or driver in self.drivers

    def params_for(self, driver: str, kind: Kind) -> dict[str, float]:
        """The parameters on a driver of `kind`."""
        params = {**self.params, **self.by_kind.get(kind, {})}
        return {**params, "repeats": self.repeats} if driver in COMPARATORS and "repeats" in params else params

    def stretched(self, factor: float) -> Entry:
        """The same with `factor` times as much time."""
        return replace(self, limit_s=factor * self.limit_s, expect_s=factor * self.expect_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A whole run's measure.

    Blocks: at least `min_blocks`, then a look at the widths every `look_every` until the widest key
    metric has a relative CI half-width of `target_half_width`, `max_blocks` are done, or `budget_s`
    would be exceeded. `ready_s` is how long an instance may take to become ready, by kind. All times but
    the windows that are measured in have been multiplied by `time_factor`.
    """

    name: str
    about: str
    min_blocks: int
    max_blocks: int
    look_every: int
    target_half_width: float
    budget_s: float
    drivers: tuple[str, ...]
    limits: Limits
    key_metrics: tuple[str, ...]
    ready_s: Mapping[Kind, float]
    entries: Mapping[str, Entry]
    time_factor: float = 1.0

    def entry(self, workload: str) -> Entry:
        """How this profile runs `workload`; one it does not mention runs in every block, on every driver."""
        return self.entries.get(workload) or Entry().stretched(self.time_factor)

    def boot_s(self, driver: str) -> float:
        """Expected seconds to launch, wait for and close one instance of `driver`."""
        return _BOOT_S.get(driver, 0.1) * self.time_factor

    def settings(self) -> dict[str, Any]:
        """The profile as plain data, for the journal's header; the time factor only where one was asked for."""
        plain = asdict(self)
        return {name: value for name, value in plain.items() if name != "time_factor" or value != 1.0}

    def stretched(self, factor: float) -> Profile:
        """The profile for a host too slow for its times: `factor` times the budget and every bound, the same windows.

        Raises UsageError for a factor below 1, which would cut off what is slow, and for absurd ones.
        """
        if not 1.0 <= factor <= _MOST_STRETCHED:
            why = f"must be a number from 1 to {_MOST_STRETCHED:g}"
            raise UsageError(f"--time-factor {factor:g}", why, "leave it out for 1")
        return replace(
            self,
            budget_s=factor * self.budget_s,
            ready_s={kind: factor * ready_s for kind, ready_s in self.ready_s.items()},
            entries={name: entry.stretched(factor) for name, entry in self.entries.items()},
            time_factor=factor,
        )


_LIMITS = Limits(cpus=1.0, memory_bytes=512 << 20, swap_bytes=0, pids=512)
_READY_S = {Kind.NATIVE: 20.0, Kind.CONTAINER: 20.0, Kind.VM: 180.0}
_KEY = ("startup.ready", "startup.userland", "overhead.cpu_events", "overhead.memory_bandwidth")
_NO_VM = ("native", "container", "microvm")
_ALL = (*_NO_VM, "vm")
_OVERHEAD = ("overhead_cpu", "overhead_memory", "overhead_kernel", "overhead_disk")


def _entries(
    *,
    seconds: float,
    small_s: float,
    disk_s: float,
    disk_mib: float,
    repeats: int,
    ramp_s: float,
    containers: int,
    machines: int,
    together: int,
    compared: tuple[str, ...],
    brief: bool = False,
    drivers: Mapping[str, tuple[str, ...]] | None = None,
) -> dict[str, Entry]:
    """Every workload's entry: `seconds` long windows, `repeats` launches more of what launches in milliseconds.

    `small_s` is the window of what does a million things a second, `disk_s` of each pattern on the disk. sysbench
    takes whole seconds.

    With `brief` the network is looked at once, and no vm is launched for a closing visit.
    `together` is the most containers begun at once. `drivers` restricts workloads, by name; comparators run those
    of `compared`, with less than half as many repeats.
    """
    light = {Kind.NATIVE: {"repeats": repeats}, Kind.CONTAINER: {"repeats": repeats}}
    # A container ramp ends by its cap: a thousand take some 15 s.
    ramps = {
        Kind.CONTAINER: {"cap": containers, "width": 4, "time_s": max(60.0, ramp_s)},
        Kind.VM: {"cap": machines, "width": 2, "time_s": ramp_s},
    }
    window = {"seconds": seconds}
    rare = ("microvm", "vm")  # for what is about hardware
    session = Entry(params={**window, "small_s": small_s}, limit_s=20 + 5 * seconds + 10 * small_s, rare=rare)
    whole_s = max(1, round(seconds))
    closing = _NO_VM if brief else (*_NO_VM, "vm")
    lane = Entry(drivers=closing, once=True, expect_s=0.4, boots=1, limit_s=300)
    entries = {
        "startup": Entry(by_kind=light, repeats=repeats * 2 // 5, expect_s=0.1),
        "startup_cold": replace(lane, by_kind={**light, Kind.VM: {"repeats": 1}}),
        "startup_answered": replace(lane, by_kind={**light, Kind.VM: {"repeats": 1}}, boots=2),
        "startup_at_once": replace(lane, params={"most": together}, by_kind={Kind.VM: {"most": 2}}, boots=4),
        "instrument": Entry(expect_s=0.05),
        "teardown": Entry(expect_s=0.0),
        "idle": Entry(params={"seconds": 2 * seconds}, expect_s=2 * seconds + 0.3, limit_s=session.limit_s),
        "overhead_cpu": replace(session, expect_s=whole_s + small_s + 0.1),
        "overhead_memory": replace(session, expect_s=whole_s + 2 * small_s + 0.5),
        "overhead_kernel": replace(session, expect_s=4 * small_s + 0.1),
        "overhead_disk": replace(session, params={"seconds": disk_s, "size_mib": disk_mib}, expect_s=5 * disk_s + 2),
        "leakage": Entry(params=window, expect_s=4 * seconds + 2.3, boots=2, limit_s=60 + 10 * seconds, rare=rare),
        "footprint": Entry(expect_s=0.6),
        "growth": Entry(once=True, expect_s=1.0, boots=1, limit_s=300),
        "network": Entry(
            drivers=closing,
            once=brief,
            params={"small_s": small_s},
            expect_s=2 * max(1, round(small_s)) + 4 * small_s + 1,
            boots=1,
            limit_s=120 + 20 * small_s,
        ),
        "enforcement_io": Entry(drivers=_NO_VM, once=True, params={"seconds": 1.0}, expect_s=2.0, boots=1, limit_s=120),
        "controls": Entry(drivers=_NO_VM, once=True, params={"seconds": 1.0}, expect_s=5.0, boots=2, limit_s=120),
        "protection": Entry(
            drivers=_NO_VM,
            once=True,
            params={**window, "rounds": 3 if seconds >= 1 else 1},
            expect_s=3 * (1 + 2 * whole_s * (3 if seconds >= 1 else 1)) + 2,
            boots=6,
            limit_s=300,
        ),
        "layers": Entry(drivers=_NO_VM, once=True, expect_s=0.5, boots=2, limit_s=300),
        "namespaces": Entry(once=True, expect_s=0.4),
        "delivery": Entry(
            drivers=("container", "microvm", "vm"),
            once=True,
            expect_s=4.0,
            boots=1,
            limit_s=300,
        ),
        "enforcement": Entry(once=True, params={"seconds": 1.0}, expect_s=2.5, limit_s=120),
        "density": Entry(
            drivers=("container", "microvm", "vm"),
            once=True,
            params={"idle_s": 2.0},
            by_kind=ramps,
            expect_s=ramp_s + 4,
            limit_s=max(60.0, ramp_s) + 120,
        ),
    }
    entries |= {name: replace(entries[name], drivers=names) for name, names in (drivers or {}).items()}
    return entries | {name: replace(entries[name], comparators=True) for name in compared}


# One block: native 8 + 8, container 13 (leakage 4 of it), microvm 2 + 3.5 to boot, vm 2 + 24: 61 s, seven take 7.1 min.
# In the first, or in all where VMs are not emulated, also: overhead microvm 9, vm 6, leakage microvm 9. Closing: native
# 8, container 47 (density 14), microvm 39 (density 14): 1.6 min. Seven unanimous blocks carry three tested claims
# through Holm's correction (`stats.blocks_needed`). Where a host is slower than that, the dearest visits (the vm's) are
# the first to fall to the budget. Comparators: docker 1.1 and runc 0.4 a block.
_QUICK = Profile(
    name="quick",
    about="a first look, 10 minutes",
    min_blocks=7,
    max_blocks=22,
    look_every=5,
    target_half_width=0.05,
    budget_s=552.0,
    drivers=(*_ALL, "docker", "runc"),
    limits=_LIMITS,
    key_metrics=_KEY,
    ready_s=_READY_S,
    entries=_entries(
        seconds=0.5,
        small_s=0.1,
        disk_s=0.15,
        disk_mib=32,
        repeats=5,
        ramp_s=10.0,
        containers=1000,
        machines=16,
        together=32,
        compared=("startup",),
        brief=True,
        drivers={
            "leakage": ("container", "microvm"),
            "growth": _NO_VM,
            "enforcement": _NO_VM,
            "namespaces": _NO_VM,
            **dict.fromkeys(("startup_cold", "startup_answered", "startup_at_once"), ("native", "container")),
            **dict.fromkeys(("enforcement_io", "controls", "protection"), ("container",)),
            "layers": ("native", "container"),
            "delivery": ("container", "microvm"),
            "density": ("container", "microvm"),
        },
    ),
)

# One block: native 7 + 7, container 10, microvm 5 and vm 25 (boots): 55 s; closing 28 s, nearly all the container's.
_SMOKE = replace(
    _QUICK,
    name="smoke",
    about="a test of the suite itself, 90 seconds; claims nothing",
    min_blocks=1,
    max_blocks=1,
    budget_s=85.0,
    drivers=_ALL,
    entries=_entries(
        seconds=0.2,
        small_s=0.05,
        disk_s=0.1,
        disk_mib=8,
        repeats=2,
        ramp_s=2.0,
        containers=20,
        machines=2,
        together=4,
        compared=("startup", "teardown"),
        brief=True,
        drivers={
            **dict.fromkeys(_OVERHEAD, ("native", "container")),
            "leakage": ("container",),
            "growth": ("container",),
            **dict.fromkeys(("network", "startup_cold", "startup_answered", "startup_at_once"), ("container",)),
            "namespaces": ("native", "container"),
            "enforcement_io": ("container",),
            "controls": ("container",),
            "protection": (),  # a dozen whole seconds
            "layers": ("container",),
            "delivery": ("container",),
            "enforcement": ("container",),
            "density": ("container",),
        },
    ),
)

# One block: native 33 + 19, container 33, microvm 16, vm 57 (a boot for its network): 158 s, ten take 26 min; the first
# 1.7 min more for what emulated VMs do once. Closing 11 min: density 2 × 94 + 60, boots of the vm. Comparators: docker
# and tare-oci 4.5, runc 3 a block.
_STANDARD = replace(
    _QUICK,
    name="standard",
    about="nightly, 45 minutes",
    min_blocks=10,
    max_blocks=40,
    target_half_width=0.02,
    budget_s=2640.0,
    drivers=(*_ALL, *COMPARATORS),
    entries=_entries(
        seconds=1.5,
        small_s=0.5,
        disk_s=1.0,
        disk_mib=64,
        repeats=10,
        ramp_s=90.0,
        containers=1000,
        machines=24,
        together=64,
        compared=("startup", "teardown", "overhead_cpu"),
    ),
)

# One block: sessions 5 × 20 s, boots 37 s, leakage 20 + 20 + 35 + 85: about 5 min; twenty take 100 min.
_FULL = replace(
    _STANDARD,
    name="full",
    about="for publication, up to 6 hours",
    min_blocks=20,
    max_blocks=80,
    budget_s=6 * 3600.0,
    entries=_entries(
        seconds=4.0,
        small_s=1.0,
        disk_s=3.0,
        disk_mib=256,
        repeats=20,
        ramp_s=600.0,
        containers=4000,
        machines=64,
        together=128,
        compared=("startup", "teardown", "overhead_cpu"),
    ),
)

PROFILES = {profile.name: profile for profile in (_SMOKE, _QUICK, _STANDARD, _FULL)}


def find_profile(name: str) -> Profile:
    """The profile called `name`. Raises UsageError that lists the known ones."""
    if name not in PROFILES:
        raise UsageError(f"profile {name!r}", "no such profile", f"choose from {', '.join(PROFILES)}")
    return PROFILES[name]
