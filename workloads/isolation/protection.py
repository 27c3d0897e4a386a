"""Protection: how much of its work an instance keeps beside hogs when it is guarded by a weight or by CPUs of its own.

Caps on the neighbour are `leakage`'s. Reservations of memory act only under pressure on the whole host, which is
not made here: nothing is said of them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import Instance
from runtime.spec import Limits
from workloads import hostview
from workloads.base import Context, Stage, Workload
from workloads.honesty import start_cost_s
from workloads.isolation.leakage import ENTITLED, antagonists, neighbourhood, work_rate
from workloads.metric import Better, Metric, Sample
from workloads.tools import sysbench

KEPT = Metric("protection.kept", "ratio", Better.HIGHER, "rate beside hogs ÷ rate alone, by what guards the victim")
GAIN = Metric("protection.gain", "ratio", Better.HIGHER, "1 − loss under the guard ÷ loss without one")
UNGUARDED, WEIGHT, CPUSET = "none", "weight", "cpuset"
WEIGHTS = (10_000, 100)
LEAST_LOSS = 0.05  # what must be lost without a guard before a gain has a meaning


class Protection(Workload):
    """A fresh pair for each guard: none, weights 10000 to 100, a CPU of the victim's own. No caps on CPU anywhere.

    The victim is sysbench cpu with one thread; alone means that its neighbour is frozen; the hogs are twice as many
    as the host has CPUs. `rounds` times (default 1), `seconds` (default 1) each. On a single CPU there is no cpuset.
    Label `others`: how many CPUs the rest of the host used meanwhile; whoever judges must look at it, as a group that
    spreads over more CPUs gets less of each from strangers.
    """

    name = "protection"
    stage = Stage.OWN
    metrics = (KEPT, GAIN)
    kinds = frozenset({Kind.CONTAINER, Kind.VM})

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield what was kept, and what each guard gained. Raises TareError when an instance dies."""
        kept: dict[str, float] = {}
        for guard, (victim, neighbour) in guards(context.prepared.spec.limits, os.cpu_count() or 1).items():
            context.say(guard)
            rounds = _rounds(context, victim, neighbour)
            for ratio, others in rounds:
                yield Sample(KEPT.name, ratio, labels={"guard": guard, "others": f"{others:.2f}"})
            kept[guard] = min(ratio for ratio, _ in rounds)
        loss = 1 - kept[UNGUARDED]
        for guard, least in kept.items():
            if guard != UNGUARDED and loss >= LEAST_LOSS:
                yield Sample(GAIN.name, 1 - (1 - least) / loss, labels={"guard": guard})


def guards(limits: Limits, cpus: int) -> dict[str, tuple[Limits, Limits]]:
    """Guard → limits of the victim and of its neighbour, both uncapped. Without a guard both are alike."""
    uncapped = replace(limits, cpus=None, cpuset=None, cpu_weight=None)
    found = {
        UNGUARDED: (uncapped, uncapped),
        WEIGHT: (replace(uncapped, cpu_weight=WEIGHTS[0]), replace(uncapped, cpu_weight=WEIGHTS[1])),
    }
    if cpus > 1:
        found[CPUSET] = (replace(uncapped, cpuset="0"), replace(uncapped, cpuset=f"1-{cpus - 1}" if cpus > 2 else "1"))
    return found


def _rounds(context: Context, victim_limits: Limits, neighbour_limits: Limits) -> list[tuple[float, float]]:
    """(the victim's rate beside hogs ÷ its rate alone, CPUs that others used meanwhile), round by round."""
    spec, seconds = context.prepared.spec, context.param("seconds", 1)
    hogs = int(context.param("hogs", 2 * (os.cpu_count() or 1)))
    argv = antagonists(seconds, hogs=hogs)["cpu"]
    rounds = []
    with (
        context.launch(replace(spec, limits=victim_limits)) as victim,
        context.launch(replace(spec, limits=neighbour_limits)) as neighbour,
    ):
        start_s = start_cost_s(victim, sysbench.PROBE)
        work_rate(victim, 1, start_s)  # an emulator translates the victim's code in its first run
        pair = (victim, neighbour)
        for _ in range(int(context.param("rounds", 1))):
            before_s, began_ns = _others_s(pair), time.monotonic_ns()
            with neighbourhood(neighbour, ENTITLED, None):
                alone = work_rate(victim, seconds, start_s)
            with neighbourhood(neighbour, "cpu", argv) as antagonist:
                beside = work_rate(victim, seconds, start_s)
                if antagonist is not None:
                    antagonist.demand_running()
            if not (victim.alive() and neighbour.alive()):
                raise TareError("protection", "an instance died beside hogs")
            others = (_others_s(pair) - before_s) / ((time.monotonic_ns() - began_ns) / 1e9)
            rounds.append((beside / alone, max(0.0, others)))
    return rounds


def _others_s(pair: tuple[Instance, ...]) -> float:
    """CPU seconds that the host has spent on anything but these instances, with an offset of its own."""
    return hostview.busy_cpu_s() - sum(instance.usage().cpu_ns or 0 for instance in pair) / 1e9
