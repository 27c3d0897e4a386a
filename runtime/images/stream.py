"""A layer's bytes on their way from blob to archive: decompressed, hashed on both sides, bounded, a thread ahead.

Decompressing and hashing let go of the interpreter's lock, so they run beside the making of files. Not for
what the bytes mean (`tarstream.py`). Formats: gzip (RFC 1952), zstd (RFC 8878).
"""

from __future__ import annotations

import hashlib
import queue
import threading
import zlib
from collections.abc import Iterator
from contextlib import suppress
from typing import IO, Self

from runtime.images.layout import GZIP, ZSTD
from runtime.images.zstdframes import Frames

CHUNK_BYTES = 1 << 18
_AHEAD = 16  # chunks that may wait
_ZSTD_WINDOW_BYTES = 128 << 20  # what the zstd program accepts without being asked


class RefusedError(Exception):
    """A member or archive that must not be unpacked; the message says why."""


class Feed:
    """The decompressed bytes of `blob`, to be read in order; a context manager, as a thread works behind it.

    Raises RefusedError when either side is larger than `limit_bytes` or damaged; OSError as reading `blob` does.
    """

    def __init__(self, blob: IO[bytes], compression: str, limit_bytes: int) -> None:
        self._blob, self._compression, self._limit_bytes = blob, compression, limit_bytes
        self._outer, self._inner = hashlib.sha256(), hashlib.sha256()
        self._chunks: queue.Queue[bytes | BaseException | None] = queue.Queue(_AHEAD)
        self._stopped = False
        self._current = memoryview(b"")
        self._ended = False
        self._thread = threading.Thread(target=self._work, name="layer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        while self._thread.is_alive():
            with suppress(queue.Empty):
                self._chunks.get(timeout=0.1)
        self._thread.join()

    def some(self, size: int) -> memoryview:
        """At least one and at most `size` bytes; empty at the end."""
        if not self._current and not self._ended:
            chunk = self._chunks.get()
            if isinstance(chunk, BaseException):
                self._ended = True
                raise chunk
            self._ended = chunk is None
            self._current = memoryview(chunk or b"")
        part, self._current = self._current[:size], self._current[size:]
        return part

    def exactly(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        part = self.some(size)
        if len(part) == size:
            return bytes(part)
        parts = [part]
        left = size - len(part)
        while left and (part := self.some(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises RefusedError when there are fewer."""
        while size:
            part = self.some(size)
            if not part:
                raise RefusedError("ends in the middle of a file")
            size -= len(part)

    def digests(self) -> tuple[str, str]:
        """(blob's digest, content's digest), reading to the end: what follows an archive belongs to them as well."""
        while self.some(CHUNK_BYTES):
            pass
        inner = self._inner if self._compression else self._outer
        return f"sha256:{self._outer.hexdigest()}", f"sha256:{inner.hexdigest()}"

    def _work(self) -> None:
        try:
            for chunk in self._content():
                if self._stopped:
                    return
                self._chunks.put(chunk)
            self._chunks.put(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again where the bytes are read
            self._chunks.put(error)

    def _content(self) -> Iterator[bytes]:
        if not self._compression:
            yield from self._raw()
            return
        left_bytes = self._limit_bytes
        for chunk in _DECOMPRESS[self._compression](self._raw()):
            left_bytes -= len(chunk)
            if left_bytes < 0:
                raise RefusedError("is larger than the bound for a layer")
            self._inner.update(chunk)
            yield chunk

    def _raw(self) -> Iterator[bytes]:
        left_bytes = self._limit_bytes
        size = CHUNK_BYTES if not self._compression else CHUNK_BYTES // 4
        while data := self._blob.read(size):
            left_bytes -= len(data)
            if left_bytes < 0:
                raise RefusedError("is larger than the bound for a layer")
            self._outer.update(data)
            yield data


def compression_of(head: bytes) -> str:
    """What the first bytes of an archive say it is compressed with: "", GZIP or ZSTD."""
    if head.startswith(b"\x1f\x8b"):
        return GZIP
    return ZSTD if head.startswith(b"\x28\xb5\x2f\xfd") else ""


def decompressed(chunks: Iterator[bytes], compression: str) -> Iterator[bytes]:
    """`chunks` decompressed, in pieces of at most CHUNK_BYTES. Raises RefusedError when they are damaged."""
    return _DECOMPRESS[compression](chunks) if compression else chunks


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Every member of a gzip file; zeros may follow the last."""
    member, ended, any_member = zlib.decompressobj(31), False, False
    try:
        for chunk in chunks:
            data = chunk
            while True:
                if ended:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    member, ended = zlib.decompressobj(31), False
                if out := member.decompress(data, CHUNK_BYTES):
                    yield out
                data = member.unconsumed_tail
                if member.eof:
                    data, ended, any_member = member.unused_data, True, True
                elif not data and not out:
                    break
    except zlib.error as error:
        raise RefusedError(f"is no gzip: {error}") from error
    if not (ended and any_member):
        raise RefusedError("is a gzip that ends too early")


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Every frame of a zstd file."""
    import zstandard

    engine, frames = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES), Frames()
    try:
        with engine.stream_reader(_Chunks(frames.watched(chunks)), read_across_frames=True) as reader:  # type: ignore[arg-type]
            while out := reader.read(CHUNK_BYTES):
                yield out
    except zstandard.ZstdError as error:
        raise RefusedError(f"is no zstd: {error}") from error
    if not frames.whole:
        raise RefusedError("is a zstd that ends too early")


class _Chunks:
    """What a stream reader reads from: each read gives one chunk."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks

    def read(self, size: int = -1) -> bytes:
        return next(self._chunks, b"")


_DECOMPRESS = {GZIP: _gunzip, ZSTD: _unzstd}
