"""What control groups do beyond limiting: give shares by weight, account for CPU time, freeze and thaw.

Limits are `enforcement`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from runtime.driver import Kind
from runtime.instance import ExecResult, Instance
from runtime.spec import InstanceSpec
from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import GRACE_S
from workloads.metric import Better, Metric, Sample
from workloads.tools import sysbench

SHARE_ERROR = Metric(
    "controls.share_error", "ratio", Better.LOWER, "share of a contended CPU less the weights'; signed"
)
ACCOUNTED = Metric("controls.accounted", "ratio", Better.LOWER, "CPU time charged ÷ CPU time the work itself counted")
FREEZE = Metric("controls.freeze", "s", Better.LOWER, "from asking a busy instance to freeze until it is frozen")
THAW = Metric("controls.thaw", "s", Better.LOWER, "from asking it to thaw until it is thawed")
FROZEN_CPU = Metric("controls.frozen_cpu", "CPU s/s", Better.LOWER, "CPU time per second that it uses while frozen")
THAWED_CPU = Metric("controls.thawed_cpu", "CPU s/s", Better.HIGHER, "CPU time per second once it is thawed again")
WEIGHTS = (100, 300)
STARTED_NS = 50_000_000  # CPU time after which a burn is taken to have begun
# Runs a command and adds what it and its children used, as the kernel that runs them counts it.
COUNT = r'system(@ARGV) == 0 or exit 1; my (undef, undef, $user, $system) = times; printf "own %.2f\n", $user + $system'


class Controls(Workload):
    """Two instances on one CPU, weights 100 and 300, both burning for `seconds` (default 1): the account tells shares.

    Then the second alone: its account is read around a burn that counts its own CPU time; and it is frozen in
    the middle of another burn, watched for `frozen_s` (default 0.2), thawed, and watched again. Expected: the
    heavier has three quarters, the account and the work's own count agree, a frozen instance uses nothing. A virtual
    machine's account holds its emulator too.
    """

    name = "controls"
    stage = Stage.OWN
    metrics = (SHARE_ERROR, ACCOUNTED, FREEZE, THAW, FROZEN_CPU, THAWED_CPU)
    kinds = frozenset({Kind.CONTAINER, Kind.VM})

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one sample a metric. Raises Invalid where a backend has no account or a burn never began."""
        seconds, frozen_s = context.param("seconds", 1), context.param("frozen_s", 0.2)
        light, heavy = (_weighted(context.prepared.spec, weight) for weight in WEIGHTS)
        with context.launch(light) as first, context.launch(heavy) as second:
            context.say("shares")
            share = _share(second, first, seconds)
            labels = {"weights": ":".join(str(weight) for weight in WEIGHTS)}
            yield Sample(SHARE_ERROR.name, share - WEIGHTS[1] / sum(WEIGHTS), labels=labels)
            context.say("account")
            yield Sample(ACCOUNTED.name, _accounted(second, seconds))
            context.say("freeze")
            yield from _frozen(second, frozen_s)


def _weighted(spec: InstanceSpec, weight: int) -> InstanceSpec:
    return replace(spec, limits=replace(spec.limits, cpus=None, cpu_weight=weight, cpuset="0"))


def cpu_ns(instance: Instance) -> int:
    """The instance's CPU time. Raises Invalid where there is no account of it."""
    used = instance.usage().cpu_ns
    if used is None:
        raise Invalid("controls", "the backend has no account of CPU time")
    return used


@contextmanager
def _burning(instance: Instance, seconds: float) -> Iterator[Callable[[], None]]:
    """Burn for `seconds`; yields a function that returns once it has begun. The burn is over at the end."""
    before = cpu_ns(instance)
    with ThreadPoolExecutor(1, "burn") as pool:
        burn: Future[ExecResult] = pool.submit(instance.exec, sysbench.cpu_argv(seconds), seconds + GRACE_S)

        def begun() -> None:
            while cpu_ns(instance) - before < STARTED_NS and not burn.done():
                time.sleep(0.005)

        yield begun
        burn.result().check()


def _share(one: Instance, other: Instance, seconds: float) -> float:
    """The share of `one` in the CPU time of both over `seconds`."""
    long_s = seconds + 2
    with _burning(one, long_s) as one_begun, _burning(other, long_s) as other_begun:
        one_begun()
        other_begun()
        before = cpu_ns(one), cpu_ns(other)
        time.sleep(seconds)
        used = cpu_ns(one) - before[0], cpu_ns(other) - before[1]
    if sum(used) == 0:
        raise Invalid("controls", "neither instance used the CPU")
    return used[0] / sum(used)


def _accounted(instance: Instance, seconds: float) -> float:
    before = cpu_ns(instance)
    argv = ("perl", "-e", COUNT, *sysbench.cpu_argv(seconds))
    said = instance.exec(argv, seconds + GRACE_S).check().stdout.split()
    charged_s = (cpu_ns(instance) - before) / 1e9
    own_s = float(said[-1]) if said[-2:-1] == [b"own"] else 0.0
    if own_s == 0:
        raise Invalid("controls", "the work did not count its own CPU time")
    return charged_s / own_s


def _frozen(instance: Instance, frozen_s: float) -> Iterator[Sample]:
    with _burning(instance, 2 * frozen_s + 1) as begun:
        begun()
        stamps = [time.monotonic_ns()]
        instance.pause()
        try:
            stamps.append(time.monotonic_ns())
            still = _cpu_share(instance, frozen_s)
            stamps.append(time.monotonic_ns())
        finally:
            instance.resume()
        stamps.append(time.monotonic_ns())
        again = _cpu_share(instance, frozen_s)
    yield Sample(FREEZE.name, (stamps[1] - stamps[0]) / 1e9)
    yield Sample(THAW.name, (stamps[3] - stamps[2]) / 1e9)
    yield Sample(FROZEN_CPU.name, still)
    yield Sample(THAWED_CPU.name, again)


def _cpu_share(instance: Instance, seconds: float) -> float:
    before, began_ns = cpu_ns(instance), time.monotonic_ns()
    time.sleep(seconds)
    return (cpu_ns(instance) - before) / (time.monotonic_ns() - began_ns)
