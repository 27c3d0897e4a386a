"""Disk overhead: sequential and random, reads and writes, direct and flushed, to be held against `native`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from workloads.base import Context, Stage, Workload
from workloads.honesty import GRACE_S, demand_one_clock, run_timed, start_cost_s
from workloads.metric import Better, Metric, Sample
from workloads.tools import fio

_UP = Better.HIGHER
WRITE = Metric("overhead.disk_seqwrite_bandwidth", "B/s", _UP, "1 MiB sequential direct writes, depth 1", True)
RANDOM_WRITE = Metric("overhead.disk_randwrite_iops", "operations/s", _UP, "4 KiB random direct writes, depth 1", True)
READ = Metric("overhead.disk_seqread_bandwidth", "B/s", _UP, "1 MiB sequential direct reads, depth 1", True)
RANDOM_READ = Metric("overhead.disk_randread_iops", "operations/s", _UP, "4 KiB random direct reads, depth 1", True)
FLUSHED = Metric("overhead.disk_fsync_iops", "operations/s", _UP, "4 KiB sequential writes, each with an fsync", True)
PATH = "/var/tmp/tare-fio"  # noqa: S108 - inside the instance, on its own writable root


@dataclass(frozen=True, slots=True)
class Pattern:
    """One timed job; `bandwidth` tells whether its bytes or its operations are counted."""

    metric: Metric
    direction: fio.Direction
    rw: str
    block: str
    flush: bool = False
    bandwidth: bool = False


PATTERNS = (
    Pattern(WRITE, "write", "write", "1M", bandwidth=True),
    Pattern(RANDOM_WRITE, "write", "randwrite", "4k"),
    Pattern(FLUSHED, "write", "write", "4k", flush=True),
    Pattern(READ, "read", "read", "1M", bandwidth=True),
    Pattern(RANDOM_READ, "read", "randread", "4k"),
)


class OverheadDisk(Workload):
    """fio, one job, one request at a time, O_DIRECT or fsync, each pattern `seconds` long (default 1): work ÷ time.

    The file (`size_mib`, default 64) is written in full and flushed before, outside the timed windows, so that
    neither allocation nor copy-up is inside. O_DIRECT goes round the page cache of the instance's kernel;
    what lies below (a VM's disk cache mode, the device's own cache) is as the host has it, see the parity table.
    """

    name = "overhead_disk"
    stage = Stage.SESSION
    metrics = tuple(pattern.metric for pattern in PATTERNS)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one rate per metric; the file is gone afterwards. Raises TareError, or Invalid by the clock."""
        seconds, size_mib = context.param("seconds", 1), int(context.param("size_mib", 64))
        instance = context.shared
        start_s = start_cost_s(instance, fio.PROBE)
        instance.exec(fio.layout_argv(PATH, size_mib), GRACE_S).check()
        try:
            for each in PATTERNS:
                argv = fio.run_argv(PATH, size_mib, seconds, pattern=each.rw, block=each.block, flush=each.flush)
                result = run_timed(instance, argv, seconds)
                moved = fio.parse(result.stdout, each.direction)
                demand_one_clock(result, moved.elapsed_s, start_s)
                yield Sample(each.metric.name, (moved.bytes if each.bandwidth else moved.operations) / moved.elapsed_s)
        finally:
            if instance.alive():
                instance.exec(("rm", "-f", PATH), GRACE_S)
