"""An image of several layers as one plain directory tree, made of hard links: no copy, and no overlay to pass through.

For the native baseline only. Read-only by use: what is written to a linked file would change the layer.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

_OPAQUE = "trusted.overlay.opaque"


def flat(layers: Sequence[Path], cache: Path) -> Path:
    """The tree of `layers` (topmost last), from `cache` or made there; a single layer is its own tree.

    `cache` must lie on the layers' file system. Made under another name and renamed when whole.
    """
    if len(layers) == 1:
        return layers[0]
    final = cache / hashlib.sha256("\n".join(str(layer) for layer in layers).encode()).hexdigest()[:32]
    if not final.is_dir():
        cache.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = cache / f"partial-{secrets.token_hex(6)}"
        try:
            for layer in layers:
                _lay(layer, partial)
            with suppress(OSError):  # somebody else was faster: theirs is as good
                partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return final


def _lay(source: Path, target: Path) -> None:
    """Put the directory `source` over `target`, entry by entry, as overlayfs would show them."""
    if target.is_symlink() or (target.exists() and (not target.is_dir() or _opaque(source))):
        _remove(target)
    target.mkdir(exist_ok=True)
    info = source.stat()
    os.chown(target, info.st_uid, info.st_gid)
    target.chmod(stat.S_IMODE(info.st_mode))
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                _lay(Path(entry.path), target / entry.name)
                continue
            _remove(target / entry.name)
            if not _whiteout(entry.stat(follow_symlinks=False)):
                os.link(entry.path, target / entry.name, follow_symlinks=False)
    os.utime(target, ns=(info.st_atime_ns, info.st_mtime_ns))


def _opaque(directory: Path) -> bool:
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
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
