"""Whether a disk can be booted by UEFI firmware: an EFI system partition, by what the disk's first bytes say. Pure.

Not for writing partition tables (`disk`). Formats: UEFI specification, 5.2 (MBR) and 5.3 (GPT).
"""

from __future__ import annotations

import struct
from typing import Final

HEAD_BYTES: Final = 1 << 20
"""So much of a disk's beginning holds every usual table."""
_SECTOR: Final = 512
_MBR_TABLE: Final = 446
_MBR_EFI: Final = 0xEF
_EFI_SYSTEM: Final = bytes.fromhex("28732ac11ff8d211ba4b00a0c93ec93b")  # C12A7328-F81F-11D2-BA4B-00A0C93EC93B
_GPT_PLACE = struct.Struct("<QII")  # where the entries begin, how many there are, the size of one
_GPT_PLACE_AT: Final = 72
_ENTRY_BYTES_MIN: Final = 128


def has_efi_system(head: bytes) -> bool:
    """Whether the disk that begins with `head` has an EFI system partition, in a GPT or in an MBR."""
    if head[510:512] != b"\x55\xaa":
        return False
    if any(head[_MBR_TABLE + 16 * number + 4] == _MBR_EFI for number in range(4)):
        return True
    table = head[_SECTOR : 2 * _SECTOR]
    if not table.startswith(b"EFI PART"):
        return False
    first, count, size = _GPT_PLACE.unpack_from(table, _GPT_PLACE_AT)
    if size < _ENTRY_BYTES_MIN:
        return False
    places = range(first * _SECTOR, min(first * _SECTOR + count * size, len(head)), size)
    return any(head[at : at + len(_EFI_SYSTEM)] == _EFI_SYSTEM for at in places)
