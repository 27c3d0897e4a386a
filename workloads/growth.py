"""Disk growth: what one more instance adds to the host, and what 64 MiB written inside it take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from runtime.instance import Instance
from workloads.base import Context, Invalid, Stage, Workload
from workloads.footprint import TIMEOUT_S, settled
from workloads.metric import Better, Metric, Sample

MARGINAL = Metric("growth.marginal_allocated", "B", Better.LOWER, "blocks that one more instance adds")
WRITTEN = Metric("growth.written_64mib", "B", Better.LOWER, "blocks added by 64 MiB written and synced inside")
PATH = "/var/tmp/tare-written"  # noqa: S108 - inside the instance, on its own writable root
WRITTEN_BYTES = 64 << 20


class Growth(Workload):
    """A second instance is launched beside the visit's, and written to; the visit's is left as it was.

    Counted over the paths of both, the shared ones too, so that nothing an instance adds to what it shares
    is overlooked. The written bytes are random (no layer can store them smaller) and are flushed by the
    instance, then by the host, before blocks are counted.
    """

    name = "growth"
    stage = Stage.LAUNCH
    metrics = (MARGINAL, WRITTEN)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield bytes, one sample a metric. Raises TareError when a write fails inside, OSError for a missing path."""
        first = context.shared.disk_paths()
        context.shared.exec(("sync",), TIMEOUT_S).check()
        alone = settled((*first.shared, *first.exclusive))
        with context.launch() as second:
            second.exec(("sync",), TIMEOUT_S).check()
            paths = second.disk_paths()
            both = settled((*first.shared, *first.exclusive, *paths.shared, *paths.exclusive))
            yield Sample(MARGINAL.name, both.allocated - alone.allocated)
            yield Sample(WRITTEN.name, _write(second, (*paths.shared, *paths.exclusive)))


def _write(instance: Instance, paths: Iterable[Path]) -> int:
    """Bytes that writing 64 MiB inside adds to `paths`."""
    before = settled(paths)
    argv = ("dd", "if=/dev/urandom", f"of={PATH}", "bs=1M", f"count={WRITTEN_BYTES >> 20}", "conv=fsync")
    instance.exec(argv, TIMEOUT_S).check()
    instance.exec(("sync",), TIMEOUT_S).check()
    added = settled(paths).allocated - before.allocated
    if added < 0.9 * WRITTEN_BYTES:
        raise Invalid("growth", f"64 MiB written inside show as {added} B on the host: not flushed, or elsewhere")
    return added
