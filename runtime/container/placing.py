"""Where a copy goes: Docker's rules for the two paths of `cp`, on a side that is the host or a container.

The rules are those of docs.docker.com, `docker container cp`. Not for the copying (`copying`).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from posixpath import basename, normpath, split

from runtime.container.rootdir import open_inside
from runtime.errors import TareError

_LINKS = 40  # as many as the kernel follows


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a copy: `root` is a container's root directory, None the host's; `label` goes before its paths."""

    root: int | None = None
    label: str = ""

    def open(self, path: str, flags: int) -> int:
        """A descriptor of `path`; in a container it begins at the root, and links stay inside."""
        if self.root is None:
            return os.open(path, flags | os.O_CLOEXEC)
        return open_inside(self.root, path, flags)

    def link(self, path: str) -> str | None:
        """What `path` says if it is a symbolic link."""
        with suppress(FileNotFoundError):
            descriptor = self.open(path, os.O_PATH | os.O_NOFOLLOW)
            try:
                if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                    return os.readlink("", dir_fd=descriptor)
            finally:
                os.close(descriptor)
        return None

    def refuse(self, path: str, why: str, do: str = "") -> TareError:
        """The error for this path."""
        return TareError(f"{self.label}{path}", why, do)


@dataclass(frozen=True, slots=True)
class Source:
    """What to copy: an O_PATH `descriptor`, the `name` it goes by, and whether only its content is meant."""

    descriptor: int
    name: str
    directory: bool
    pour: bool


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to: a `directory`, and the name there; "" pours content into the directory itself."""

    directory: int
    name: str


@contextmanager
def source(side: Side, path: str, *, follow: bool = False) -> Iterator[Source]:
    """Find what `path` names; a final symbolic link is itself meant unless `follow` or a slash after it says otherwise.

    Raises TareError when there is nothing.
    """
    last = basename(path)
    pour = last == "." or normpath(path) in ("/", "//", ".")
    flags = os.O_PATH if follow or last in ("", ".", "..") else os.O_PATH | os.O_NOFOLLOW
    try:
        descriptor = side.open(path, flags)
    except OSError as error:
        raise side.refuse(path, _words(error), "see what is there first") from error
    try:
        directory = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        yield Source(descriptor, basename(normpath(path)), directory, pour and directory)
    finally:
        os.close(descriptor)


@contextmanager
def destination(side: Side, path: str, what: Source | None) -> Iterator[Destination]:
    """Find where `what` goes when it is copied to `path`; None is an archive, whose members go into a directory.

    Raises TareError where Docker's rules refuse it.
    """
    directory, name = _place(side, path, what)
    try:
        yield Destination(directory, name)
    finally:
        os.close(directory)


def _place(side: Side, path: str, what: Source | None) -> tuple[int, str]:
    try:
        descriptor = side.open(path, os.O_PATH)
    except FileNotFoundError:
        return _new(side, path, what)
    except OSError as error:
        raise side.refuse(path, _words(error)) from error
    if stat.S_ISDIR(os.fstat(descriptor).st_mode):
        return descriptor, "" if what is None or what.pour else what.name
    os.close(descriptor)
    if what is None or what.directory:
        raise side.refuse(path, "a directory cannot be copied onto a file", "name a directory")
    return _parent(side, _followed(side, path))


def _new(side: Side, path: str, what: Source | None) -> tuple[int, str]:
    if what is None or (not what.directory and basename(path) in ("", ".")):
        raise side.refuse(path, "no such directory", "make it first")
    return _parent(side, _followed(side, path.rstrip("/")))


def _followed(side: Side, path: str) -> str:
    """`path` with the links in its last component followed, whether or not they lead to anything."""
    for _ in range(_LINKS):
        said = side.link(path)
        if said is None:
            return path
        path = said if said.startswith("/") else f"{split(path)[0]}/{said}" if split(path)[0] else said
    raise side.refuse(path, os.strerror(errno.ELOOP))


def _parent(side: Side, path: str) -> tuple[int, str]:
    above, name = split(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise side.refuse(path, "no such directory", "make it first")
    try:
        return side.open(above or ".", os.O_PATH | os.O_DIRECTORY), name
    except OSError as error:
        raise side.refuse(above or ".", _words(error), "the directory to copy into must exist") from error


def _words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
