"""A file with holes as a tar holds it: GNU's PAX format 1.0, the map before the data.

Not for reading one (`tarstream.py`).
"""

from __future__ import annotations

import errno
import io
import os
import tarfile

_WORTH_BYTES = 64 << 10  # a header costs more than smaller holes save
_BLOCK = 512

Part = tuple[int, int]


def parts_of(fd: int, size_bytes: int) -> list[Part]:
    """The (offset, length) of what a file's file system keeps of it."""
    parts, at = [], 0
    while at < size_bytes:
        try:
            begin = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            break  # a hole to the end
        at = min(os.lseek(fd, begin, os.SEEK_HOLE), size_bytes)
        parts.append((begin, at - begin))
    return parts


def with_holes(member: tarfile.TarInfo, fd: int) -> io.BufferedReader | None:
    """Make `member`, of the file behind `fd`, sparse and return its content; None if its holes are not worth it."""
    parts = parts_of(fd, member.size)
    os.lseek(fd, 0, os.SEEK_SET)  # as it was: the caller may read it all
    kept_bytes = sum(length for _, length in parts)
    if member.size - kept_bytes < _WORTH_BYTES:
        return None
    text = "".join(f"{number}\n" for number in (len(parts), *(number for part in parts for number in part))).encode()
    text += bytes(-len(text) % _BLOCK)
    sparse = {"major": "1", "minor": "0", "name": member.name, "realsize": str(member.size)}
    member.pax_headers = {**member.pax_headers, **{f"GNU.sparse.{key}": value for key, value in sparse.items()}}
    member.size = len(text) + kept_bytes
    return io.BufferedReader(_Content(fd, text, parts))


class _Content(io.RawIOBase):
    """The map, then every part."""

    def __init__(self, fd: int, text: bytes, parts: list[Part]) -> None:
        super().__init__()
        self._fd, self._text, self._parts = fd, text, parts[::-1]

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if self._text:
            data, self._text = self._text[: len(view)], self._text[len(view) :]
        elif self._parts:
            offset, length = self._parts.pop()
            data = os.pread(self._fd, min(length, len(view)), offset)
            if len(data) < length and data:
                self._parts.append((offset + len(data), length - len(data)))
        else:
            return 0
        view[: len(data)] = data
        return len(data)
