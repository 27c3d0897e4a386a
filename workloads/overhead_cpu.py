"""CPU overhead: integer and floating-point work per second of one thread, to be held against `native`."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.base import Context, Stage, Workload
from workloads.honesty import demand_one_clock, run_timed, start_cost_s
from workloads.metric import Better, Metric, Sample
from workloads.tools import gauge, sysbench

EVENTS = Metric("overhead.cpu_events", "events/s", Better.HIGHER, "prime searches per second, one thread", True)
FLOATS = Metric(
    "overhead.cpu_float", "operations/s", Better.HIGHER, "additions and multiplications of doubles, one thread", True
)


class OverheadCpu(Workload):
    """Integers: sysbench cpu, one thread, `seconds` long (default 1); doubles: products of 32 × 32 matrices.

    Both stay in registers and the nearest cache (`small_s`, default `seconds`, for the second): they see the CPU,
    its clock and the scheduler's interruptions, not memory. A rate is total work ÷ total time.
    """

    name = "overhead_cpu"
    stage = Stage.SESSION
    metrics = (EVENTS, FLOATS)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one rate each. Raises TareError when a tool fails, Invalid when its clock is not the host's."""
        seconds = context.param("seconds", 1)
        start_s = start_cost_s(context.shared, sysbench.PROBE)
        result = run_timed(context.shared, sysbench.cpu_argv(seconds), seconds)
        work = sysbench.parse(result.stdout)
        demand_one_clock(result, work.elapsed_s, start_s)
        yield Sample(EVENTS.name, work.events / work.elapsed_s)
        yield Sample(FLOATS.name, gauge.measure(context.shared, "float", context.param("small_s", seconds)).rate)
