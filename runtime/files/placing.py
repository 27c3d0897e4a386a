"""Where a copy goes: Docker's rules for the two paths of `cp`, on a side that is the host, a container or a guest.

The rules are those of docs.docker.com, `docker container cp`. Not for the copying (`copying`).
"""

from __future__ import annotations

import errno
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from posixpath import basename, normpath, split

from runtime.errors import TareError
from runtime.linux.inside import open_inside

_LINKS = 40  # as many as the kernel follows


class Paths(ABC):
    """What can be asked of one side of a copy; `label` goes before its paths in what users read."""

    label: str

    @abstractmethod
    def is_directory(self, path: str) -> bool | None:
        """Of what `path` leads to; None when there is nothing. Raises OSError."""

    @abstractmethod
    def link(self, path: str) -> str | None:
        """What `path` says if it is a symbolic link. Raises OSError."""

    def refuse(self, path: str, why: str, do: str = "") -> TareError:
        """The error for this path."""
        return TareError(f"{self.label}{path}", why, do)


@dataclass(frozen=True, slots=True)
class Side(Paths):
    """A side that can be opened: `root` is a container's root directory, None the host's."""

    root: int | None = None
    label: str = ""

    def open(self, path: str, flags: int) -> int:
        """A descriptor of `path`; in a container it begins at the root, and links stay inside."""
        if self.root is None:
            return os.open(path, flags | os.O_CLOEXEC)
        return open_inside(self.root, path, flags)

    def is_directory(self, path: str) -> bool | None:
        """By opening it."""
        try:
            descriptor = self.open(path, os.O_PATH)
        except FileNotFoundError:
            return None
        try:
            return stat.S_ISDIR(os.fstat(descriptor).st_mode)
        finally:
            os.close(descriptor)

    def link(self, path: str) -> str | None:
        """By opening it."""
        with suppress(FileNotFoundError):
            descriptor = self.open(path, os.O_PATH | os.O_NOFOLLOW)
            try:
                if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                    return os.readlink("", dir_fd=descriptor)
            finally:
                os.close(descriptor)
        return None


@dataclass(frozen=True, slots=True)
class Thing:
    """What to copy: the `name` it goes by, and whether only its content is meant."""

    name: str
    directory: bool
    pour: bool


@dataclass(frozen=True, slots=True)
class Source(Thing):
    """The same, as an O_PATH `descriptor`."""

    descriptor: int


@dataclass(frozen=True, slots=True)
class Destination:
    """Where to: a `directory`, and the name there; "" pours content into the directory itself."""

    directory: int
    name: str


def thing(path: str, *, directory: bool) -> Thing:
    """What `path` means as a source."""
    pour = basename(path) == "." or normpath(path) in ("/", "//", ".")
    return Thing(basename(normpath(path)), directory, pour and directory)


def leads_on(path: str) -> bool:
    """Whether a final link in `path` means what it leads to in any case."""
    return basename(path) in ("", ".", "..")


@contextmanager
def source(side: Side, path: str, *, follow: bool = False) -> Iterator[Source]:
    """Find what `path` names; a final symbolic link is itself meant unless `follow` or a slash after it says otherwise.

    Raises TareError when there is nothing.
    """
    flags = os.O_PATH if follow or leads_on(path) else os.O_PATH | os.O_NOFOLLOW
    try:
        descriptor = side.open(path, flags)
    except OSError as error:
        raise side.refuse(path, _words(error), "see what is there first") from error
    try:
        what = thing(path, directory=stat.S_ISDIR(os.fstat(descriptor).st_mode))
        yield Source(what.name, what.directory, what.pour, descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def destination(side: Side, path: str, what: Thing | None) -> Iterator[Destination]:
    """Find and open where `what` goes when it is copied to `path`; None is an archive (see `place`)."""
    above, name = place(side, path, what)
    try:
        directory = side.open(above, os.O_PATH | os.O_DIRECTORY)
    except OSError as error:
        raise side.refuse(above, _words(error)) from error
    try:
        yield Destination(directory, name)
    finally:
        os.close(directory)


def place(side: Paths, path: str, what: Thing | None) -> tuple[str, str]:
    """The directory where `what` goes when it is copied to `path`, and its name there, "" for its content alone.

    None is an archive, whose members go into a directory. Raises TareError where Docker's rules refuse it.
    """
    try:
        directory = side.is_directory(path)
        if directory:
            return path, "" if what is None or what.pour else what.name
        if directory is None and (what is None or (not what.directory and basename(path) in ("", "."))):
            raise side.refuse(path, "no such directory", "make it first")
        if directory is False and (what is None or what.directory):
            raise side.refuse(path, "a directory cannot be copied onto a file", "name a directory")
        return _parent(side, _followed(side, path if directory is False else path.rstrip("/")))
    except OSError as error:
        raise side.refuse(path, _words(error)) from error


def _followed(side: Paths, path: str) -> str:
    """`path` with the links in its last component followed, whether or not they lead to anything."""
    for _ in range(_LINKS):
        said = side.link(path)
        if said is None:
            return path
        path = said if said.startswith("/") else f"{split(path)[0]}/{said}" if split(path)[0] else said
    raise side.refuse(path, os.strerror(errno.ELOOP))


def _parent(side: Paths, path: str) -> tuple[str, str]:
    above, name = split(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise side.refuse(path, "no such directory", "make it first")
    above = above or "."
    there = side.is_directory(above)
    if not there:
        why = os.strerror(errno.ENOENT if there is None else errno.ENOTDIR).lower()
        raise side.refuse(above, why, "the directory to copy into must exist")
    return above, name


def _words(error: OSError) -> str:
    return os.strerror(error.errno).lower() if error.errno else str(error)
