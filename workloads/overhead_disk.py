"""Disk overhead: random and sequential direct writes to an instance's own root, to be held against `native`."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.instance import Instance
from workloads.base import Context, Stage, Workload
from workloads.honesty import GRACE_S, demand_one_clock, run_timed, start_cost_s
from workloads.metric import Better, Metric, Sample
from workloads.tools import fio

RANDOM = Metric(
    "overhead.disk_randwrite_iops", "operations/s", Better.HIGHER, "4 KiB random direct writes, depth 1", True
)
SEQUENTIAL = Metric(
    "overhead.disk_seqwrite_bandwidth", "B/s", Better.HIGHER, "1 MiB sequential direct writes, depth 1", True
)
PATH = "/var/tmp/tare-fio"  # noqa: S108 - inside the instance, on its own writable root


class OverheadDisk(Workload):
    """fio, one job, one request at a time, O_DIRECT, each pattern `seconds` long (default 1.5): work ÷ time.

    The file (`size_mib`, default 64) is written in full and flushed before, outside the timed windows, so that
    neither allocation nor copy-up is inside. O_DIRECT goes round the page cache of the instance's kernel;
    what lies below (a VM's disk cache mode, the device's own cache) is as the host has it, see the parity table.
    """

    name = "overhead_disk"
    stage = Stage.SESSION
    metrics = (RANDOM, SEQUENTIAL)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one rate per metric; the file is gone afterwards. Raises TareError, or Invalid by the clock."""
        seconds, size_mib = context.param("seconds", 1.5), int(context.param("size_mib", 64))
        instance = context.shared
        start_s = start_cost_s(instance, fio.PROBE)
        instance.exec(fio.layout_argv(PATH, size_mib), GRACE_S).check()
        try:
            written = _write(instance, size_mib, seconds, start_s, pattern="write", block="1M")
            yield Sample(SEQUENTIAL.name, written.bytes / written.elapsed_s)
            written = _write(instance, size_mib, seconds, start_s, pattern="randwrite", block="4k")
            yield Sample(RANDOM.name, written.operations / written.elapsed_s)
        finally:
            if instance.alive():
                instance.exec(("rm", "-f", PATH), GRACE_S)


def _write(
    instance: Instance, size_mib: int, seconds: float, start_s: float, *, pattern: str, block: str
) -> fio.Written:
    result = run_timed(instance, fio.write_argv(PATH, size_mib, seconds, pattern=pattern, block=block), seconds)
    written = fio.parse(result.stdout)
    demand_one_clock(result, written.elapsed_s, start_s)
    return written
