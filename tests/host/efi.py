"""The smallest program that UEFI firmware runs, and a disk that it is found on. No boot loader: see images/disk.py."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from runtime.command import run

INVALID_OPCODE = b"\x0f\x0b"  # ud2
_MIB = 1 << 20
_START, _SIZE = _MIB, 34 * _MIB  # FAT32 begins above 33 MiB, and firmware reads no other for sure
_ALIGN = 0x200
_CODE_AT = 0x1000


def program(code: bytes) -> bytes:
    """`code` as a PE32+ image of one section, for x86-64, that firmware enters at its first byte."""
    header = 0x40 + 4 + 20 + 240 + 40
    assert header <= _ALIGN >= len(code)
    optional = struct.pack("<HBBIIIII", 0x20B, 0, 0, _ALIGN, 0, 0, _CODE_AT, _CODE_AT)
    optional += struct.pack("<QII", 0, _CODE_AT, _ALIGN)  # image base, section and file alignment
    optional += struct.pack("<HHHHHHIIIIHH", 0, 0, 0, 0, 0, 0, 0, 2 * _CODE_AT, _ALIGN, 0, 10, 0)  # 10: EFI application
    optional += struct.pack("<QQQQII", 0, 0, 0, 0, 0, 16) + bytes(16 * 8)
    parts = (
        b"MZ".ljust(0x3C, b"\0") + struct.pack("<I", 0x40),
        b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, len(optional), 0x22),
        optional,
        struct.pack("<8sIIIIIIHHI", b".text", len(code), _CODE_AT, _ALIGN, _ALIGN, 0, 0, 0, 0, 0x60000020),
    )
    return b"".join(parts).ljust(_ALIGN, b"\0") + code.ljust(_ALIGN, b"\0")


def bootable(disk: Path, image: bytes) -> None:
    """Make `disk`, raw: an EFI system partition with `image` where firmware looks for a removable medium's loader."""
    disk.touch()
    os.truncate(disk, _START + _SIZE + _MIB)
    table = f"label: gpt\nstart={_START // 512}, size={_SIZE // 512}, type=U\n"
    run(["sfdisk", "--quiet", str(disk)], input=table.encode(), timeout_s=60)
    offset, size_kib = str(_START // 512), str(_SIZE // 1024)
    run(["mkfs.vfat", "--offset", offset, "-F", "32", "-s", "1", str(disk), size_kib], timeout_s=60)
    partition, loader = f"{disk}@@{_START}", disk.with_suffix(".efi")
    loader.write_bytes(image)
    run(["mmd", "-i", partition, "::/EFI", "::/EFI/BOOT"], timeout_s=60)
    run(["mcopy", "-i", partition, str(loader), "::/EFI/BOOT/BOOTX64.EFI"], timeout_s=60)
