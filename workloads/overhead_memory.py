"""Memory overhead: bandwidth and latency as one thread sees them, to be held against `native`."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import demand_one_clock, run_timed, start_cost_s
from workloads.metric import Better, Metric, Sample
from workloads.tools import gauge, sysbench

BANDWIDTH = Metric("overhead.memory_bandwidth", "MiB/s", Better.HIGHER, "sequential stores, one thread", True)
TRIAD = Metric("overhead.memory_triad", "B/s", Better.HIGHER, "a[i] = b[i] + s × c[i] over doubles, one thread", True)
LATENCY = Metric("overhead.memory_latency", "s", Better.LOWER, "one load that depends on the one before it", True)
BLOCK_MIB = 64


class OverheadMemory(Workload):
    """Stores: sysbench memory, sequential writes, one thread, `seconds` long (default 1): MiB ÷ total time.

    Then, `small_s` each (default `seconds`), McCalpin's STREAM triad over three arrays (two loads and a store
    counted for each element), and a chase of pointers that visits every cache line once a lap in random order.

    The block, or what the arrays take together, is 64 MiB, or an eighth of the memory limit where that is less
    (a VM's guest sees half of it): large enough that one call's cost is nothing beside it (at sysbench's default
    of 1 KiB the calls are what is measured) and that it passes the caches of most hosts by. The same for every
    driver, as it depends on the spec alone. A run of one block comes first and shows what a start costs, the
    block's page faults included.
    """

    name = "overhead_memory"
    stage = Stage.SESSION
    metrics = (BANDWIDTH, TRIAD, LATENCY)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one figure each, labelled with the block. Raises TareError, or Invalid by the clock."""
        seconds = context.param("seconds", 1)
        limit = context.prepared.spec.limits.memory_bytes
        block_mib = BLOCK_MIB if limit is None else max(1, min(BLOCK_MIB, limit >> 23))
        start_s = start_cost_s(context.shared, sysbench.memory_argv(1, block_mib, total_mib=block_mib))
        result = run_timed(context.shared, sysbench.memory_argv(seconds, block_mib), seconds)
        work = sysbench.parse(result.stdout)
        if work.mib == 0:
            raise Invalid("sysbench memory", "it moved nothing")
        demand_one_clock(result, work.elapsed_s, start_s)
        labels = {"block_mib": str(block_mib)}
        yield Sample(BANDWIDTH.name, work.mib / work.elapsed_s, labels=labels)
        small_s = context.param("small_s", seconds)
        yield Sample(TRIAD.name, gauge.measure(context.shared, "triad", small_s, block_mib).rate, labels=labels)
        yield Sample(LATENCY.name, 1 / gauge.measure(context.shared, "chase", small_s, block_mib).rate, labels=labels)
