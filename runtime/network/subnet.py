"""A subnet cut into segments, one a bridge: which addresses there are, and what follows from one. Pure.

A bridge of Linux takes 1,023 ports. So a segment is a /22, whose 1,021 usable addresses are the
bridge's ports, and a /16 holds 64 of them. A smaller subnet is one segment.
"""

from __future__ import annotations

import socket
from typing import Final

from runtime.errors import UsageError
from runtime.record import ordered_record

SEGMENT_BITS: Final = 10
"""Address bits of the largest segment."""
_WIDEST, _NARROWEST = 8, 30
_MAC_PREFIX: Final = b"\x02\x54"  # locally administered; the address makes the rest


@ordered_record
class Subnet:
    """IPv4 addresses `base` (as a number) / `prefix_bits`, by their offset in it."""

    base: int
    prefix_bits: int

    @classmethod
    def parse(cls, text: str) -> Subnet:
        """Read `10.87.0.0/16`. Raises UsageError for anything else, host bits and unusable sizes included."""
        address, _, bits = text.partition("/")
        try:
            base = int.from_bytes(socket.inet_pton(socket.AF_INET, address))
        except (OSError, ValueError) as error:
            raise UsageError(f"subnet {text!r}", "not an IPv4 network", "write it as 10.87.0.0/16") from error
        if not (bits.isascii() and bits.isdigit() and _WIDEST <= int(bits) <= _NARROWEST):
            raise UsageError(f"subnet {text!r}", f"the prefix must lie between /{_WIDEST} and /{_NARROWEST}", "try /16")
        subnet = cls(base, int(bits))
        if base & (subnet.size - 1):
            network = shown(packed(base & ~(subnet.size - 1)))
            raise UsageError(f"subnet {text!r}", "it has host bits set", f"did you mean {network}/{bits}?")
        return subnet

    def __str__(self) -> str:
        return f"{shown(packed(self.base))}/{self.prefix_bits}"

    @property
    def size(self) -> int:
        """How many addresses it spans, usable or not."""
        return 1 << (32 - self.prefix_bits)

    @property
    def segment_size(self) -> int:
        """How many addresses one segment spans."""
        return min(self.size, 1 << SEGMENT_BITS)

    @property
    def segments(self) -> int:
        """How many segments there are."""
        return self.size // self.segment_size

    @property
    def segment_prefix_bits(self) -> int:
        """The prefix of one segment."""
        return max(self.prefix_bits, 32 - SEGMENT_BITS)

    @property
    def capacity(self) -> int:
        """How many containers fit into one segment: all but its network, gateway and broadcast addresses."""
        return self.segment_size - 3

    def gateway(self, segment: int) -> bytes:
        """The bridge's own address: the segment's first."""
        return packed(self.base + segment * self.segment_size + 1)

    def address(self, segment: int, slot: int) -> bytes:
        """The address of a slot: 2 is the first that a container may get."""
        return packed(self.base + segment * self.segment_size + slot)

    def place(self, address: bytes) -> tuple[int, int]:
        """The (segment, slot) of an address."""
        return divmod(int.from_bytes(address) - self.base, self.segment_size)

    def overlaps(self, network: int, prefix_bits: int) -> bool:
        """Whether it shares an address with another network."""
        mask = (0xFFFFFFFF << (32 - min(self.prefix_bits, prefix_bits))) & 0xFFFFFFFF
        return self.base & mask == network & mask


@ordered_record
class Route:
    """An IPv4 route: its network (as a number), its prefix, the index of the link it leaves by (0: none)."""

    network: int
    prefix_bits: int
    link: int


def packed(address: int) -> bytes:
    """An address as the kernel's four bytes."""
    return address.to_bytes(4)


def shown(address: bytes) -> str:
    """An address as people write it."""
    return socket.inet_ntop(socket.AF_INET, address)


def hardware(address: bytes) -> bytes:
    """The MAC address that belongs to an address: the same whenever it is used again, so no cache goes stale."""
    return _MAC_PREFIX + address
