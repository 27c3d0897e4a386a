"""An archive of images (a tar, compressed or not, or a directory) looked into by name, nothing of it ever extracted.

A symbolic link, which older engines write for a layer two images share, is followed among the archive's own
members; nothing can lead outside. Not for what the members mean (`archives.py`).
"""

from __future__ import annotations

import io
import os
import posixpath
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Protocol

from runtime.errors import TareError
from runtime.images import tarstream
from runtime.images.stream import CHUNK_BYTES, RefusedError, compression_of, decompressed

DOCUMENT_BYTES = 4 << 20
ARCHIVE_BYTES = 64 << 30  # the most that is made of a stream: a bomb must not take the whole disk
_MEMBERS = 100_000
_LINKS = 10
_DAMAGED = "the archive is damaged or no archive of images"


class Bundle(Protocol):
    """Files by name."""

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""

    def open(self, name: str) -> IO[bytes]:
        """The file's bytes. Raises TareError when there is none."""


def document(bundle: Bundle, name: str) -> bytes:
    """A small file's content. Raises TareError when there is none or it is too large."""
    with bundle.open(name) as file:
        data = file.read(DOCUMENT_BYTES + 1)
    if len(data) > DOCUMENT_BYTES:
        raise TareError(f"archive member {name[:120]!r}", f"more than {DOCUMENT_BYTES >> 20} MiB", _DAMAGED)
    return data


class DirectoryBundle:
    """An OCI layout on disk. Links in it are not followed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        path = self._path(name)
        return path is not None and stat.S_ISREG(path.lstat().st_mode)

    def open(self, name: str) -> IO[bytes]:
        """The file's bytes. Raises TareError when there is none."""
        path = self._path(name)
        if path is None or not stat.S_ISREG(path.lstat().st_mode):
            raise _absent(name)
        return path.open("rb")

    def _path(self, name: str) -> Path | None:
        path = self._directory
        for part in _clean(name).split("/"):
            path = path / part
            if path.is_symlink() or not path.exists():
                return None
        return path


class TarBundle:
    """An uncompressed tar in a file that can be read anywhere."""

    def __init__(self, archive: IO[bytes]) -> None:
        self._fd = archive.fileno()
        self._members: dict[str, tuple[int, int]] = {}
        self._links: dict[str, str] = {}
        source = _Positioned(self._fd)
        try:
            for count, member in enumerate(tarstream.TarStream(source), 1):
                if count > _MEMBERS:
                    raise TareError("archive", f"more than {_MEMBERS} members", _DAMAGED)
                self._note(member, source.at)
        except RefusedError as error:
            raise TareError("archive", f"not a tar: it {error}", _DAMAGED) from error
        if not source.at:
            raise TareError("archive", "not a tar: it is empty", _DAMAGED)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return self._find(name) is not None

    def open(self, name: str) -> IO[bytes]:
        """The file's bytes. Raises TareError when there is none."""
        found = self._find(name)
        if found is None:
            raise _absent(name)
        return io.BufferedReader(_Window(self._fd, *found), CHUNK_BYTES)

    def _note(self, member: tarstream.Member, offset: int) -> None:
        name = _clean(member.name)
        self._members.pop(name, None)  # the last of a name counts, as when unpacking
        self._links.pop(name, None)
        if member.kind == tarstream.REGULAR:
            if member.sparse is None:
                self._members[name] = (offset, member.size)
        elif member.kind == tarstream.SYMLINK:
            self._links[name] = posixpath.join(posixpath.dirname(name), member.linkname)
        elif member.kind == tarstream.LINK:
            self._links[name] = member.linkname
        elif member.kind != tarstream.DIRECTORY:
            raise TareError(f"archive member {member.name[:120]!r}", "neither a file nor a directory", _DAMAGED)

    def _find(self, name: str) -> tuple[int, int] | None:
        name = _clean(name)
        for _ in range(_LINKS):
            if name in self._members:
                return self._members[name]
            if name not in self._links:
                return None
            name = _clean(self._links[name])
        return None


class _Positioned:
    """A file's bytes as an archive's, from its beginning; what nobody wants is not read."""

    def __init__(self, fd: int) -> None:
        self._fd, self.at = fd, 0
        self._end = os.fstat(fd).st_size

    def some(self, size: int) -> memoryview:
        """At least one and at most `size` bytes; empty at the end."""
        data = os.pread(self._fd, min(size, CHUNK_BYTES), self.at)
        self.at += len(data)
        return memoryview(data)

    def exactly(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        parts = []
        while size and (part := self.some(size)):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises RefusedError when there are fewer."""
        if size > self._end - self.at:
            raise RefusedError("ends in the middle of a file")
        self.at += size


class _Window(io.RawIOBase):
    """Some bytes of a file, by position: several may be read side by side."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd, self._at, self._end = fd, offset, offset + size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = os.pread(self._fd, min(len(view), self._end - self._at), self._at)
        if not data and self._at < self._end:
            raise TareError("archive", "it ends in the middle of a file", _DAMAGED)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


@contextmanager
def opened(source: Path | IO[bytes], work: Path, limit_bytes: int = ARCHIVE_BYTES) -> Iterator[Bundle]:
    """The archive in a file, a directory, or a stream; what is compressed or cannot be sought goes through `work`.

    Raises TareError when it is damaged, not there, or would be more than `limit_bytes` in `work`.
    """
    if isinstance(source, Path) and source.is_dir():
        yield DirectoryBundle(source)
        return
    try:
        stream = source.open("rb") if isinstance(source, Path) else source
    except OSError as error:
        raise TareError(f"archive {source}", error.strerror or "cannot be read", "is the path right?") from error
    try:
        head = stream.read(512)
        compression = compression_of(head)
        if not compression and isinstance(source, Path):
            stream.seek(0)
            yield TarBundle(stream)
            return
        with (work / "archive.tar").open("w+b") as plain:
            for chunk in decompressed(_chunks(head, stream), compression):
                limit_bytes -= plain.write(chunk)
                if limit_bytes < 0:
                    raise RefusedError("it is larger than the bound for an archive")
            plain.flush()
            plain.seek(0)
            yield TarBundle(plain)
    except RefusedError as error:
        raise TareError("archive", str(error), _DAMAGED) from error
    finally:
        if isinstance(source, Path):
            stream.close()


def _chunks(head: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    data = head
    while data:
        yield data
        data = stream.read(CHUNK_BYTES)


def _clean(name: str) -> str:
    """A member's name as a path below the archive's root. Raises TareError for one that leads outside."""
    clean = posixpath.normpath(name)
    if clean.startswith(("/", "../")) or clean == ".." or "\0" in clean:
        raise TareError(f"archive member {name[:120]!r}", "its path leaves the archive", _DAMAGED)
    return clean


def _absent(name: str) -> TareError:
    return TareError(f"archive member {name[:120]!r}", "missing", _DAMAGED)
