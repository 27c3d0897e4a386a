"""Disk footprint: what an image occupies on the host, and what one instance of it adds."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from workloads.base import Context, Stage, Workload
from workloads.metric import Better, Metric, Sample

IMAGE_ALLOCATED = Metric("footprint.image_allocated", "B", Better.LOWER, "blocks shared by all instances of the image")
IMAGE_LOGICAL = Metric("footprint.image_logical", "B", Better.LOWER, "apparent size of the same files")
INSTANCE = Metric("footprint.instance_allocated", "B", Better.LOWER, "blocks of one fresh instance alone")
INSTANCE_LOGICAL = Metric("footprint.instance_logical", "B", Better.LOWER, "apparent size of the same files")
TIMEOUT_S = 120.0
_FS_IOC_FIEMAP = 0xC020660B  # linux/fiemap.h, as what follows
_FIEMAP = struct.Struct("=QQIIII")
_EXTENT = struct.Struct("=QQQ16xI12x")
_SYNC, _LAST, _SHARED = 0x1, 0x1, 0x2000
_EXTENTS = 512


class Footprint(Workload):
    """st_blocks × 512 over the instance's paths on the host, each inode and each shared block once.

    Runs on the block's fresh instance before any other workload has written, after the instance and then
    the host have flushed.
    """

    name = "footprint"
    stage = Stage.LAUNCH
    metrics = (IMAGE_ALLOCATED, IMAGE_LOGICAL, INSTANCE, INSTANCE_LOGICAL)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield bytes, one sample a metric. Raises TareError when flushing inside fails, OSError for a missing path."""
        paths = context.shared.disk_paths()
        context.shared.exec(("sync",), TIMEOUT_S).check()
        blocks = settled(paths.shared)
        allocated, logical = blocks.allocated, blocks.logical
        if paths.shared:
            yield Sample(IMAGE_ALLOCATED.name, allocated)
            yield Sample(IMAGE_LOGICAL.name, logical)
        blocks.add(paths.exclusive)
        yield Sample(INSTANCE.name, blocks.allocated - allocated)
        yield Sample(INSTANCE_LOGICAL.name, blocks.logical - logical)


@dataclass(slots=True)
class Blocks:
    """Sizes added up over files and directories, symbolic links themselves included, each inode counted once.

    `allocated` is st_blocks × 512, `logical` st_size of what is not a directory; both in bytes. Of files that are
    given by name, as disks are, blocks that the file system shares among them (reflinks) count once.
    """

    logical: int = 0
    _own: int = 0
    _shared: list[tuple[int, int, int]] = field(default_factory=list)
    _seen: set[tuple[int, int]] = field(default_factory=set)

    @property
    def allocated(self) -> int:
        """Bytes that all of it occupies."""
        return self._own + _covered(self._shared)

    def add(self, paths: Iterable[Path]) -> Blocks:
        """Count everything at and below `paths`. Raises OSError for a missing path; what vanishes below is skipped."""
        for path in paths:
            status = path.lstat()
            if self._count(status) and stat.S_ISREG(status.st_mode):
                ranges = shared_ranges(path)
                self._shared += ((status.st_dev, *one) for one in ranges)
                self._own -= sum(end - start for start, end in ranges)
            if stat.S_ISDIR(status.st_mode):
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
        self._own += status.st_blocks * 512
        self.logical += 0 if stat.S_ISDIR(status.st_mode) else status.st_size
        return True


def _covered(ranges: Iterable[tuple[int, int, int]]) -> int:
    """Bytes in at least one of the ranges (device, start, end)."""
    total, last, reached = 0, -1, 0
    for device, start, end in sorted(ranges):
        reached = start if device != last else max(reached, start)
        total += max(0, end - reached)
        last, reached = device, max(reached, end)
    return total


def shared_ranges(path: Path) -> list[tuple[int, int]]:
    """Where on its device `path` has blocks that it shares with other files; none where that cannot be told."""
    found, at = [], 0
    with path.open("rb") as file:
        while True:
            request = bytearray(_FIEMAP.pack(at, (1 << 64) - 1 - at, _SYNC, 0, _EXTENTS, 0))
            request += bytes(_EXTENTS * _EXTENT.size)
            try:
                fcntl.ioctl(file, _FS_IOC_FIEMAP, request)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.ENOTTY):
                    raise
                return []
            count = _FIEMAP.unpack_from(request)[3]
            flags = 0
            for number in range(count):
                logical, physical, length, flags = _EXTENT.unpack_from(request, _FIEMAP.size + number * _EXTENT.size)
                if flags & _SHARED:
                    found.append((physical, physical + length))
                at = logical + length
            if not count or flags & _LAST:
                return found


def settled(paths: Iterable[Path]) -> Blocks:
    """Count after the host has flushed: delayed allocation decides about blocks only then."""
    os.sync()
    return Blocks().add(paths)
