"""Enforcement: whether the limits are really there, and whether they bite, before any figure relies on them."""

from __future__ import annotations

import os
from collections.abc import Iterator

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import Instance
from workloads import hostview
from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import GRACE_S, run_timed
from workloads.metric import Better, Metric, Sample
from workloads.tools import sysbench

HOLDS = Metric("enforcement.limit_holds", "bool", Better.HIGHER, "1: the host holds the limit as asked, read back")
OVERRUN = Metric("enforcement.cpu_overrun", "ratio", Better.LOWER, "CPU time used ÷ (limit × elapsed) while burning")
CPU_BITES = Metric("enforcement.cpu_bites", "bool", Better.HIGHER, "1: the CPU limit stopped a burn that wanted more")
MEMORY_BITES = Metric("enforcement.memory_bites", "bool", Better.HIGHER, "1: memory beyond the limit was not to be had")
PERIOD_S = 0.1  # of CFS bandwidth control, the kernel's default and ours
BEYOND = 64 << 20

# The shell raises its own score before it becomes the victim: the kernel then kills it and not the agent.
ALLOCATE = "echo 1000 > /proc/self/oom_score_adj && exec dd if=/dev/zero of=/dev/null count=1 bs="


class Enforcement(Workload):
    """Every limit read back, then CPU and memory made to bite; a limit that does not is a 0, never a failure.

    CPU: a thread on every CPU that the instance sees burns for `seconds` (default 1), the account is read around
    it. The kernel promises quota + 1 ms per CPU and period, plus one period's quota at the window's edge. Where
    the burn could not have passed that bound (one vCPU against 0.9), `tried` says no. Memory: dd
    asks for one buffer of limit + 64 MiB and must be refused or killed, after a quarter of the limit was granted,
    and the instance must answer afterwards. Pids and I/O limits are read back only.
    """

    name = "enforcement"
    stage = Stage.SESSION
    metrics = (HOLDS, OVERRUN, CPU_BITES, MEMORY_BITES)
    kinds = frozenset({Kind.CONTAINER, Kind.VM})

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one sample a limit and one a bite. Raises TareError when the instance does not survive the proof."""
        instance, limits = context.shared, context.prepared.spec.limits
        for reading in instance.limit_readings():
            labels = {"limit": reading.name, "asked": reading.asked, "read": reading.read, "source": reading.source}
            yield Sample(HOLDS.name, float(reading.holds), labels=labels)
        if limits.cpus is not None and limits.cpus < (os.cpu_count() or 1):
            yield from _burn(instance, limits.cpus, context.param("seconds", 1))
        if limits.memory_bytes is not None:
            yield from _overallocate(instance, limits.memory_bytes)


def _burn(instance: Instance, limit: float, seconds: float) -> Iterator[Sample]:
    threads = int(instance.exec(("nproc",), GRACE_S).check().stdout)
    before = instance.usage().cpu_ns
    result = run_timed(instance, sysbench.cpu_argv(seconds, threads), seconds)
    after = instance.usage().cpu_ns
    sysbench.parse(result.stdout)
    if before is None or after is None:
        raise Invalid("enforcement", "the backend has no account of CPU time")
    elapsed_s = result.elapsed_ns / 1e9
    overrun = (after - before) / 1e9 / (limit * elapsed_s)
    bound = 1 + 0.001 * (os.cpu_count() or 1) / (PERIOD_S * limit) + PERIOD_S / elapsed_s
    labels = {"limit": f"{limit:g}", "bound": f"{bound:.3f}", "threads": str(threads)}
    yield Sample(OVERRUN.name, overrun, labels=labels)
    labels["tried"] = "yes" if threads / limit > bound and overrun >= 0.8 else "no"  # a busy host keeps it from trying
    yield Sample(CPU_BITES.name, float(overrun <= bound), labels=labels)


def _overallocate(instance: Instance, limit_bytes: int) -> Iterator[Sample]:
    memory = hostview.memory()
    if memory.available - limit_bytes - BEYOND < memory.reserve:
        raise Invalid("enforcement", "the host has too little memory left to try the limit safely", "free some")
    granted = _allocate(instance, limit_bytes // 4)
    if granted != 0:
        raise Invalid("enforcement", f"a quarter of the memory limit was refused already: exit {granted}")
    code = _allocate(instance, limit_bytes + BEYOND)
    if not instance.alive() or instance.exec(("true",), GRACE_S).exit_code != 0:
        raise TareError("enforcement", f"instance {instance.id} did not survive its own memory limit")
    outcome = {0: "granted", 137: "killed"}.get(code, f"refused, exit {code}")
    yield Sample(MEMORY_BITES.name, float(code != 0), labels={"limit": str(limit_bytes), "outcome": outcome})


def _allocate(instance: Instance, size_bytes: int) -> int:
    """The exit code of a process that fills one buffer of that size."""
    return instance.exec(("/bin/sh", "-c", f"{ALLOCATE}{size_bytes}"), GRACE_S).exit_code
