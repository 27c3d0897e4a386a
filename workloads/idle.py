"""Idle cost: what one ready instance takes from the host while nothing runs in it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from runtime.instance import Instance
from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import GRACE_S
from workloads.metric import Better, Metric, Sample

CPU = Metric("idle.cpu", "CPU s/s", Better.LOWER, "host CPU time per second of one idle instance", True)
PSS = Metric("idle.memory_pss", "B", Better.LOWER, "proportional set size of the instance's processes")
CGROUP = Metric("idle.memory_cgroup", "B", Better.LOWER, "memory charged to the instance's cgroup")
# A service can answer while the rest of a machine's boot goes on; systemd says when that is over.
BOOTED = "[ ! -d /run/systemd/system ] || systemctl is-system-running --wait"
QUIET_SHARE = 0.05  # of a CPU: below it an instance has stopped doing things and only ticks
QUIET_WINDOW_S = 0.25
QUIET_TIMEOUT_S = 10.0


class Idle(Workload):
    """The instance's CPU account before and after `seconds` (default 2) of leaving it alone, and its memory then.

    On the block's fresh instance, before other workloads have filled its page cache and touched its memory, but
    once its boot is over and a quarter second went by with less than 5 % of a CPU (waited for 10 s at most: an
    instance that is never so quiet is measured as it is; the wait is in the label `settled_s`). Nothing is
    executed inside meanwhile, so that asking does not wake it. Memory by two methods: PSS splits shared pages
    among their users; the cgroup charges page cache and kernel memory too.
    """

    name = "idle"
    stage = Stage.LAUNCH
    metrics = (CPU, PSS, CGROUP)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one sample a metric, less those the backend has no account of. Raises Invalid without CPU time."""
        instance = context.shared
        settled_s = settle(instance)
        before, began_ns = instance.usage(), time.monotonic_ns()
        time.sleep(context.param("seconds", 2))
        after, ended_ns = instance.usage(), time.monotonic_ns()
        if before.cpu_ns is None or after.cpu_ns is None or after.cpu_ns < before.cpu_ns:
            raise Invalid("idle", f"no CPU account that only grows: {before.cpu_ns}, then {after.cpu_ns}")
        if not instance.alive():
            raise Invalid("idle", f"instance {instance.id} died meanwhile")
        labels = {"method": after.method, "settled_s": f"{settled_s:.2f}"}
        yield Sample(CPU.name, (after.cpu_ns - before.cpu_ns) / (ended_ns - began_ns), labels=labels)
        if after.pss_bytes is not None:
            yield Sample(PSS.name, after.pss_bytes, labels=labels)
        if after.memory_bytes is not None and after.method.startswith("cgroup"):
            yield Sample(CGROUP.name, after.memory_bytes, labels=labels)


def settle(instance: Instance) -> float:
    """Wait until the instance's boot is over and it is quiet; the seconds that took. Raises TareError if it dies."""
    began_ns = time.monotonic_ns()
    instance.exec(("/bin/sh", "-c", BOOTED), GRACE_S)
    booted_s = _elapsed_s(began_ns)
    while _elapsed_s(began_ns) < booted_s + QUIET_TIMEOUT_S and _cpu_share(instance) > QUIET_SHARE:
        pass
    return _elapsed_s(began_ns)


def _cpu_share(instance: Instance) -> float:
    """CPU seconds per second over the coming quarter second; 0 where there is no account."""
    before, began_ns = instance.usage().cpu_ns, time.monotonic_ns()
    time.sleep(QUIET_WINDOW_S)
    return ((instance.usage().cpu_ns or 0) - (before or 0)) / (time.monotonic_ns() - began_ns)


def _elapsed_s(began_ns: int) -> float:
    return (time.monotonic_ns() - began_ns) / 1e9
