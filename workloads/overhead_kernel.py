"""Kernel overhead: what crossing into the kernel costs inside an instance, to be held against `native`."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.base import Context, Stage, Workload
from workloads.metric import Better, Metric, Sample
from workloads.tools import gauge

_UP = Better.HIGHER
CALLS = Metric("overhead.kernel_syscalls", "calls/s", _UP, "getppid, which does nothing else, one thread", True)
SPAWNS = Metric("overhead.kernel_spawns", "processes/s", _UP, "fork, execute a static program that ends, wait", True)
SWITCHES = Metric("overhead.kernel_context_switches", "switches/s", _UP, "two processes on one CPU, by pipes", True)
FAULTS = Metric("overhead.kernel_page_faults", "pages/s", _UP, "4 KiB of fresh memory touched and given back", True)
WORDS = ((CALLS, "syscall"), (SPAWNS, "spawn"), (SWITCHES, "switch"), (FAULTS, "fault"))


class OverheadKernel(Workload):
    """One word of the gauge each, one thread, `small_s` long (default 0.5): work ÷ time.

    A seccomp filter, mitigations and a cgroup's memory accounting are in it by design: an instance pays them.
    """

    name = "overhead_kernel"
    stage = Stage.SESSION
    metrics = tuple(metric for metric, _ in WORDS)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one rate each. Raises TareError when the gauge fails, Invalid when its clock is not the host's."""
        for metric, word in WORDS:
            yield Sample(metric.name, gauge.measure(context.shared, word, context.param("small_s", 0.5)).rate)
