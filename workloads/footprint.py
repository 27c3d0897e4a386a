"""Disk footprint: what an image, an instance, one more instance and 64 MiB of writes occupy on the host."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from runtime.instance import Instance
from workloads.base import Context, Invalid, Stage, Workload
from workloads.metric import Better, Metric, Sample

IMAGE_ALLOCATED = Metric("footprint.image_allocated", "B", Better.LOWER, "blocks shared by all instances of the image")
IMAGE_LOGICAL = Metric("footprint.image_logical", "B", Better.LOWER, "apparent size of the same files")
INSTANCE = Metric("footprint.instance_allocated", "B", Better.LOWER, "blocks of instance 1 alone")
MARGINAL = Metric("footprint.marginal_allocated", "B", Better.LOWER, "blocks that one more instance adds")
WRITTEN = Metric("footprint.written_64mib", "B", Better.LOWER, "blocks added by 64 MiB written and synced inside")
PATH = "/var/tmp/tare-written"  # noqa: S108 - inside the instance, on its own writable root
WRITTEN_BYTES = 64 << 20
TIMEOUT_S = 120.0


class Footprint(Workload):
    """st_blocks × 512 over the instance's paths on the host, each inode once.

    Runs before any other workload has written, on the block's fresh instance and on a second one launched
    beside it, which is also the one written to: the shared instance is left as it was. The written bytes are
    random (no layer can store them smaller) and are flushed by the instance, then by the host, before blocks
    are counted.
    """

    name = "footprint"
    stage = Stage.LAUNCH
    metrics = (IMAGE_ALLOCATED, IMAGE_LOGICAL, INSTANCE, MARGINAL, WRITTEN)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield bytes, one sample a metric. Raises TareError when a write fails inside, OSError for a missing path."""
        first = context.shared
        paths = first.disk_paths()
        if paths.shared:
            image = Blocks().add(paths.shared)
            yield Sample(IMAGE_ALLOCATED.name, image.allocated)
            yield Sample(IMAGE_LOGICAL.name, image.logical)
        first.exec(("sync",), TIMEOUT_S).check()
        alone = _settled((*paths.shared, *paths.exclusive))
        yield Sample(INSTANCE.name, Blocks().add(paths.exclusive).allocated)
        with context.launch() as second:
            second.exec(("sync",), TIMEOUT_S).check()
            others = second.disk_paths()
            both = _settled((*paths.shared, *paths.exclusive, *others.shared, *others.exclusive))
            yield Sample(MARGINAL.name, both.allocated - alone.allocated)
            yield Sample(WRITTEN.name, _write(second, others.exclusive))


def _write(instance: Instance, paths: Iterable[Path]) -> int:
    """Bytes that writing 64 MiB inside adds to `paths`."""
    before = _settled(paths)
    argv = ("dd", "if=/dev/urandom", f"of={PATH}", "bs=1M", f"count={WRITTEN_BYTES >> 20}", "conv=fsync")
    instance.exec(argv, TIMEOUT_S).check()
    instance.exec(("sync",), TIMEOUT_S).check()
    added = _settled(paths).allocated - before.allocated
    if added < 0.9 * WRITTEN_BYTES:
        raise Invalid("footprint", f"64 MiB written inside show as {added} B on the host: not flushed, or elsewhere")
    return added


@dataclass(slots=True)
class Blocks:
    """Sizes added up over files and directories, symbolic links themselves included, each inode counted once.

    `allocated` is st_blocks × 512, `logical` st_size of what is not a directory; both in bytes.
    """

    allocated: int = 0
    logical: int = 0
    _seen: set[tuple[int, int]] = field(default_factory=set)

    def add(self, paths: Iterable[Path]) -> Blocks:
        """Count everything at and below `paths`. Raises OSError for a missing path; what vanishes below is skipped."""
        for path in paths:
            self._count(path.lstat())
            if path.is_dir() and not path.is_symlink():
                self._descend(path)
        return self

    def _descend(self, directory: Path) -> None:
        pending = [os.fspath(directory)]
        while pending:
            try:
                with os.scandir(pending.pop()) as entries:
                    fresh = [entry for entry in entries if self._count(entry.stat(follow_symlinks=False))]
                pending.extend(entry.path for entry in fresh if entry.is_dir(follow_symlinks=False))
            except FileNotFoundError:
                continue

    def _count(self, status: os.stat_result) -> bool:
        inode = (status.st_dev, status.st_ino)
        if inode in self._seen:
            return False
        self._seen.add(inode)
        self.allocated += status.st_blocks * 512
        self.logical += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        return True


def _settled(paths: Iterable[Path]) -> Blocks:
    """Count after the host has flushed: delayed allocation decides about blocks only then."""
    os.sync()
    return Blocks().add(paths)
