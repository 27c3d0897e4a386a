"""A layer archive unpacked without trusting it.

The result is an overlayfs lower
directory: whiteouts become 0:0 character devices, opaque directories carry `trusted.overlay.opaque`.
Every name is resolved by descriptors below the target (`descent.py`); a member that leads through a
symbolic link of its layer goes where the link leads within the root, as in Docker, and never outside.
Not for reading blobs from anywhere but a binary stream. Format: OCI image-spec 1.1, layer.md.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

from runtime.errors import TareError
from runtime.images import tarstream
from runtime.images.descent import DIRECTORY_FLAGS, OPAQUE, Descent, Parts, hide_below
from runtime.images.layout import COMPRESSION, LAYER_TAR
from runtime.images.stream import Feed, RefusedError
from runtime.images.tarstream import Member, TarStream

WHITEOUT = ".wh."
WHITEOUT_OPAQUE = ".wh..wh..opq"
XATTR = "SCHILY.xattr."
# What a layer may set. Never trusted.overlay.*: a redirect there would name any directory of the host's lower layers.
_XATTRS_KEPT = ("user.", "security.capability", "system.posix_acl_")
_USER_OVERLAY = "user.overlay."  # what an overlay mounted in a user namespace believes instead
_IMPOSSIBLE_NAME = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EMLINK, errno.ERANGE)
_FRESH_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most a layer may hold: `members`, and `size_bytes` of archive (decompressed) and of file content."""

    members: int = 500_000
    size_bytes: int = 64 << 30


class Unpacked(NamedTuple):
    """Digests as computed, and directories (paths below the root) that members lie in but no member describes."""

    digest: str
    diff_id: str
    implied: tuple[str, ...]


def unpack(blob: IO[bytes], target: Path, *, media_type: str = LAYER_TAR, bounds: Bounds = Bounds()) -> Unpacked:
    """Unpack a layer into the empty directory `target`; return its digests and the directories it took for granted.

    Owners, modes, times, hard links, sparse files and the attributes a layer may carry are kept; device
    nodes are made, as Docker does. The caller compares the digests and throws the tree away if they lie.
    Raises TareError for an archive that is damaged, too large or would reach outside; OSError for the disk's.
    """
    if media_type not in COMPRESSION:
        raise TareError("layer", f"media type {media_type!r} is not supported", "use a tar, tar+gzip or tar+zstd layer")
    name = ""
    try:
        with Feed(blob, COMPRESSION[media_type], bounds.size_bytes) as feed, closing(_Tree(target)) as tree:
            content_bytes = 0
            stream = TarStream(feed)
            for count, member in enumerate(stream, 1):
                name = member.name
                if member.logical_bytes < 0:
                    raise RefusedError("has an impossible size or owner")
                content_bytes += member.logical_bytes
                if count > bounds.members or content_bytes > bounds.size_bytes:
                    raise RefusedError("exceeds the bounds for a layer")
                tree.add(member, stream)
            name = ""
            tree.finish()
            return Unpacked(*feed.digests(), tree.implied())
    except (RefusedError, ValueError) as error:
        raise _damaged(name, str(error)) from error
    except OSError as error:
        if error.errno not in _IMPOSSIBLE_NAME:
            raise
        raise _damaged(name, os.strerror(error.errno)) from error


def _damaged(name: str, why: str) -> TareError:
    where = f"member {name[:200]!r} " if name else ""
    return TareError("layer", f"{where}{why}", "the image is damaged or hostile: do not use it")


def _parts(name: str) -> Parts:
    """A member's path below the root, by components; () is the root itself."""
    parts = tuple([part for part in name.split("/") if part not in ("", ".")])
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise RefusedError("has a path that leaves the layer")
    if len(name) > 4096:
        raise RefusedError("has a path longer than the kernel allows")
    return parts


class _Tree:
    """The directory being filled."""

    def __init__(self, root: Path) -> None:
        self._walk = Descent(root)
        self._times: dict[Parts, int] = {}

    def close(self) -> None:
        self._walk.close()

    def implied(self) -> tuple[str, ...]:
        """The directories that no member described, parents first."""
        return tuple(sorted("/".join(parts) for parts in self._walk.made))

    def add(self, member: Member, stream: TarStream) -> None:
        """Make one member. Raises RefusedError when it must not be."""
        parts = _parts(member.name)
        if not 0 <= member.uid < 2**32 - 1 or not 0 <= member.gid < 2**32 - 1:
            raise RefusedError("has an impossible size or owner")
        if not -(2**62) < member.mtime_ns < 2**62:
            raise RefusedError("has an impossible time")
        if not parts:
            if member.kind == tarstream.DIRECTORY:
                _describe(self._walk.root, member)
                self._times[()] = member.mtime_ns
            return
        parent, name = self._walk.reach(parts[:-1]), parts[-1]
        if name.startswith(WHITEOUT):
            _whiteout(parent, name)
        elif member.kind == tarstream.DIRECTORY:
            self._directory(parent, name, member)
        else:
            self._file(parent, name, member, stream)

    def finish(self) -> None:
        """Set the directories' times, which making their entries has changed."""
        for parts, mtime_ns in sorted(self._times.items()):
            with suppress(FileNotFoundError, NotADirectoryError):  # a later member took its place
                if parts:
                    parent = self._walk.reach(parts[:-1], make=False)
                    os.utime(parts[-1], ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)
                else:
                    os.utime(self._walk.root, ns=(mtime_ns, mtime_ns))

    def _directory(self, parent: int, name: str, member: Member) -> None:
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            # What stood there hid the layers below: its successor must go on hiding them.
            opaque = not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
            if opaque:
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        try:
            _describe(fd, member)
            if opaque:
                os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)
        where = (*self._walk.names, name)
        self._walk.made.discard(where)
        self._times[where] = member.mtime_ns

    def _file(self, parent: int, name: str, member: Member, stream: TarStream) -> None:
        kind = member.kind
        if kind == tarstream.REGULAR:
            try:
                fd = os.open(name, _FRESH_FILE, 0o600, dir_fd=parent)
            except FileExistsError:
                self._make_way(parent, name)
                fd = os.open(name, _FRESH_FILE, 0o600, dir_fd=parent)
            try:
                _write_content(fd, member, stream)
                _describe(fd, member)
                os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
            finally:
                os.close(fd)
            return
        if kind == tarstream.LINK:
            self._hard_link(parent, name, member)
            return
        self._make_way(parent, name)
        if kind == tarstream.SYMLINK:
            if not member.linkname:
                raise RefusedError("links to nothing")
            os.symlink(member.linkname, name, dir_fd=parent)
        elif kind == tarstream.FIFO:
            os.mkfifo(name, 0o600, dir_fd=parent)
        elif kind in (tarstream.CHARACTER, tarstream.BLOCK_DEVICE):
            _device(parent, name, member)
        else:
            raise RefusedError(f"is of an unknown kind {kind!r}")
        _own(parent, name, member)

    def _make_way(self, parent: int, name: str) -> None:
        """Remove an earlier entry of this name, with all that is in it, as Docker does."""
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(info.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        shutil.rmtree(name, dir_fd=parent)
        gone = (*self._walk.names, name)
        self._times = {parts: time for parts, time in self._times.items() if parts[: len(gone)] != gone}
        self._walk.made = {parts for parts in self._walk.made if parts[: len(gone)] != gone}

    def _hard_link(self, parent: int, name: str, member: Member) -> None:
        source = _parts(member.linkname)
        if not source:
            raise RefusedError("links to the layer's root")
        keep, names = os.dup(parent), self._walk.names
        try:  # finding the other name lets go of this directory
            directory = self._walk.reach(source[:-1], make=False)
            if (self._walk.names, source[-1]) == (names, name):
                os.stat(name, dir_fd=keep, follow_symlinks=False)
                return  # a link to itself changes nothing
            other = os.stat(source[-1], dir_fd=directory, follow_symlinks=False)
            if stat.S_ISDIR(other.st_mode) or (stat.S_ISCHR(other.st_mode) and other.st_rdev == 0):
                raise RefusedError("links to a file that the layer does not hold")
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=keep)
            os.link(source[-1], name, src_dir_fd=directory, dst_dir_fd=keep, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
            raise RefusedError("links to a file that the layer does not hold") from error
        finally:
            os.close(keep)


def _whiteout(parent: int, name: str) -> None:
    hidden = name.removeprefix(WHITEOUT)
    if name == WHITEOUT_OPAQUE:
        os.setxattr(parent, OPAQUE, b"y")
    elif hidden in ("", ".", "..") or "/" in hidden:
        raise RefusedError("hides nothing that can exist")
    elif not hidden.startswith(WHITEOUT):  # .wh..wh.* is the bookkeeping of a file system long gone
        try:
            os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
        except FileExistsError:  # a layer's own entry stands: whiteouts speak of the layers below
            if stat.S_ISDIR(os.stat(hidden, dir_fd=parent, follow_symlinks=False).st_mode):
                hide_below(hidden, parent)


def _device(parent: int, name: str, member: Member) -> None:
    major, minor = member.device
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise RefusedError("is a device with impossible numbers")
    character = member.kind == tarstream.CHARACTER
    if character and major == minor == 0:
        raise RefusedError("is a device that overlayfs takes for a whiteout")
    os.mknod(name, (stat.S_IFCHR if character else stat.S_IFBLK) | 0o600, os.makedev(major, minor), dir_fd=parent)


def _describe(fd: int, member: Member) -> None:
    os.fchown(fd, member.uid, member.gid)
    os.fchmod(fd, member.mode & 0o7777)  # after the owner: changing that drops setuid and capabilities
    for key, value in member.xattrs:
        if key.startswith(_XATTRS_KEPT) and not key.startswith(_USER_OVERLAY):
            try:
                os.setxattr(fd, key, value)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.E2BIG, errno.EPERM):
                    raise
                raise RefusedError(f"has an impossible attribute {key[:100]!r}") from error


def _own(parent: int, name: str, member: Member) -> None:
    os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
    if member.kind != tarstream.SYMLINK:
        os.chmod(name, member.mode & 0o7777, dir_fd=parent)
    os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent, follow_symlinks=False)


def _write_content(fd: int, member: Member, stream: TarStream) -> None:
    """Copy a regular member's bytes; the holes of a sparse one stay holes."""
    if member.sparse is None:
        for part in stream.content():
            _write(fd, part)
        return
    end = 0
    for offset, length in member.sparse:
        if length < 0 or offset < end or offset + length > member.logical_bytes:
            raise RefusedError("has a damaged map of holes")
        end = offset + length
    places = iter(member.sparse)
    left = 0
    for content in stream.content():
        part = content
        while part:
            if not left:
                offset, left = next(places, (0, 0))
                if not left and not offset:
                    break  # padding behind the last part
                os.lseek(fd, offset, os.SEEK_SET)
                continue
            _write(fd, part[:left])
            part, left = part[left:], left - min(left, len(part))
    if left or any(length for _, length in places):
        raise RefusedError("has a damaged map of holes")
    os.ftruncate(fd, member.logical_bytes)


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def xattrs(path: Path) -> Iterator[tuple[str, bytes]]:
    """The extended attributes of `path` itself that a layer carries, as (name, value), sorted."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno == errno.ENOTSUP:
            return
        raise
    for name in sorted(names):
        if name.startswith(_XATTRS_KEPT):
            yield name, os.getxattr(path, name, follow_symlinks=False)
