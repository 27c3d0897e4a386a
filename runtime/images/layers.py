"""A layer archive unpacked without trusting it.

The result is an overlayfs lower
directory: whiteouts become 0:0 character devices, opaque directories carry `trusted.overlay.opaque`.
Every name is resolved by descriptors below the target; a symbolic link is never followed, so a member
that leads through one is refused even where another tool would follow it inside the root.
Not for reading blobs from anywhere but a binary stream. Format: OCI image-spec 1.1, layer.md.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Self, cast

from runtime.errors import TareError
from runtime.images.layout import LAYER_GZIP, LAYER_TAR


class _RefusedError(Exception):
    """A member that must not be unpacked; the message says why."""


OPAQUE = "trusted.overlay.opaque"
WHITEOUT = ".wh."
_WHITEOUT_OPAQUE = ".wh..wh..opq"
XATTR = "SCHILY.xattr."
# What a layer may set. Never trusted.overlay.*: a redirect there would name any directory of the host's lower layers.
_XATTRS_KEPT = ("user.", "security.capability", "system.posix_acl_")
_CHUNK_BYTES = 1 << 20
_HEADER_BYTES = 1 << 20  # tarfile reads an extended header into memory at once
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DAMAGE = (_RefusedError, tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error, ValueError, ArithmeticError)
_IMPOSSIBLE_NAME = (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.EMLINK, errno.ERANGE)
_FRESH_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most a layer may hold: `members`, and `size_bytes` of archive (decompressed) and of file content."""

    members: int = 500_000
    size_bytes: int = 64 << 30


class _Meter:
    """A stream that hashes and bounds what is read through it."""

    def __init__(self, raw: IO[bytes], limit_bytes: int) -> None:
        self._raw, self._left, self._hash = raw, limit_bytes, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(min(size, _CHUNK_BYTES) if size >= 0 else _CHUNK_BYTES)
        self._left -= len(data)
        if self._left < 0:
            raise _RefusedError("is larger than the bound for a layer")
        self._hash.update(data)
        return data

    def digest(self) -> str:
        while self.read(_CHUNK_BYTES):  # what follows the archive's end belongs to the digest as well
            pass
        return "sha256:" + self._hash.hexdigest()


class _Member(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        plain = member.type in tarfile.SUPPORTED_TYPES or member.type in tarfile.REGULAR_TYPES
        if member.size < 0 or (not plain and member.size > _HEADER_BYTES):
            raise _RefusedError("has a header of impossible size")
        if member.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK) and member.size > _HEADER_BYTES:
            raise _RefusedError("has a name of impossible size")
        return member


def unpack(blob: IO[bytes], target: Path, *, media_type: str = LAYER_TAR, bounds: Bounds = Bounds()) -> tuple[str, str]:
    """Unpack a layer into the empty directory `target` and return (blob digest, diff id), both as computed.

    Owners, modes, times, hard links, sparse files and the attributes a layer may carry are kept; device
    nodes are made, as Docker does. The caller compares the digests and throws the tree away if they lie.
    Raises TareError for an archive that is damaged, too large or would reach outside; OSError for the disk's.
    """
    if media_type not in (LAYER_TAR, LAYER_GZIP):
        raise TareError("layer", f"media type {media_type!r} is not supported", "use a tar or tar+gzip layer")
    outer = _Meter(blob, bounds.size_bytes)
    meter = outer
    if media_type == LAYER_GZIP:
        meter = _Meter(cast("IO[bytes]", gzip.GzipFile(fileobj=cast("IO[bytes]", outer))), bounds.size_bytes)
    name = ""
    try:
        with closing(_Tree(target)) as tree, _open_tar(meter) as tar:
            content_bytes = 0
            for count, member in enumerate(tar, 1):
                name = member.name
                content_bytes += max(0, member.size)
                if count > bounds.members or content_bytes > bounds.size_bytes:
                    raise _RefusedError("exceeds the bounds for a layer")
                tree.add(member, tar)
            tree.finish()
        diff_id = meter.digest()
        return outer.digest(), diff_id
    except _DAMAGE as error:
        raise _damaged(name, str(error)) from error
    except OSError as error:
        if error.errno not in _IMPOSSIBLE_NAME:
            raise
        raise _damaged(name, os.strerror(error.errno)) from error


def _damaged(name: str, why: str) -> TareError:
    where = f"member {name[:200]!r} " if name else ""
    return TareError("layer", f"{where}{why}", "the image is damaged or hostile: do not use it")


def _open_tar(meter: _Meter) -> tarfile.TarFile:
    return tarfile.open(
        fileobj=cast("IO[bytes]", meter),
        mode="r|",
        bufsize=_CHUNK_BYTES,
        tarinfo=_Member,
        encoding="utf-8",
        errors="surrogateescape",
    )


def _parts(name: str) -> tuple[str, ...]:
    """A member's path below the root, by components; () is the root itself."""
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    if name.startswith("/") or ".." in parts or "\0" in name:
        raise _RefusedError("has a path that leaves the layer")
    if len(name) > 4096:
        raise _RefusedError("has a path longer than the kernel allows")
    return parts


class _Tree:
    """The directory being filled. Holds two descriptors: its root, and the parent of the last member."""

    def __init__(self, root: Path) -> None:
        self._root = os.open(root, _DIRECTORY)
        self._parent: tuple[tuple[str, ...], int] = ((), os.dup(self._root))
        self._times: dict[tuple[str, ...], int] = {}

    def close(self) -> None:
        os.close(self._parent[1])
        os.close(self._root)

    def add(self, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        """Make one member. Raises _RefusedError when it must not be."""
        parts = _parts(member.name)
        if member.size < 0 or not 0 <= member.uid < 2**32 - 1 or not 0 <= member.gid < 2**32 - 1:
            raise _RefusedError("has an impossible size or owner")
        if not parts:
            if member.isdir():
                self._describe(self._root, member)
            return
        parent, name = self._descend(parts[:-1]), parts[-1]
        if name.startswith(WHITEOUT):
            self._whiteout(parent, name)
        elif member.isdir():
            self._directory(parent, name, member)
            self._times[parts] = _mtime_ns(member)
        else:
            self._make_way(parent, name)
            self._file(parent, name, member, tar)

    def finish(self) -> None:
        """Set the directories' times, which making their entries has changed."""
        for parts, mtime_ns in self._times.items():
            os.utime(self._descend(parts), ns=(mtime_ns, mtime_ns))

    def _descend(self, parts: tuple[str, ...]) -> int:
        """A descriptor of the directory `parts`, made where it is missing; valid until the next call."""
        if parts == self._parent[0]:
            return self._parent[1]
        fd = os.dup(self._root)
        try:
            for part in parts:
                deeper = self._step(fd, part)
                os.close(fd)
                fd = deeper
        except BaseException:
            os.close(fd)
            raise
        os.close(self._parent[1])
        self._parent = (parts, fd)
        return fd

    @staticmethod
    def _step(fd: int, part: str) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            os.mkdir(part, 0o755, dir_fd=fd)
            made = os.open(part, _DIRECTORY, dir_fd=fd)
            os.fchmod(made, 0o755)  # whatever the umask
            return made
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise _RefusedError(f"leads through {part!r}, which is no directory") from error
            raise

    def _make_way(self, parent: int, name: str) -> bool:
        """Remove an earlier entry of this name, unless it is a directory. Returns whether it was a whiteout."""
        try:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(info.st_mode):
            raise _RefusedError("replaces a directory of the same layer")
        os.unlink(name, dir_fd=parent)
        return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0

    def _whiteout(self, parent: int, name: str) -> None:
        hidden = name.removeprefix(WHITEOUT)
        if name == _WHITEOUT_OPAQUE:
            os.setxattr(parent, OPAQUE, b"y")
        elif hidden in ("", ".", "..") or "/" in hidden:
            raise _RefusedError("hides nothing that can exist")
        elif not hidden.startswith(WHITEOUT):  # .wh..wh.* is the bookkeeping of a file system long gone
            try:
                os.mknod(hidden, stat.S_IFCHR, 0, dir_fd=parent)
            except FileExistsError:
                return  # a layer's own entry stands: whiteouts speak of the layers below

    def _directory(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        opaque = False
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            info = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(info.st_mode):
                opaque = self._make_way(parent, name)
                os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            self._describe(fd, member)
            if opaque:
                os.setxattr(fd, OPAQUE, b"y")
        finally:
            os.close(fd)

    def _file(self, parent: int, name: str, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
        if member.isreg():
            fd = os.open(name, _FRESH_FILE, 0o600, dir_fd=parent)
            try:
                _write_content(fd, member, tar)
                self._describe(fd, member)
                os.utime(fd, ns=(_mtime_ns(member),) * 2)
            finally:
                os.close(fd)
        elif member.islnk():
            self._hard_link(parent, name, member)
        elif member.issym():
            if not member.linkname:
                raise _RefusedError("links to nothing")
            os.symlink(member.linkname, name, dir_fd=parent)
            self._own(parent, name, member)
        elif member.isfifo():
            os.mkfifo(name, 0o600, dir_fd=parent)
            self._own(parent, name, member)
        elif member.ischr() or member.isblk():
            self._device(parent, name, member)
        else:
            raise _RefusedError(f"is of an unknown kind {member.type!r}")

    def _hard_link(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        source = _parts(member.linkname)
        keep = os.dup(parent)  # finding the other name lets go of this directory
        try:
            directory = self._descend(source[:-1]) if source else -1
            if directory < 0:
                raise _RefusedError("links to the layer's root")
            os.link(source[-1], name, src_dir_fd=directory, dst_dir_fd=keep, follow_symlinks=False)
        except (FileNotFoundError, PermissionError) as error:
            raise _RefusedError("links to a file that the layer does not hold") from error
        finally:
            os.close(keep)

    def _device(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        if not (0 <= member.devmajor < 1 << 12 and 0 <= member.devminor < 1 << 20):
            raise _RefusedError("is a device with impossible numbers")
        if member.ischr() and member.devmajor == member.devminor == 0:
            raise _RefusedError("is a device that overlayfs takes for a whiteout")
        kind = stat.S_IFCHR if member.ischr() else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(member.devmajor, member.devminor), dir_fd=parent)
        self._own(parent, name, member)

    def _describe(self, fd: int, member: tarfile.TarInfo) -> None:
        os.fchown(fd, member.uid, member.gid)
        os.fchmod(fd, member.mode & 0o7777)  # after the owner: changing that drops setuid and capabilities
        for key, value in _xattrs_of(member.pax_headers):
            os.setxattr(fd, key, value)

    def _own(self, parent: int, name: str, member: tarfile.TarInfo) -> None:
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=parent)
        os.utime(name, ns=(_mtime_ns(member),) * 2, dir_fd=parent, follow_symlinks=False)


def _write_content(fd: int, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    """Copy a regular member's bytes; the holes of a sparse one stay holes."""
    content = tar.extractfile(member)
    assert content is not None
    sparse = member.issparse()
    written = 0
    while chunk := content.read(_CHUNK_BYTES if not sparse else 64 << 10):
        written += len(chunk)
        if sparse and not chunk.strip(b"\0"):
            os.lseek(fd, len(chunk), os.SEEK_CUR)
            continue
        view = memoryview(chunk)
        while view:
            view = view[os.write(fd, view) :]
    os.ftruncate(fd, written)


def _mtime_ns(member: tarfile.TarInfo) -> int:
    mtime_ns = int(Decimal(member.pax_headers.get("mtime", str(member.mtime))) * 10**9)
    if not -(2**62) < mtime_ns < 2**62:
        raise _RefusedError("has an impossible time")
    return mtime_ns


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


def _xattrs_of(headers: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    for key, value in headers.items():
        name = key.removeprefix(XATTR)
        if key.startswith(XATTR) and name.startswith(_XATTRS_KEPT):
            yield name, value.encode("utf-8", "surrogateescape")
