"""Whether a zstd file is whole: its frames' headers followed from block to block, nothing decompressed.

A streaming decompressor does not say that its input ended too early. Not for reading what is in the frames
(`stream.py`). Format: RFC 8878.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

_FRAME, _SKIPPABLE = b"\x28\xb5\x2f\xfd", range(0x184D2A50, 0x184D2A60)
_RLE = 1


class Frames:
    """Looks at the chunks of a file as they pass."""

    def __init__(self) -> None:
        self._between = self._lost = False
        self._have = bytearray()
        self._skip = 0
        self._walk = self._frames()
        self._want = next(self._walk)

    @property
    def whole(self) -> bool:
        """Whether what was seen is one frame or more, and nothing beyond."""
        return self._between and not self._skip and not self._have

    def watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The same chunks."""
        for chunk in chunks:
            self._look(chunk)
            yield chunk

    def _look(self, chunk: bytes) -> None:
        at = 0
        while at < len(chunk) and not self._lost:
            if self._skip:
                step = min(self._skip, len(chunk) - at)
                self._skip -= step
            else:
                step = min(self._want - len(self._have), len(chunk) - at)
                self._have += chunk[at : at + step]
            at += step
            self._advance()

    def _advance(self) -> None:
        """Let the walk have what it waits for, and note what it wants next."""
        while not self._skip and len(self._have) == self._want and not self._lost:
            data, self._have = bytes(self._have), bytearray()
            wanted = self._walk.send(data)
            while wanted < 0:  # that many bytes mean nothing to us
                self._skip -= wanted
                wanted = next(self._walk)
            self._want = wanted

    def _frames(self) -> Generator[int, bytes, None]:
        """Yields how many bytes it must see next, or as a negative number how many it need not, then goes on."""
        while True:
            magic = yield 4
            self._between = False
            if int.from_bytes(magic, "little") in _SKIPPABLE:
                size = int.from_bytes((yield 4), "little")
                if size:
                    yield -size
            elif magic == _FRAME:
                yield from self._frame()
            else:  # what this is, the decompressor says
                self._lost = True
                yield 0
            self._between = not self._lost

    def _frame(self) -> Generator[int, bytes, None]:
        descriptor = (yield 1)[0]
        single_segment = bool(descriptor & 0x20)
        size = (int(single_segment), 2, 4, 8)[descriptor >> 6]
        header = int(not single_segment) + (0, 1, 2, 4)[descriptor & 3] + size
        if header:
            yield -header
        last = False
        while not last:
            block = int.from_bytes((yield 3), "little")
            last = bool(block & 1)
            length = 1 if block >> 1 & 3 == _RLE else block >> 3
            if length:
                yield -length
        if descriptor & 4:
            yield -4
