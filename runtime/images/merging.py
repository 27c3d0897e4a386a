"""Layers as one plain directory tree, its files hard links: what an overlay of them would show, without mounts.

Read-only by use: what is written to a linked file changes the layer.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from runtime.images.descent import OPAQUE
from runtime.images.layers import xattrs


def merge(layers: Sequence[Path], tree: Path) -> None:
    """Make `tree` what an overlay of `layers` (lowest first) would show; all lie on one file system."""
    tree.mkdir()
    for layer in layers:
        _lay(layer, tree)


def take_attributes(directory: Path, other: Path) -> None:
    """Give `directory` the owner, mode, extended attributes and time of another."""
    info = other.lstat()
    os.chown(directory, info.st_uid, info.st_gid)
    directory.chmod(stat.S_IMODE(info.st_mode))
    for name, value in xattrs(other):
        os.setxattr(directory, name, value)
    os.utime(directory, ns=(info.st_mtime_ns, info.st_mtime_ns))


def _lay(upper: Path, lower: Path) -> None:
    """Put the directory `upper` over `lower`, entry by entry, in an order that is always the same."""
    if _opaque(upper):
        for entry in lower.iterdir():
            _remove(entry)
    for source in sorted(upper.iterdir()):
        target = lower / source.name
        info = source.lstat()
        if stat.S_ISDIR(info.st_mode):
            if target.is_symlink() or (target.exists() and not target.is_dir()):
                target.unlink()
            target.mkdir(exist_ok=True)
            _lay(source, target)
            continue
        _remove(target)
        if not _whiteout(info):
            os.link(source, target, follow_symlinks=False)
    take_attributes(lower, upper)


def _opaque(directory: Path) -> bool:
    try:
        return os.getxattr(directory, OPAQUE) == b"y"
    except OSError:
        return False


def _whiteout(info: os.stat_result) -> bool:
    """Whether it stands for a removed entry: a character device 0:0 (Documentation/filesystems/overlayfs.rst)."""
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
