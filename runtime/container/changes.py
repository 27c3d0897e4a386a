"""What a container has changed: its writable overlay layer read against the image's layers.

As `docker diff` prints it. Reads directories only, so it needs no mount; what overlayfs writes into an upper directory
is described in the kernel's Documentation/filesystems/overlayfs.rst. Not for packing the layer (`images.pack`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

_OPAQUE = "trusted.overlay.opaque"
_CAPABILITY = "security.capability"


class Kind(StrEnum):
    """What happened to a path, by Docker's letters."""

    ADDED = "A"
    CHANGED = "C"
    DELETED = "D"


@dataclass(frozen=True, slots=True)
class Change:
    """One line of `diff`: `path` is absolute in the container."""

    kind: Kind
    path: str

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


def changes(upper: Path, layers: Sequence[Path]) -> Iterator[Change]:
    """Every change of the writable layer `upper` over `layers`, topmost last; a directory before what is in it.

    A directory in which anything changed is itself changed, as in Docker. One that was removed is one line. A file
    that was only opened for writing or touched back is no change.
    """
    return _directory("", str(upper), [str(layer) for layer in reversed(layers)])


def _directory(path: str, upper: str, below: Sequence[str]) -> Iterator[Change]:
    """Changes inside `path`: `upper` is its part of the writable layer, `below` those of the layers, topmost first."""
    hidden = _is_opaque(upper) and bool(below)
    entries = {entry.name: entry for entry in os.scandir(upper)}
    names = set(entries) | (_shown(below) if hidden else set())
    for name in sorted(names):
        entry = entries.get(name)
        if entry is None:
            yield Change(Kind.DELETED, f"{path}/{name}")
        else:
            yield from _entry(f"{path}/{name}", entry, below)


def _entry(path: str, entry: os.DirEntry[str], below: Sequence[str]) -> Iterator[Change]:
    info = entry.stat(follow_symlinks=False)
    found = _lookup(below, entry.name)
    if _is_whiteout(info):
        if found:
            yield Change(Kind.DELETED, path)
        return
    lower = os.lstat(found[0]) if found else None
    inner: Iterator[Change] = iter(())
    if stat.S_ISDIR(info.st_mode):
        inner = _directory(path, entry.path, _directories(found))
    first = next(inner, None)
    if lower is None:
        yield Change(Kind.ADDED, path)
    elif first is not None or not _same(entry.path, info, found[0], lower):
        yield Change(Kind.CHANGED, path)
    if first is not None:
        yield first
        yield from inner


def _lookup(below: Sequence[str], name: str) -> list[str]:
    """Where the layers have `name`, topmost first, down to the first that hides the others; [] if it is not there."""
    found = []
    for directory in below:
        path = f"{directory}/{name}"
        try:
            info = os.lstat(path)
        except FileNotFoundError:
            if _is_opaque(directory):
                break
            continue
        if _is_whiteout(info):
            break
        found.append(path)
        if not stat.S_ISDIR(info.st_mode) or _is_opaque(path):
            break
    return found


def _directories(found: Sequence[str]) -> list[str]:
    """The parts of a merged directory: those down to the first that is none."""
    parts = []
    for path in found:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            break
        parts.append(path)
    return parts


def _shown(below: Sequence[str]) -> set[str]:
    """The names in a directory of the image."""
    names = {name for directory in below for name in os.listdir(directory)}  # noqa: PTH208 - names alone
    return {name for name in names if _lookup(below, name)}


def _same(upper: str, info: os.stat_result, path: str, lower: os.stat_result) -> bool:
    """Whether an entry that was copied up is as it was. A directory's own time says nothing: that is its entries'."""
    for field in ("st_mode", "st_uid", "st_gid", "st_rdev"):
        if getattr(info, field) != getattr(lower, field):
            return False
    if stat.S_ISLNK(info.st_mode):
        return os.readlink(upper) == os.readlink(path)  # noqa: PTH115 - compared as written
    if not stat.S_ISDIR(info.st_mode) and (info.st_size, info.st_mtime_ns) != (lower.st_size, lower.st_mtime_ns):
        return False
    return _attribute(upper, _CAPABILITY) == _attribute(path, _CAPABILITY)


def _is_whiteout(info: os.stat_result) -> bool:
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _is_opaque(directory: str) -> bool:
    return _attribute(directory, _OPAQUE) == b"y"


def _attribute(path: str, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:  # none of this name, or a file system without any
        return None
