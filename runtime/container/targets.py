# ruff: noqa: PTH115, PTH118, PTH119, PTH120
"""Places inside a root that an image may have prepared with links: opened, and made where they are missing.

For a child between `PivotRoot` and `LeaveHost`. Links are the image's own business, but the kernel must not follow them
then: the host's tree is mounted over the root, and `..` of a directory just below it leads there. So they are resolved
here, as text, and what is opened in the end holds none (RESOLVE_NO_SYMLINKS, which refuses those of /proc too).
"""

from __future__ import annotations

import errno
import os
import stat

from runtime.linux import syscalls
from runtime.linux.syscalls import AT_FDCWD, RESOLVE_NO_SYMLINKS

_MAX_LINKS = 40  # as the kernel's own limit, MAXSYMLINKS


def open_target(path: bytes, directory: bool, *, strict: bool = False) -> int:
    """A path descriptor of the absolute `path`; made as a directory or an empty file where it is missing.

    `strict` wants it without any link. Raises OSError.
    """
    try:
        return open_existing(path, strict=strict)
    except FileNotFoundError:
        pass
    real = path if strict else resolved(path)
    parent = _make_directories(os.path.dirname(real))
    try:
        name = os.path.basename(real)
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=parent))
    except FileExistsError:
        pass  # by somebody who shares the file system; what it is shows itself when it is opened
    finally:
        os.close(parent)
    return syscalls.open_place(real)


def open_existing(path: bytes, *, strict: bool = False) -> int:
    """The same for what must be there already. Raises OSError."""
    try:
        return syscalls.open_place(path)
    except OSError as error:
        if error.errno != errno.ELOOP or strict:
            raise
    return syscalls.open_place(resolved(path))


def resolved(path: bytes) -> bytes:
    """`path` with every link on its way replaced, those that lead nowhere too, none of them out of the root.

    Says where a missing target is to be made; whoever opens the answer still follows nothing.
    """
    waiting, at, links = path.split(b"/")[::-1], b"/", 0
    while waiting:
        word = waiting.pop()
        if word == b"..":
            at = os.path.dirname(at)
        elif word not in (b"", b"."):
            step = os.path.join(at, word)
            target = _link(step)
            if target is None:
                at = step
                continue
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), os.fsdecode(path))
            at = b"/" if target.startswith(b"/") else at
            waiting += target.split(b"/")[::-1]
    return at


def _link(path: bytes) -> bytes | None:
    try:
        return os.readlink(path) if stat.S_ISLNK(os.lstat(path).st_mode) else None
    except OSError:
        return None


def _make_directories(path: bytes) -> int:
    """A descriptor of the directory `path`, which holds no links; made with those above it where they are missing."""
    flags = os.O_PATH | os.O_DIRECTORY
    try:
        return syscalls.openat2(AT_FDCWD, path, flags, RESOLVE_NO_SYMLINKS)
    except FileNotFoundError:
        pass
    parent = _make_directories(os.path.dirname(path))
    try:
        os.mkdir(os.path.basename(path), 0o755, dir_fd=parent)
    except FileExistsError:
        pass
    finally:
        os.close(parent)
    return syscalls.openat2(AT_FDCWD, path, flags, RESOLVE_NO_SYMLINKS)
