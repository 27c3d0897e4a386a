# ruff: noqa: PTH101, PTH102, PTH103, PTH104, PTH106, PTH108, PTH112
# Paths are strings here: pathlib is not lean.
"""The writable layer of one instance: made and removed with as few calls as it takes.

Lean: what a launch needs and nothing else, so that a process that launches may import it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

CONSOLE = "console.log"
_SKELETON = ("dev", "etc", "proc", "sys")
_SKELETON_FILES = ("etc/hostname", "etc/hosts", "etc/resolv.conf")
_MODE = 0o755  # the upper directory's mode becomes the root directory's


def skeleton(root: str) -> str:
    """A directory below `root` with the empty mount points that every container needs, to be the lowest layer.

    Without it a mount point that the image lacks would be made in each writable layer.
    """
    final = f"{root}/skeleton"
    if not os.path.isdir(final):
        partial = f"{final}-{os.getpid()}"
        for name in _SKELETON:
            os.makedirs(f"{partial}/{name}")
        for name in _SKELETON_FILES:
            os.close(os.open(f"{partial}/{name}", os.O_WRONLY | os.O_CREAT, 0o644))
        try:
            os.rename(partial, final)
        except OSError:  # somebody else was faster
            _remove_all(partial)
    return final


def overlay_options(layers: Sequence[str], directory: str | None) -> str:
    """The options of an overlay of `layers`, topmost last, under the writable one in `directory`; None: read-only.

    Without redirects, whatever the host's default: the upper directory alone must say what changed.
    """
    options = "redirect_dir=off,lowerdir=" + ":".join(_escaped(layer) for layer in reversed(layers))
    if directory is not None:
        options += f",upperdir={_escaped(directory)}/upper,workdir={_escaped(directory)}/work"
    return options


def _escaped(path: str) -> str:
    """A path inside overlay's options, where colon and comma separate and the backslash escapes."""
    return path.replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def make(directory: str) -> None:
    """Make `directory` (its parent exists) with `upper` and `work` for an overlay in it."""
    os.mkdir(directory, 0o700)
    os.mkdir(f"{directory}/work")
    os.mkdir(f"{directory}/upper")
    os.chmod(f"{directory}/upper", _MODE)


def remove(directory: str) -> None:
    """Remove `directory` with all below it, as far as that is possible; absent is no error."""
    try:
        # What an instance that wrote nothing leaves: a good deal faster than a walk.
        if os.path.lexists(f"{directory}/{CONSOLE}"):
            os.unlink(f"{directory}/{CONSOLE}")
        for part in ("/work/work", "/work", "/upper", ""):
            os.rmdir(directory + part)
    except OSError:
        _remove_all(directory)


def _remove_all(directory: str) -> None:
    import shutil

    shutil.rmtree(directory, ignore_errors=True)


def remove_tree(directory: str) -> None:
    """Remove `directory` with all below it, or raise what stands against it; nothing may be mounted there.

    Without shutil, which takes longer to import than most writable layers to remove.
    """
    try:
        os.rmdir(directory)
    except FileNotFoundError:
        return
    except OSError:
        for entry in os.scandir(directory):
            if entry.is_dir(follow_symlinks=False):
                remove_tree(entry.path)
            else:
                os.unlink(entry.path)
        os.rmdir(directory)
