"""The members of a tar archive, read from a stream: ustar, GNU and PAX, as layers are written.

The standard library's reader costs three times as much for each member, which is most of what unpacking
costs. Nothing here touches a file system (`layers.py`). Formats: POSIX.1-2008 pax, GNU tar's manual.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Protocol

from runtime.images.stream import RefusedError

BLOCK = 512
REGULAR, LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO = b"0", b"1", b"2", b"3", b"4", b"5", b"6"
_ALSO_REGULAR = (b"\0", b"7")
_PAX_LOCAL, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK, _GNU_SPARSE = b"x", b"g", b"L", b"K", b"S"
_SOLARIS_LOCAL = b"X"
_HEADER_BYTES = 1 << 20  # the most that extended headers may hold for one member: it is kept in memory
_GLOBALS = 100  # each is looked at again for every member
_TIME = re.compile(rb"-?\d{1,20}(\.\d{0,30})?")
_SPARSE_PARTS = 1 << 17
_ZERO = bytes(BLOCK)
XATTR = b"SCHILY.xattr."


@dataclass(slots=True)
class Member:
    """One member. `size` is of its bytes in the archive, `logical_bytes` of the file they make, which differ if sparse.

    `sparse` are the (offset, length) of what the archive holds of a sparse file; None for any other.
    `map_first` is for the reader itself: that map stands before the content.
    """

    name: str
    kind: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    linkname: str = ""
    device: tuple[int, int] = (0, 0)
    logical_bytes: int = 0
    xattrs: list[tuple[str, bytes]] = field(default_factory=list)
    sparse: list[tuple[int, int]] | None = None
    map_first: bool = False


@dataclass(slots=True)
class _Pending:
    """What extended headers said of the member to come."""

    name: bytes | None = None
    linkname: bytes | None = None
    records: list[tuple[bytes, bytes]] = field(default_factory=list)
    size: int = 0


class Source(Protocol):
    """Where an archive's bytes come from, in their order."""

    def some(self, size: int) -> memoryview:
        """At least one and at most `size` bytes; empty at the end."""

    def exactly(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""

    def skip(self, size: int) -> None:
        """Pass over `size` bytes. Raises RefusedError when there are fewer."""


class TarStream:
    """Iterates over members; the content of the current one is read with `content()` or skipped by itself.

    Raises RefusedError for what is no archive, OSError as the feed does.
    """

    def __init__(self, feed: Source) -> None:
        self._feed = feed
        self._left = self._padding = 0
        self._globals: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        pending = _Pending()
        while (header := self._next_header()) is not None:
            kind = header[156:157]
            if kind in (_PAX_LOCAL, _PAX_GLOBAL, _SOLARIS_LOCAL, _LONG_NAME, _LONG_LINK):
                self._extended(kind, _number(header[124:136]), pending)
                continue
            yield self._member(header, kind, pending)
            pending = _Pending()

    def content(self) -> Iterator[memoryview]:
        """The current member's bytes, in pieces. Raises RefusedError when the archive ends in the middle."""
        while self._left:
            part = self._feed.some(self._left)
            if not part:
                raise RefusedError("ends in the middle of a file")
            self._left -= len(part)
            yield part

    def _next_header(self) -> bytes | None:
        self._left += self._padding
        self._padding = 0
        self._feed.skip(self._left)
        self._left = 0
        header = self._feed.exactly(BLOCK)
        if not header or header == _ZERO:
            return None
        if len(header) < BLOCK:
            raise RefusedError("ends in the middle of a header")
        check = header[148:156]
        said = _octal(check)
        if sum(header) - sum(check) + 256 != said and _signed_sum(header) != said:
            raise RefusedError("has a damaged header")
        return header

    def _block(self) -> bytes:
        data = self._feed.exactly(BLOCK)
        if len(data) < BLOCK:
            raise RefusedError("ends in the middle of a header")
        return data

    def _extended(self, kind: bytes, size: int, pending: _Pending) -> None:
        pending.size += size + BLOCK
        if size < 0 or pending.size > _HEADER_BYTES:
            raise RefusedError("has a header of impossible size")
        padded = size + -size % BLOCK
        data = self._feed.exactly(padded)
        if len(data) < padded:
            raise RefusedError("ends in the middle of a header")
        data = data[:size]
        if kind == _LONG_NAME:
            pending.name = data.partition(b"\0")[0]
        elif kind == _LONG_LINK:
            pending.linkname = data.partition(b"\0")[0]
        elif kind == _PAX_GLOBAL:
            self._globals.update(_records(data))
            if len(self._globals) > _GLOBALS:
                raise RefusedError("has too many global headers")
        else:
            pending.records += _records(data)

    def _member(self, header: bytes, kind: bytes, pending: _Pending) -> Member:
        """A member of its header and of what was said before it."""
        name, linkname = header[:100].partition(b"\0")[0], header[157:257].partition(b"\0")[0]
        if header[257:263] == b"ustar\0" and header[345]:
            name = header[345:500].partition(b"\0")[0] + b"/" + name
        member = Member(
            name="",
            kind=REGULAR if kind in _ALSO_REGULAR else kind,
            mode=_number(header[100:108]),
            uid=_number(header[108:116]),
            gid=_number(header[116:124]),
            size=_number(header[124:136]),
            mtime_ns=_number(header[136:148]) * 10**9,
        )
        if kind in (CHARACTER, BLOCK_DEVICE):
            member.device = (_number(header[329:337]), _number(header[337:345]))
        if kind == _GNU_SPARSE:
            member.kind = REGULAR
            member.sparse, member.logical_bytes = self._gnu_sparse(header)
        name, linkname = pending.name or name, pending.linkname or linkname
        if pending.records or self._globals:
            name, linkname = _apply([*self._globals.items(), *pending.records], member, name, linkname)
        member.name, member.linkname = (
            name.decode("utf-8", "surrogateescape"),
            linkname.decode("utf-8", "surrogateescape"),
        )
        if member.size < 0:
            raise RefusedError("has a header of impossible size")
        if kind == b"\0" and name.endswith(b"/"):
            member.kind = DIRECTORY  # before POSIX there was no kind for directories
        # Links and the like have no content, whatever their header's size says of the file that they lead to.
        if member.kind in (LINK, SYMLINK, CHARACTER, BLOCK_DEVICE, DIRECTORY, FIFO):
            member.size = 0
        self._left, self._padding = member.size, -member.size % BLOCK
        if member.sparse is None:
            member.logical_bytes = member.size
        elif member.map_first:
            self._pax_sparse_map(member)
        return member

    def _gnu_sparse(self, header: bytes) -> tuple[list[tuple[int, int]], int]:
        """GNU's old format: the map stands in the header and in further blocks."""
        parts = _sparse_entries(header[386:482])
        more = header[482]
        while more:
            block = self._block()
            parts += _sparse_entries(block[:504])
            more = block[504]
            if len(parts) > _SPARSE_PARTS:
                raise RefusedError("has too many holes")
        return parts, _number(header[483:495])

    def _pax_sparse_map(self, member: Member) -> None:
        """GNU's PAX format 1.0: the map is the beginning of the content, numbers in lines, padded to a block."""
        numbers = self._map_numbers(member)
        count = next(numbers)
        if count > _SPARSE_PARTS:
            raise RefusedError("has too many holes")
        member.sparse = [(next(numbers), next(numbers)) for _ in range(count)]

    def _map_numbers(self, member: Member) -> Iterator[int]:
        text = b""
        while self._left >= BLOCK and len(text) < BLOCK:
            text += self._block()
            self._left -= BLOCK
            member.size -= BLOCK
            *lines, text = text.split(b"\n")
            yield from map(_decimal, lines)
        raise RefusedError("has a damaged map of holes")


def _apply(records: list[tuple[bytes, bytes]], member: Member, name: bytes, linkname: bytes) -> tuple[bytes, bytes]:
    """Put PAX records over what the header says; return the name and the link's target."""
    sparse = False
    for key, value in records:
        if key == b"path":
            name = value
        elif key == b"linkpath":
            linkname = value
        elif key == b"mtime":
            member.mtime_ns = _time_ns(value)
        elif key in (b"size", b"uid", b"gid"):
            setattr(member, key.decode(), _decimal(value))
        elif key.startswith(XATTR):
            member.xattrs.append((key[len(XATTR) :].decode("utf-8", "surrogateescape"), value))
        elif key.startswith(b"GNU.sparse."):
            sparse = True
    if sparse:
        name = _apply_sparse(records, member) or name
    return name, linkname


def _apply_sparse(records: list[tuple[bytes, bytes]], member: Member) -> bytes | None:
    """Make `member` sparse as GNU's PAX records say, formats 0.0, 0.1 and 1.0; return its true name if they do."""
    numbers = [_decimal(value) for key, value in records if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes")]
    said = dict(records)
    if b"GNU.sparse.map" in said:
        numbers = [_decimal(number) for number in said[b"GNU.sparse.map"].split(b",") if number]
    real_bytes = said.get(b"GNU.sparse.realsize", said.get(b"GNU.sparse.size"))
    if real_bytes is None or len(numbers) % 2 or len(numbers) > 2 * _SPARSE_PARTS:
        raise RefusedError("has a damaged map of holes")
    member.sparse = list(zip(numbers[::2], numbers[1::2], strict=True))
    member.logical_bytes, member.map_first = _decimal(real_bytes), said.get(b"GNU.sparse.major") == b"1"
    return said.get(b"GNU.sparse.name")


def _records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) of an extended header: `LENGTH KEY=VALUE newline`, one after the other."""
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        length = _decimal(data[at:space]) if space > at else 0
        if length < 5 or at + length > len(data) or data[at + length - 1] != 10:
            if not data[at:].strip(b"\0"):
                return
            raise RefusedError("has a damaged extended header")
        key, equals, value = data[space + 1 : at + length - 1].partition(b"=")
        if not equals:
            raise RefusedError("has a damaged extended header")
        yield key, value
        at += length


def _sparse_entries(table: bytes) -> list[tuple[int, int]]:
    entries = []
    for at in range(0, len(table) - 23, 24):
        if not table[at] and not table[at + 12]:
            break
        entries.append((_number(table[at : at + 12]), _number(table[at + 12 : at + 24])))
    return [entry for entry in entries if entry[1]]


def _octal(text: bytes) -> int:
    try:
        return int(text.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        raise RefusedError("has a damaged header") from None


def _number(text: bytes) -> int:
    """A header's number: octal digits, or GNU's base 256 when the first bit is set."""
    if text[0] < 0x80:
        return _octal(text)
    value = int.from_bytes(text[1:], "big")
    return value - (1 << 8 * (len(text) - 1)) if text[0] == 0xFF else value


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 20:
        raise RefusedError(f"has a header with no number: {text[:20]!r}")
    return int(text)


def _time_ns(text: bytes) -> int:
    if _TIME.fullmatch(text) is None:  # an exponent would make a number as long as it likes
        raise RefusedError(f"has an impossible time: {text[:20]!r}")
    return int(Decimal(text.decode()) * 10**9)


def _signed_sum(header: bytes) -> int:
    """The check sum as some old programs made it, of signed characters."""
    rest = header[:148] + header[156:]
    return sum(byte - 256 if byte > 127 else byte for byte in rest) + 256
