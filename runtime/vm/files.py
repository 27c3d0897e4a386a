"""Files out of and into a guest: the host's end of the agent's file commands (their format: `runtime/guest/files.h`).

What comes from a guest may be made up: paths that lead outside are refused, as are lengths beyond the agent's own and
more bytes than there is room for. Not for Docker's rules (`files.placing`), nor for how a command is run inside.
"""

from __future__ import annotations

import io
import os
import stat
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import BinaryIO, Final

from runtime.errors import TareError, printable
from runtime.files.copying import KEPT, Entry
from runtime.files.placing import Paths, leads_on
from runtime.files.tarring import inside

PROGRAM: Final = ("/proc/self/exe", "--files")  # the agent runs itself
_ENTRY: Final = struct.Struct("<IIIIQqIIIII")
_LENGTH: Final = struct.Struct("<I")
_PATH_MAX: Final = 4095
_ATTRIBUTES_MAX: Final = 256 << 10
_CHUNK_BYTES: Final = 256 << 10


def look(path: str) -> tuple[str, ...]:
    """The command that tells what is at `path`; its output is `GuestSide`'s business."""
    return (*PROGRAM, "look", path)


def send(path: str, *, follow: bool = False) -> tuple[str, ...]:
    """The command whose output are the entries of `path`."""
    return (*PROGRAM, "send", *(("-L",) if follow or leads_on(path) else ()), path)


def receive(directory: str) -> tuple[str, ...]:
    """The command that takes entries into `directory`."""
    return (*PROGRAM, "receive", directory)


class GuestSide(Paths):
    """A guest's side of a copy. `ask` gives the output of a command inside."""

    def __init__(self, label: str, ask: Callable[[tuple[str, ...]], bytes]) -> None:
        self.label = label
        self._ask = ask

    def is_directory(self, path: str) -> bool | None:
        """As the guest says."""
        return {"d": True, "f": False}.get(self._look(path)[:1])

    def link(self, path: str) -> str | None:
        """As the guest says."""
        return self._look(path)[1:] or None

    def _look(self, path: str) -> str:
        return os.fsdecode(self._ask(look(absolute(path))))


def absolute(path: str) -> str:
    """A guest's paths begin at its root, as a container's do."""
    return path if path.startswith("/") else f"/{path}"


class EntrySink:
    """Entries are written to `out`, for a command that `receive`s them."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def add(self, entry: Entry) -> None:
        """Write the entry. Raises TareError when it became shorter meanwhile, or cannot be told."""
        path, link = os.fsencode(entry.path), os.fsencode(entry.link)
        attributes = b"".join(
            os.fsencode(name) + b"\0" + _LENGTH.pack(len(value)) + value for name, value in entry.attributes
        )
        if max(len(path), len(link)) > _PATH_MAX or len(attributes) > _ATTRIBUTES_MAX:
            raise TareError(f"copy of {entry.path[:80]}", "its name or attributes are too long", "leave it out")
        size = entry.size if stat.S_ISREG(entry.mode) and not entry.hard else 0
        head = (entry.mode, entry.uid, entry.gid, int(entry.hard), size, entry.mtime_ns)
        device = (os.major(entry.device), os.minor(entry.device))
        self._out.write(_ENTRY.pack(*head, *device, len(path), len(link), len(attributes)) + path + link + attributes)
        if size:
            self._pour(entry, size)

    def finish(self) -> None:
        """Say that this was all."""
        self._out.write(bytes(_ENTRY.size))
        self._out.flush()

    def _pour(self, entry: Entry, left: int) -> None:
        """Exactly the bytes that were promised."""
        while left:
            most = min(left, _CHUNK_BYTES)
            chunk = entry.stream.read(most) if entry.stream is not None else os.read(entry.descriptor, most)
            if not chunk:
                raise TareError(f"copy of {entry.path}", "it became shorter while it was read", "try again")
            self._out.write(chunk)
            left -= len(chunk)


def entries(stream: BinaryIO) -> Iterator[Entry]:
    """What a `send` command prints. Raises EarlyEnd, and TareError for what no agent sends."""
    while True:
        mode, uid, gid, hard, size, mtime_ns, major, minor, *lengths = _ENTRY.unpack(_exactly(stream, _ENTRY.size))
        if not mode:
            return
        if max(lengths[:2]) > _PATH_MAX or lengths[2] > _ATTRIBUTES_MAX or hard > 1 or not _known(mode):
            raise _made_up("a malformed entry")
        path, link, attributes = (_exactly(stream, length) for length in lengths)
        if b"\0" in path + link or (size and (hard or not stat.S_ISREG(mode))):
            raise _made_up("a malformed entry")
        content = _Content(stream, size)
        yield Entry(
            path=inside(os.fsdecode(path)),
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime_ns=mtime_ns,
            device=os.makedev(major, minor),
            link=inside(os.fsdecode(link)) if hard else os.fsdecode(link),
            hard=bool(hard),
            attributes=tuple(_attributes(attributes)),
            stream=io.BufferedReader(content) if stat.S_ISREG(mode) and not hard else None,
        )
        content.skip()


def for_host(found: Iterable[Entry], where: str, room_bytes: int, *, owned: bool) -> Iterator[Entry]:
    """Entries as they may become files of this host, on a guest's word; `where` they are there is for users to read.

    Unless they stay `owned` as they are, what would run as its owner does so no more. Raises TareError for a device,
    which would give access to one of the host's, and when all files together have more than `room_bytes`.
    """
    total = 0
    for entry in found:
        name = printable(f"{where}/{entry.path}" if entry.path else where)
        if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
            raise TareError(name, "a device, which a guest may not name on this host", "copy it as an archive: -")
        total += entry.size
        if total > room_bytes:
            raise TareError(name, f"{total} bytes with what came before, and there is room for {room_bytes}")
        yield entry if owned else replace(entry, mode=entry.mode & ~(stat.S_ISUID | stat.S_ISGID))


class EarlyEnd(TareError):
    """What came from the guest ended before it was whole; why is the guest's to tell."""

    def __init__(self) -> None:
        super().__init__("files from the guest", "an early end", "try again")


class _Content(io.RawIOBase):
    """A file's part of the stream."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(min(len(buffer), self._left))
        if not data and self._left and len(buffer):
            raise EarlyEnd
        buffer[: len(data)] = data
        self._left -= len(data)
        return len(data)

    def skip(self) -> None:
        """Pass over what nobody has read."""
        buffer = memoryview(bytearray(_CHUNK_BYTES))
        while self._left:
            self.readinto(buffer)


def _known(mode: int) -> bool:
    kinds = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK)
    return mode >> 16 == 0 and stat.S_IFMT(mode) in kinds


def _attributes(data: bytes) -> Iterator[tuple[str, bytes]]:
    while data:
        name, found, rest = data.partition(b"\0")
        size = _LENGTH.unpack_from(rest)[0] if found and len(rest) >= _LENGTH.size else len(data)
        if size > len(rest) - _LENGTH.size or not os.fsdecode(name).startswith(KEPT):
            raise _made_up("malformed attributes")
        yield os.fsdecode(name), rest[_LENGTH.size : _LENGTH.size + size]
        data = rest[_LENGTH.size + size :]


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise EarlyEnd
    return data


def _made_up(what: str) -> TareError:
    return TareError("files from the guest", what, "try again, unless the guest is not to be trusted")
