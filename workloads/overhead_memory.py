"""Memory overhead: streaming store bandwidth of one thread, to be held against `native`."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import demand_one_clock, run_timed, start_cost_s
from workloads.metric import Better, Metric, Sample
from workloads.tools import sysbench

BANDWIDTH = Metric("overhead.memory_bandwidth", "MiB/s", Better.HIGHER, "sequential stores, one thread", True)
BLOCK_MIB = 64


class OverheadMemory(Workload):
    """sysbench memory, sequential writes, one thread, `seconds` long (default 1): MiB ÷ total time.

    The block is 64 MiB, or an eighth of the memory limit where that is less (a VM's guest sees half of it):
    large enough that one call's cost is nothing beside it (at sysbench's default of 1 KiB the calls are what
    is measured) and that it passes the caches of most hosts by. The same for every driver, as it depends on
    the spec alone. A run of one block comes first and shows what a start costs, the block's page faults included.
    """

    name = "overhead_memory"
    stage = Stage.SESSION
    metrics = (BANDWIDTH,)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one rate, labelled with its block. Raises TareError, or Invalid when the clock is not the host's."""
        seconds = context.param("seconds", 1)
        limit = context.prepared.spec.limits.memory_bytes
        block_mib = BLOCK_MIB if limit is None else max(1, min(BLOCK_MIB, limit >> 23))
        start_s = start_cost_s(context.shared, sysbench.memory_argv(1, block_mib, total_mib=block_mib))
        result = run_timed(context.shared, sysbench.memory_argv(seconds, block_mib), seconds)
        work = sysbench.parse(result.stdout)
        if work.mib == 0:
            raise Invalid("sysbench memory", "it moved nothing")
        demand_one_clock(result, work.elapsed_s, start_s)
        yield Sample(BANDWIDTH.name, work.mib / work.elapsed_s, labels={"block_mib": str(block_mib)})
