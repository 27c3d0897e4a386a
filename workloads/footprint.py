"""Disk footprint: what an image occupies on the host, and what one instance of it adds."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workloads.base import Context, Stage, Workload
from workloads.metric import Better, Metric, Sample

IMAGE_ALLOCATED = Metric("footprint.image_allocated", "B", Better.LOWER, "blocks shared by all instances of the image")
IMAGE_LOGICAL = Metric("footprint.image_logical", "B", Better.LOWER, "apparent size of the same files")
INSTANCE = Metric("footprint.instance_allocated", "B", Better.LOWER, "blocks of one fresh instance alone")
TIMEOUT_S = 120.0


class Footprint(Workload):
    """st_blocks × 512 over the instance's paths on the host, each inode once.

    Runs on the block's fresh instance before any other workload has written, after the instance and then
    the host have flushed.
    """

    name = "footprint"
    stage = Stage.LAUNCH
    metrics = (IMAGE_ALLOCATED, IMAGE_LOGICAL, INSTANCE)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield bytes, one sample a metric. Raises TareError when flushing inside fails, OSError for a missing path."""
        paths = context.shared.disk_paths()
        context.shared.exec(("sync",), TIMEOUT_S).check()
        if paths.shared:
            image = settled(paths.shared)
            yield Sample(IMAGE_ALLOCATED.name, image.allocated)
            yield Sample(IMAGE_LOGICAL.name, image.logical)
        yield Sample(INSTANCE.name, settled(paths.exclusive).allocated)


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


def settled(paths: Iterable[Path]) -> Blocks:
    """Count after the host has flushed: delayed allocation decides about blocks only then."""
    os.sync()
    return Blocks().add(paths)
