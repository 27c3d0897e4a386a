"""Files copied into and out of an instance, or as a tar stream: what `tare cp` and a fresh volume do.

A copy is a sequence of entries from a source (a tree, a tar) into a sink (a tree, a tar; those of archives are in
`tarring`). A tree is only ever walked by descriptors, a component at a time, never through a symbolic link: what is
inside may change under our hands. Which path means what, by Docker's rules, is `placing`'s business.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import BinaryIO, Final, Protocol

from runtime.errors import TareError
from runtime.record import ordered_record

_CHUNK_BYTES: Final = 1 << 20
_NONE: Final[Mapping[int, bool]] = {}
_HERE: Final = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FRESH: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
KEPT: Final = ("user.", "security.capability", "system.posix_acl_")  # never trusted.*: overlayfs believes it
_NO_XATTRS: Final = (errno.ENOTSUP, errno.EPERM, errno.EINVAL)


@ordered_record
class Entry:
    """One thing to copy: `path` is relative to what is copied, "" being that itself.

    `link` is what a symbolic link says, or the path of an earlier entry if `hard`. A regular file's bytes are read
    from `descriptor` (a real file's) or `stream`, before the next entry is asked for.
    """

    path: str
    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    device: int = 0
    link: str = ""
    hard: bool = False
    attributes: tuple[tuple[str, bytes], ...] = ()
    descriptor: int = -1
    stream: BinaryIO | None = None


class Sink(Protocol):
    """Takes entries, a directory before what is in it."""

    def add(self, entry: Entry) -> None:
        """Make the entry."""

    def finish(self) -> None:
        """Everything has been added."""


# Which owner an entry gets on the other side, by the one it has on this.
Owner = Callable[[int, int], tuple[int, int]]


def same_owner(uid: int, gid: int) -> tuple[int, int]:
    """Keep it."""
    return uid, gid


def copy(entries: Iterator[Entry], sink: Sink, *, name: str, owner: Owner = same_owner) -> None:
    """Copy all `entries`, the thing itself becoming `name` in the sink ("" pours its content out there)."""
    for entry in entries:
        uid, gid = owner(entry.uid, entry.gid)
        path = "/".join(part for part in (name, entry.path) if part)
        link = "/".join(part for part in (name, entry.link) if part) if entry.hard else entry.link
        sink.add(replace(entry, path=path, link=link, uid=uid, gid=gid))
    sink.finish()


def tree_entries(descriptor: int, *, closed: Mapping[int, bool] = _NONE) -> Iterator[Entry]:
    """What an O_PATH descriptor means, and everything below it.

    Sockets are left out, as they mean nothing elsewhere, and so is the content of directories on the devices `closed`,
    and what else is on them, but for the files of those that are said to hold some.
    """
    return _Walk(closed).entries(descriptor, "")


@dataclass
class _Walk:
    closed: Mapping[int, bool]
    _links: dict[tuple[int, int], str] = field(default_factory=dict)

    def entries(self, here: int, path: str) -> Iterator[Entry]:
        info = os.fstat(here)
        entry = Entry(
            path=path,
            mode=info.st_mode,
            uid=info.st_uid,
            gid=info.st_gid,
            mtime_ns=info.st_mtime_ns,
            device=info.st_rdev,
        )
        identity = (info.st_dev, info.st_ino)
        if info.st_dev in self.closed and not (self.closed[info.st_dev] and stat.S_ISREG(info.st_mode)):
            if stat.S_ISDIR(info.st_mode):
                yield entry
        elif stat.S_ISDIR(info.st_mode):
            yield from self._directory(here, entry)
        elif identity in self._links:
            yield replace(entry, link=self._links[identity], hard=True)
        elif not stat.S_ISSOCK(info.st_mode):
            if info.st_nlink > 1:
                self._links[identity] = path
            yield from _leaf(here, replace(entry, size=info.st_size))

    def _directory(self, here: int, entry: Entry) -> Iterator[Entry]:
        listed = os.open(f"/proc/self/fd/{here}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield replace(entry, attributes=_attributes(listed))
            for name in sorted(os.listdir(listed)):  # noqa: PTH208 - a descriptor
                try:
                    child = os.open(name, _HERE, dir_fd=listed)
                except FileNotFoundError:  # it went while we were at the one before
                    continue
                try:
                    yield from self.entries(child, f"{entry.path}/{name}" if entry.path else name)
                finally:
                    os.close(child)
        finally:
            os.close(listed)


def _leaf(here: int, entry: Entry) -> Iterator[Entry]:
    if stat.S_ISLNK(entry.mode):
        yield replace(entry, link=os.readlink("", dir_fd=here))
    elif stat.S_ISREG(entry.mode):
        content = os.open(f"/proc/self/fd/{here}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            yield replace(entry, descriptor=content, attributes=_attributes(content))
        finally:
            os.close(content)
    else:
        yield entry


def _attributes(descriptor: int) -> tuple[tuple[str, bytes], ...]:
    try:
        names = os.listxattr(descriptor)
    except OSError as error:
        if error.errno not in _NO_XATTRS:
            raise
        return ()
    return tuple((name, os.getxattr(descriptor, name)) for name in sorted(names) if name.startswith(KEPT))


class TreeSink:
    """Entries become files below the directory `root`, over those of the same name. Owns nothing but what it opens.

    A directory is merged with one that is there; nothing else may take a directory's place, nor the other way round.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._times: list[tuple[str, int]] = []

    def add(self, entry: Entry) -> None:
        """Make the entry. Raises TareError where it may not take the place of what is there."""
        if not entry.path:
            if not stat.S_ISDIR(entry.mode):
                raise TareError("copy", "a file has no content to pour out", "copy the file itself")
            return
        above, _, name = entry.path.rpartition("/")
        parent = self._open(above)
        try:
            if stat.S_ISDIR(entry.mode):
                self._directory(parent, name, entry)
            else:
                self._other(parent, name, entry)
        finally:
            os.close(parent)

    def finish(self) -> None:
        """Set the directories' times, which making their entries has changed."""
        for path, mtime_ns in reversed(self._times):
            with suppress(FileNotFoundError):
                descriptor = self._open(path)
                os.utime(descriptor, ns=(mtime_ns, mtime_ns))
                os.close(descriptor)

    def _open(self, path: str) -> int:
        """The directory `path`, made where an archive leaves it out."""
        here = os.dup(self._root)
        for part in path.split("/") if path else ():
            try:
                deeper = _step(here, part)
            except OSError as error:
                if error.errno in (errno.ENOTDIR, errno.ELOOP):
                    raise TareError(f"copy of {path}", f"{part} there is no directory", "remove it first") from error
                raise
            finally:
                os.close(here)
            here = deeper
        return here

    def _directory(self, parent: int, name: str, entry: Entry) -> None:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
                raise TareError(
                    f"copy of {entry.path}", "a file is there and no directory", "remove it first"
                ) from None
        descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            _describe(descriptor, entry)
        finally:
            os.close(descriptor)
        self._times.append((entry.path, entry.mtime_ns))

    def _other(self, parent: int, name: str, entry: Entry) -> None:
        if not self._make_way(parent, name, entry):
            return
        if entry.hard:
            above, _, linked = entry.link.rpartition("/")
            source = self._open(above)
            try:
                os.link(linked, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            finally:
                os.close(source)
            return
        if stat.S_ISREG(entry.mode):
            _write(os.open(name, _FRESH, 0o600, dir_fd=parent), entry)
            return
        if stat.S_ISLNK(entry.mode):
            os.symlink(entry.link, name, dir_fd=parent)
        else:
            os.mknod(name, stat.S_IFMT(entry.mode) | 0o600, entry.device, dir_fd=parent)
        os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if not stat.S_ISLNK(entry.mode):
            _change_mode(parent, name, stat.S_IMODE(entry.mode))
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)

    @staticmethod
    def _make_way(parent: int, name: str, entry: Entry) -> bool:
        """Remove what is there. False when it is a mount, which can only be written into: that has been done."""
        try:
            there = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return True
        if stat.S_ISDIR(there.st_mode):
            raise TareError(f"copy of {entry.path}", "a directory is there", "remove it first")
        try:
            os.unlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EBUSY or not (stat.S_ISREG(there.st_mode) and stat.S_ISREG(entry.mode)):
                raise
            _write(os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent), entry)
            return False
        return True


def _change_mode(parent: int, name: str, mode: int) -> None:
    """Of a node just made: what a link in its place by now leads to keeps its own. Raises OSError then."""
    made = os.open(name, _HERE, dir_fd=parent)
    try:
        os.chmod(f"/proc/self/fd/{made}", mode)  # noqa: PTH101
    finally:
        os.close(made)


def _step(here: int, part: str) -> int:
    if part in ("", ".", ".."):
        raise TareError("copy", f"{part!r} in a path of the archive", "do not use this archive")
    try:
        return os.open(part, _DIRECTORY, dir_fd=here)
    except FileNotFoundError:
        os.mkdir(part, 0o755, dir_fd=here)
        return os.open(part, _DIRECTORY, dir_fd=here)


def _write(descriptor: int, entry: Entry) -> None:
    """Fill a fresh file, holes staying holes, and close it."""
    try:
        if entry.stream is not None:
            while chunk := entry.stream.read(_CHUNK_BYTES):
                _write_all(descriptor, chunk)
        elif entry.descriptor >= 0:
            _copy_bytes(entry.descriptor, descriptor)
        _describe(descriptor, entry)
        os.utime(descriptor, ns=(entry.mtime_ns, entry.mtime_ns))
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _copy_bytes(source: int, target: int) -> None:
    at = 0
    while True:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break
        os.lseek(source, at, os.SEEK_SET)
        os.lseek(target, at, os.SEEK_SET)
        while at < end and (sent := os.sendfile(target, source, None, end - at)):
            at += sent
    os.ftruncate(target, os.fstat(source).st_size)


def _describe(descriptor: int, entry: Entry) -> None:
    os.fchown(descriptor, entry.uid, entry.gid)
    os.fchmod(descriptor, stat.S_IMODE(entry.mode))  # after the owner: changing that drops setuid and capabilities
    for key, value in entry.attributes:
        try:
            os.setxattr(descriptor, key, value)
        except OSError as error:
            if error.errno not in _NO_XATTRS or key == "security.capability":
                raise
