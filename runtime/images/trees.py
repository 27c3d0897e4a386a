"""Directory trees as wholes: removed with care, measured, and byte strings fingerprinted for caches of them."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

from runtime.errors import TareError


def remove_tree(path: Path) -> None:
    """Remove a file or a directory tree, if it exists.

    Raises TareError, having removed nothing, when something is mounted in it: following a bind mount
    downwards would remove the host's own files.
    """
    if not path.is_dir() or path.is_symlink():
        path.unlink(missing_ok=True)
        return
    refuse_mounts(path)
    import shutil  # loads the compressors

    for attempt in range(5):
        try:
            shutil.rmtree(path)
            return
        except FileNotFoundError:
            return
        except OSError as error:  # a build just killed may have made one more file
            if error.errno != errno.ENOTEMPTY or attempt == 4:
                raise


def refuse_mounts(path: Path) -> None:
    """Raise TareError when something is mounted at `path` or below it."""
    real = os.path.realpath(path)
    mounted = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    inside = next((point for point in mounted if point == real or point.startswith(f"{real}/")), None)
    if inside is not None:
        raise TareError(f"directory {path}", f"{inside} is mounted", f"umount {inside}, then: tare clean")


def tree_bytes(path: Path) -> tuple[int, int]:
    """Logical and allocated bytes of a file or of everything in a directory; a hard-linked file counts once."""
    logical = allocated = 0
    seen: set[tuple[int, int]] = set()
    for directory, _, files in os.walk(path) if path.is_dir() else [(str(path.parent), [], [path.name])]:
        for name in (".", *files) if path.is_dir() else files:
            try:
                info = os.lstat(os.path.join(directory, name))  # noqa: PTH118 - 15,000 files
            except FileNotFoundError:  # somebody is removing it
                continue
            if (info.st_dev, info.st_ino) not in seen:
                seen.add((info.st_dev, info.st_ino))
                logical += info.st_size
                allocated += info.st_blocks * 512
    return logical, allocated


def fingerprint(*parts: bytes) -> str:
    """A digest of several byte strings, their borders included: what a cached build was made from."""
    return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()
