"""Enforcement: whether the limits are really there, and whether they bite, before any figure relies on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

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
PIDS_BITE = Metric("enforcement.pids_bite", "bool", Better.HIGHER, "1: no more processes than the limit were to be had")
IO_OVERRUN = Metric("enforcement.io_overrun", "ratio", Better.LOWER, "bytes per second of direct writes ÷ their limit")
PERIOD_S = 0.1  # of CFS bandwidth control, the kernel's default and ours
BEYOND = 64 << 20
PIDS_BEYOND = 16
IO_LIMIT_BPS = 16 << 20
IO_PATH = "/var/tmp/tare-io"  # noqa: S108 - inside the instance, on its own writable root

# The shell raises its own score before it becomes the victim: the kernel then kills it and not the agent.
ALLOCATE = "echo 1000 > /proc/self/oom_score_adj && exec dd if=/dev/zero of=/dev/null count=1 bs="
# Forks processes that sleep until one is refused; how many there were at once.
FORKS = r"""
my @children;
for (1 .. $ARGV[0]) {
  my $child = fork;
  last unless defined $child;
  if (!$child) { sleep 60; exit }
  push @children, $child;
}
print scalar(@children), "\n";
kill "KILL", @children;
waitpid $_, 0 for @children;
"""


class Enforcement(Workload):
    """Every limit read back, then CPU and memory made to bite; a limit that does not is a 0, never a failure.

    CPU: a thread on every CPU that the instance sees burns for `seconds` (default 1), the account is read around
    it. The kernel promises quota + 1 ms per CPU and period, plus one period's quota at the window's edge. Where
    the burn could not have passed that bound (one vCPU against 0.9), `tried` says no. Memory: dd
    asks for one buffer of limit + 64 MiB and must be refused or killed, after a quarter of the limit was granted,
    and the instance must answer afterwards. Pids: more processes are forked than the limit; of containers only, as a
    machine's limit is on its emulator's threads. I/O has a workload of its own, being limited in no other.
    """

    name = "enforcement"
    stage = Stage.SESSION
    metrics = (HOLDS, OVERRUN, CPU_BITES, MEMORY_BITES, PIDS_BITE)
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
        if limits.pids is not None and context.driver.kind is Kind.CONTAINER:
            yield _overfork(instance, limits.pids)


class IoEnforcement(Workload):
    """A fresh instance limited to 16 MiB/s of writes writes for about `seconds` (default 1), past the page cache.

    v1 charges buffered writes to nobody, so direct ones are what a limit can bind everywhere. A disk slower than the
    limit would pass too: `tried` says whether the same writes are faster in the visit's unlimited instance.
    """

    name = "enforcement_io"
    stage = Stage.SESSION
    metrics = (IO_OVERRUN,)
    kinds = frozenset({Kind.CONTAINER, Kind.VM})

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield the overrun. Raises TareError where I/O cannot be limited or direct writes are not possible."""
        spec = context.prepared.spec
        mib = max(1, round(context.param("seconds", 1) * (IO_LIMIT_BPS >> 20)))
        free_bps = _write_bps(context.shared, mib)
        limits = replace(spec.limits, io_write_bps=IO_LIMIT_BPS)
        with context.launch(replace(spec, limits=limits)) as instance:
            overrun = _write_bps(instance, mib) / IO_LIMIT_BPS
        tried = "yes" if free_bps > 1.5 * IO_LIMIT_BPS else "no"
        yield Sample(IO_OVERRUN.name, overrun, labels={"limit": str(IO_LIMIT_BPS), "tried": tried})


def _write_bps(instance: Instance, mib: int) -> float:
    argv = ("dd", "if=/dev/zero", f"of={IO_PATH}", "bs=1M", f"count={mib}", "oflag=direct", "conv=fsync")
    result = instance.exec(argv, GRACE_S).check()
    instance.exec(("rm", "-f", IO_PATH), GRACE_S).check()
    return (mib << 20) / (result.elapsed_ns / 1e9)


def _overfork(instance: Instance, limit: int) -> Sample:
    wanted = limit + PIDS_BEYOND
    granted = int(instance.exec(("perl", "-e", FORKS, str(wanted)), GRACE_S).check().stdout)
    return Sample(PIDS_BITE.name, float(granted < limit), labels={"limit": str(limit), "granted": str(granted)})


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
