"""Which addresses of a subnet are taken, and by whom: one file, exact after any crash.

To take an address reads a bitmap of 128 bytes and one record, whatever the number of containers.
The caller holds the network's lock. What is taken in one boot is void in the next.

The file: a header; then, for each segment, a bitmap of its slots and a record (owner) per slot. A bit
is the truth: the record is written before it is set, and stays after it is cleared.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from runtime.errors import TareError
from runtime.network.subnet import SEGMENT_BITS, Subnet, shown
from runtime.record import ordered_record

_OWNER_BYTES: Final = 32
_SLOTS: Final = 1 << SEGMENT_BITS
_BITMAP_BYTES: Final = _SLOTS // 8
_CURSOR: Final = struct.Struct("=H")
_SEGMENT_BYTES: Final = _BITMAP_BYTES + _CURSOR.size + _SLOTS * _OWNER_BYTES
_HEADER: Final = struct.Struct("=8sIB36s")
_HEADER_BYTES: Final = 64
_MAGIC: Final = b"tarepl1\n"
_FIRST: Final = 2  # 0 is the network's address, 1 the gateway's


@ordered_record
class Taken:
    """An address that was taken just now, its segment, and who had it last ("" if nobody did)."""

    address: bytes
    segment: int
    former: str


class Pool:
    """The open file. Owners are named by their first 32 characters."""

    def __init__(self, path: Path, subnet: Subnet, boot: str) -> None:
        self._path, self._subnet = path, subnet
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        header = _HEADER.pack(_MAGIC, subnet.base, subnet.prefix_bits, boot.encode())
        if os.pread(self._fd, _HEADER.size, 0) != header:
            # Another boot's, another subnet's, or torn at birth.
            try:
                os.ftruncate(self._fd, 0)
                os.ftruncate(self._fd, _HEADER_BYTES + subnet.segments * _SEGMENT_BYTES)
                os.pwrite(self._fd, header, 0)
            except OSError:
                self.close()
                path.unlink()  # whoever gives something back would try to make it whole again
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._fd)

    def take(self, owner: str) -> Taken:
        """An address for `owner`: the first segment with room, in it the slot that has been free longest.

        Raises TareError when all are taken.
        """
        for segment in range(self._subnet.segments):
            bitmap = self._bitmap(segment)
            slot = _free(bitmap, self._cursor(segment), self._subnet.segment_size - 1)
            if slot is None:
                continue
            former = self._owner(segment, slot)
            os.pwrite(self._fd, owner.encode()[:_OWNER_BYTES].ljust(_OWNER_BYTES, b"\0"), _record(segment, slot))
            os.pwrite(self._fd, _CURSOR.pack(slot + 1), _start(segment) + _BITMAP_BYTES)
            self._mark(segment, slot, bitmap | 1 << slot)
            return Taken(self._subnet.address(segment, slot), segment, former)
        count = self._subnet.segments * self._subnet.capacity
        raise TareError(
            f"address pool {self._subnet}",
            f"all {count} addresses are taken",
            "remove containers, run: tare clean, or take a larger subnet",
        )

    def release(self, owner: str) -> list[bytes]:
        """Free every address of `owner` and return them."""
        freed = []
        for segment, slot, name in list(self._taken()):
            if name == owner[:_OWNER_BYTES]:
                self._mark(segment, slot, self._bitmap(segment) & ~(1 << slot))
                freed.append(self._subnet.address(segment, slot))
        return freed

    def free(self, owner: str, address: bytes) -> bool:
        """Free `address` if it is `owner`'s; whether it was. No search, unlike `release`."""
        segment, slot = self._subnet.place(address)
        bitmap = self._bitmap(segment)
        if not bitmap >> slot & 1 or self._owner(segment, slot) != owner[:_OWNER_BYTES]:
            return False
        self._mark(segment, slot, bitmap & ~(1 << slot))
        return True

    def leases(self) -> list[tuple[str, str]]:
        """Every (address, owner), in order of the addresses."""
        return [(shown(self._subnet.address(segment, slot)), name) for segment, slot, name in self._taken()]

    def used_segments(self) -> set[int]:
        """The segments in which an address is taken."""
        return {segment for segment in range(self._subnet.segments) if self._bitmap(segment)}

    def _taken(self) -> Iterator[tuple[int, int, str]]:
        for segment in range(self._subnet.segments):
            bitmap = self._bitmap(segment)
            while bitmap:
                slot = (bitmap & -bitmap).bit_length() - 1
                bitmap &= bitmap - 1
                yield segment, slot, self._owner(segment, slot)

    def _bitmap(self, segment: int) -> int:
        return int.from_bytes(os.pread(self._fd, _BITMAP_BYTES, _start(segment)), "little")

    def _mark(self, segment: int, slot: int, bitmap: int) -> None:
        """One byte, one write: a crash leaves the slot either free or taken."""
        byte = slot // 8
        os.pwrite(self._fd, bytes([bitmap >> (8 * byte) & 0xFF]), _start(segment) + byte)

    def _cursor(self, segment: int) -> int:
        slot: int = _CURSOR.unpack(os.pread(self._fd, _CURSOR.size, _start(segment) + _BITMAP_BYTES))[0]
        return slot

    def _owner(self, segment: int, slot: int) -> str:
        return os.pread(self._fd, _OWNER_BYTES, _record(segment, slot)).rstrip(b"\0").decode(errors="replace")


def _free(bitmap: int, cursor: int, end: int) -> int | None:
    """The first slot in [cursor, end) whose bit is clear, else the first in [2, cursor); None when there is none."""
    room = ((1 << end) - (1 << _FIRST)) & ~bitmap
    behind = room >> cursor << cursor
    chosen = behind or room
    return (chosen & -chosen).bit_length() - 1 if chosen else None


def _start(segment: int) -> int:
    return _HEADER_BYTES + segment * _SEGMENT_BYTES


def _record(segment: int, slot: int) -> int:
    return _start(segment) + _BITMAP_BYTES + _CURSOR.size + slot * _OWNER_BYTES
