"""A user's disk image: what is taken as one, and all that is refused before QEMU has seen it."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from runtime.command import run
from runtime.errors import TareError, UsageError
from runtime.images import cloud
from runtime.images.partitions import has_efi_system

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "whole image.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "64M"], timeout_s=60)
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 1M 4M", str(path)], timeout_s=60)
    return path


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def test_qcow2_is_taken_with_its_virtual_size(image: Path) -> None:
    found = cloud.open(image)
    assert (found.path, found.format, found.virtual_bytes) == (image, "qcow2", 64 * MIB)
    assert found.digest.startswith("sha256:")


def test_sparse_raw_disk_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "disk.raw"
    with path.open("wb") as file:
        file.truncate(8 * MIB)
    patch(path, 510, b"\x55\xaa")
    found = cloud.open(path)
    assert (found.format, found.virtual_bytes) == ("raw", 8 * MIB)


HOSTILE = {
    "backing file": (8, struct.pack(">QI", 0x200, 11)),
    "encrypted": (32, struct.pack(">I", 1)),
    "data is in another file": (72, struct.pack(">Q", 4)),
    "marked as corrupt": (72, struct.pack(">Q", 2)),
    "not closed": (72, struct.pack(">Q", 1)),
    "unknown features": (72, struct.pack(">Q", 1 << 40)),
    "version 9": (4, struct.pack(">I", 9)),
    "clusters of": (20, struct.pack(">I", 40)),
    "virtual size": (24, struct.pack(">Q", 1 << 62)),
    "a table of": (36, struct.pack(">I", 1 << 30)),
    "tables lie behind": (40, struct.pack(">Q", 1 << 60)),
    "reference table": (56, struct.pack(">I", 1 << 30)),
    "snapshots": (60, struct.pack(">I", 1 << 30)),
    "header is damaged": (96, struct.pack(">I", 99)),
    "names another file": (112, struct.pack(">II", 0x44415441, 8)),
}


@pytest.mark.parametrize("why", HOSTILE)
def test_hostile_header_is_refused_by_name(image: Path, why: str) -> None:
    patch(image, *HOSTILE[why])
    with pytest.raises(UsageError, match=why):
        cloud.open(image)


@pytest.mark.parametrize(
    ("kind", "why"), [("vmdk", "VMDK"), ("vdi", "VDI"), ("vpc", "VHD"), ("vhdx", "VHDX"), ("qed", "QED")]
)
def test_other_formats_are_refused_and_never_probed(tmp_path: Path, kind: str, why: str) -> None:
    path = tmp_path / "disk"
    run(["qemu-img", "create", "-q", "-f", kind, str(path), "8M"], timeout_s=60)
    with pytest.raises(UsageError, match=why):
        cloud.open(path)


def test_damaged_tables_are_found(image: Path) -> None:
    patch(image, struct.unpack(">Q", image.read_bytes()[40:48])[0], b"\x80" + b"\x7f" * 7)
    with pytest.raises(TareError, match=r"damaged|cannot be checked"):
        cloud.open(image)


def test_image_with_a_real_backing_file_is_refused(image: Path, tmp_path: Path) -> None:
    over = tmp_path / "over.qcow2"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "qcow2", str(over)], timeout_s=60)
    with pytest.raises(UsageError, match="backing file"):
        cloud.open(over)


def test_what_is_no_file_of_a_disk_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "text").write_text("x" * 4096)
    (tmp_path / "short").write_bytes(b"QFI\xfb")
    for name, why in (("fifo", "regular"), ("text", "boot sector"), ("short", "bytes"), ("none", "No such")):
        with pytest.raises(UsageError, match=why):
            cloud.open(tmp_path / name)


def test_change_is_told_and_a_mere_touch_is_none(image: Path) -> None:
    found = cloud.open(image)
    os.utime(image)
    found.require_unchanged()
    patch(image, 5 * MIB, b"x")
    with pytest.raises(TareError, match="changed while in use"):
        found.require_unchanged()
    image.unlink()
    with pytest.raises(TareError, match="went away"):
        found.require_unchanged()


TABLES = {
    "a GPT with one": ("label: gpt\nsize=8M, type=linux\nsize=8M, type=uefi\n", True),
    "a GPT with one behind many": ("label: gpt\n" + "size=1M, type=linux\n" * 30 + "size=8M, type=uefi\n", True),
    "a GPT without": ("label: gpt\nsize=1M, type=21686148-6449-6E6F-744E-656564454649\nsize=8M, type=linux\n", False),
    "an MBR with one": ("label: dos\nsize=8M, type=83\nsize=8M, type=ef\n", True),
    "an MBR without": ("label: dos\nsize=8M, type=83, bootable\n", False),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_a_disk_that_only_a_bios_boots_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    table, boots = TABLES[name]
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(64 * MIB)
    run(["sh", "-c", 'printf %s "$1" | sfdisk -q "$2"', "sh", table, str(disk)], timeout_s=60)
    patch(disk, 510, b"\x55\xaa")
    path = tmp_path / "image"
    run(["qemu-img", "convert", "-f", "raw", "-O", kind, str(disk), str(path)], timeout_s=60)
    found = cloud.open(path)
    if boots:
        cloud.require_uefi(found)
    else:
        with pytest.raises(UsageError, match="no EFI system partition: only a BIOS boots it"):
            cloud.require_uefi(found)


@pytest.mark.parametrize(
    "place",
    [(2, 128, 0), (2, 1 << 31, 128), (1 << 60, 128, 128), (2, 128, 1 << 31), (2, 0, 128)],
)
def test_an_absurd_table_is_none(place: tuple[int, int, int]) -> None:
    head = bytearray(1 << 20)
    head[510:512] = b"\x55\xaa"
    head[512:520] = b"EFI PART"
    struct.pack_into("<QII", head, 512 + 72, *place)
    assert not has_efi_system(bytes(head))


def test_a_short_disk_has_none() -> None:
    assert not has_efi_system(b"")
    assert not has_efi_system(bytes(510) + b"\x55\xaa")
