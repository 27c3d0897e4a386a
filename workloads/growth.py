"""Disk growth: what one more instance adds to the host, what 64 MiB written inside it take, and what one byte does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from runtime.driver import Kind
from runtime.instance import Instance
from workloads.base import Context, Invalid, Stage, Workload
from workloads.footprint import TIMEOUT_S, settled
from workloads.metric import Better, Metric, Sample

MARGINAL = Metric("growth.marginal_allocated", "B", Better.LOWER, "blocks that one more instance adds")
WRITTEN = Metric("growth.written_64mib", "B", Better.LOWER, "blocks added by 64 MiB written and synced inside")
COPIED_UP = Metric("growth.copy_up", "B", Better.LOWER, "blocks added by one byte changed in a large file of the image")
PATH = "/var/tmp/tare-written"  # noqa: S108 - inside the instance, on its own writable root
WRITTEN_BYTES = 64 << 20
_LARGEST = 'find /usr/lib -maxdepth 2 -type f -printf "%s %p\\n" | sort -n | tail -n 1'
_CHANGE = 'printf x | dd of="$0" bs=1 seek="$1" conv=notrunc,fsync status=none'


class Growth(Workload):
    """A second instance is launched beside the visit's, and written to; the visit's is left as it was.

    Counted over the paths of both, the shared ones too, so that nothing an instance adds to what it shares
    is overlooked. The written bytes are random (no layer can store them smaller) and are flushed by the
    instance, then by the host, before blocks are counted. Last, one byte in the middle of the image's largest
    library is changed: a union of layers copies the whole file up, a disk overlay a cluster. Not on native, which has
    the image itself and may not write to it.
    """

    name = "growth"
    stage = Stage.LAUNCH
    metrics = (MARGINAL, WRITTEN, COPIED_UP)

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
            everything = (*paths.shared, *paths.exclusive)
            yield Sample(WRITTEN.name, _write(second, everything))
            if context.driver.kind is not Kind.NATIVE:
                yield _copy_up(second, everything)


def _write(instance: Instance, paths: Iterable[Path]) -> int:
    """Bytes that writing 64 MiB inside adds to `paths`."""
    argv = ("dd", "if=/dev/urandom", f"of={PATH}", "bs=1M", f"count={WRITTEN_BYTES >> 20}", "conv=fsync")
    added = _added(instance, paths, argv)
    if added < 0.9 * WRITTEN_BYTES:
        raise Invalid("growth", f"64 MiB written inside show as {added} B on the host: not flushed, or elsewhere")
    return added


def _copy_up(instance: Instance, paths: Iterable[Path]) -> Sample:
    found = instance.exec(("/bin/sh", "-c", _LARGEST), TIMEOUT_S).check().stdout.decode()
    size, _, path = found.strip().partition(" ")
    if not size.isdigit() or not path:
        raise Invalid("growth", f"no large file in the image: {found.strip()[:200] or 'nothing found'}")
    added = _added(instance, paths, ("/bin/sh", "-ec", _CHANGE, path, str(int(size) // 2)))
    if added <= 0:
        raise Invalid("growth", f"a byte changed in {path} shows nowhere on the host: not flushed, or elsewhere")
    return Sample(COPIED_UP.name, added, labels={"file": path, "file_bytes": size})


def _added(instance: Instance, paths: Iterable[Path], argv: tuple[str, ...]) -> int:
    """Bytes that a command inside adds to `paths`, all flushed."""
    before = settled(paths)
    instance.exec(argv, TIMEOUT_S).check()
    instance.exec(("sync",), TIMEOUT_S).check()
    return settled(paths).allocated - before.allocated
