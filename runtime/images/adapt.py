"""A layer whose members lie in directories that it does not describe, made to fit the layers below it.

Such a directory means the one below: its owner and mode stay, and if a symbolic link stands there, the
members belong where it leads. A layer by itself cannot know; one that needs it gets a variant of its own
for these lower layers, made of hard links. Not for layers that describe all they hold, which are nearly all.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path

from runtime.command import run
from runtime.errors import TareError
from runtime.images.descent import OPAQUE
from runtime.images.merging import take_attributes

Parts = tuple[str, ...]
_LINKS = 40


def needed(implied: Sequence[str], lower: Sequence[Path]) -> bool:
    """Whether a layer with these undescribed directories looks different on `lower` (lowest first)."""
    return any(_found(lower, tuple(path.split("/"))) is not None for path in implied)


def adapt(layer: Path, implied: Sequence[str], lower: Sequence[Path], made: Path) -> None:
    """Make `made` the variant of `layer` that fits on `lower` (lowest first); both lie on one file system.

    Raises TareError when a file stands below where the layer needs a directory, or links lead nowhere.
    """
    run(["cp", "--archive", "--link", "--no-target-directory", str(layer), str(made)], timeout_s=600)
    for path in sorted(implied, key=lambda path: path.count("/")):
        parts = tuple(path.split("/"))
        if not stat.S_ISDIR(_lstat_mode(made.joinpath(*parts))):
            continue  # it went along with its parent
        target = _resolve(lower, parts)
        if target != parts:
            _move(made, made.joinpath(*parts), target, lower)
        else:
            _take_over(made.joinpath(*parts), _found(lower, parts))


def _found(layers: Sequence[Path], parts: Parts) -> Path | None:
    """The entry `parts` as an overlay of `layers` would show it; links on the way are not followed."""
    directories = list(reversed(layers))
    shown: Path | None = None
    for part in parts:
        shown, deeper = None, []
        for directory in directories:
            mode = _lstat_mode(directory / part)
            if not mode:
                continue
            if shown is None and not _whiteout(directory / part):
                shown = directory / part
            if not stat.S_ISDIR(mode):
                break
            deeper.append(directory / part)
            if _opaque(directory / part):
                break
        if shown is None:
            return None
        directories = deeper if stat.S_ISDIR(_lstat_mode(shown)) else []
    return shown


def _resolve(layers: Sequence[Path], parts: Parts) -> Parts:
    """Where `parts` leads within the root, links of `layers` followed; what does not exist stays as written."""
    done: list[str] = []
    todo = list(reversed(parts))
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            done = done[:-1]
            continue
        entry = _found(layers, (*done, part))
        if entry is None or not entry.is_symlink():
            done.append(part)
            continue
        links += 1
        target = os.readlink(entry)  # noqa: PTH115 - its words as they are
        if links > _LINKS or target.count("/") > 200:
            raise TareError("layer", f"directory {'/'.join(parts)!r} leads to itself", "the image is damaged")
        if target.startswith("/"):
            done = []
        todo += [word for word in reversed(target.split("/")) if word not in ("", ".")]
    return tuple(done)


def _move(root: Path, source: Path, target: Parts, lower: Sequence[Path]) -> None:
    """Put the entries of `source` into `target`, a path below `root`, and remove `source`."""
    place = root
    for depth, part in enumerate(target, 1):
        place = place / part
        mode = _lstat_mode(place)
        if not mode:
            place.mkdir(mode=0o755)
            place.chmod(0o755)
            _take_over(place, _found(lower, target[:depth]))
        elif not stat.S_ISDIR(mode):
            raise TareError("layer", f"{'/'.join(target)!r} is no directory", "the image is damaged")
    _merge(source, place)


def _merge(source: Path, target: Path) -> None:
    for entry in source.iterdir():
        there = target / entry.name
        mode = _lstat_mode(there)
        if stat.S_ISDIR(mode) and not entry.is_symlink() and entry.is_dir():
            _merge(entry, there)
            continue
        if stat.S_ISDIR(mode):
            shutil.rmtree(there)
        entry.replace(there)
    source.rmdir()


def _take_over(directory: Path, below: Path | None) -> None:
    """Give `directory` the owner, mode, time and attributes of the one below, if there is one."""
    if below is not None and stat.S_ISDIR(_lstat_mode(below)):
        take_attributes(directory, below)


def _lstat_mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0


def _whiteout(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def _opaque(directory: Path) -> bool:
    try:
        return os.getxattr(directory, OPAQUE) == b"y"
    except OSError:
        return False
