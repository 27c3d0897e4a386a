"""A user's own disk image (qcow2 or raw), found fit to be a base disk before QEMU opens it. It is only ever read.

An image may come from anybody. What could make QEMU open another file of the host (a backing file, an external data
file), guess a format or take memory without bound is refused from the header; the rest is `qemu-img check`, bounded.
Not for making overlays or machines (`disk`). Format: QEMU's docs/interop/qcow2.rst.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import tempfile
from pathlib import Path
from typing import IO, Final, Literal

from runtime.command import run
from runtime.errors import TareError, UsageError
from runtime.images.partitions import HEAD_BYTES, has_efi_system
from runtime.record import ordered_record

VIRTUAL_BYTES_MAX: Final = 8 << 40
_PATH_MAX: Final = 1023  # bytes of a backing file's name that qcow2 has room for
_L1_BYTES_MAX: Final = 32 << 20
_REFCOUNT_TABLE_BYTES_MAX: Final = 8 << 20
_SNAPSHOTS_MAX: Final = 256
_CHECK_MEMORY_BYTES: Final = 2 << 30
_CHECK_S: Final = 120
_MAGIC: Final = b"QFI\xfb"
_V2 = struct.Struct(">4sIQIIQIIQQIIQ")
_V3 = struct.Struct(">QQQII")
_EXTERNAL_DATA, _LUKS, _END = 0x44415441, 0x0537BE77, 0
_DIRTY, _CORRUPT, _DATA_FILE, _KNOWN = 1, 2, 4, 0b11111
# What another format begins with: QEMU must never be left to find out what a file is.
_OTHERS: Final = (
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0x40, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"conectix", "VHD"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"QED\0", "QED"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"LUKS\xba\xbe", "LUKS"),
    (0, b"\x1f\x8b", "compressed (gzip)"),
    (0, b"\xfd7zXZ\0", "compressed (xz)"),
    (0, b"\x28\xb5\x2f\xfd", "compressed (zstd)"),
    (0, b"BZh", "compressed (bzip2)"),
    (0, b"PK\x03\x04", "compressed (zip)"),
)


@ordered_record
class CloudImage:
    """A verified image. `path` is absolute; `digest` is of the whole file; `identity` of its inode, by stat(2)."""

    path: Path
    format: Literal["qcow2", "raw"]
    virtual_bytes: int
    digest: str
    identity: tuple[int, ...]

    def require_unchanged(self) -> None:
        """Raise TareError when the file is not what was verified. Free unless it was touched: then its bytes decide."""
        do = "leave an image alone while machines run on it"
        try:
            if _identity(self.path.stat()) == self.identity:
                return
            with self.path.open("rb") as file:
                digest = _digest(file)
        except OSError as error:
            raise TareError(f"image {self.path}", f"went away while in use: {error.strerror}", do) from error
        if digest != self.digest:
            raise TareError(f"image {self.path}", "it was changed while in use", do)


def open(path: Path) -> CloudImage:  # noqa: A001 - read as cloud.open
    """Verify the image in the file `path`. Takes about a second for each GiB, as all of it is read.

    Raises UsageError for what is no such image or must not be used as one, TareError for a damaged one.
    """
    try:
        path = path.resolve(strict=True)
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, RuntimeError) as error:
        raise UsageError(
            f"image {path}", getattr(error, "strerror", None) or str(error), "name an image's file"
        ) from error
    with os.fdopen(descriptor, "rb") as file:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise _refused(path, "not a regular file", "name an image's file")
        if len(os.fsencode(path)) > _PATH_MAX:
            raise _refused(path, f"its path is longer than {_PATH_MAX} bytes", "move it")
        if not 512 <= info.st_size <= VIRTUAL_BYTES_MAX:
            raise _refused(path, f"{info.st_size} bytes", f"an image has between 512 and {VIRTUAL_BYTES_MAX}")
        head = file.read(4096)
        image_format: Literal["qcow2", "raw"] = "qcow2" if head.startswith(_MAGIC) else "raw"
        virtual_bytes = _qcow2(path, file, info.st_size) if image_format == "qcow2" else _raw(path, head, info.st_size)
        if image_format == "qcow2":
            _check(path)
        found = CloudImage(path, image_format, virtual_bytes, _digest(file), _identity(info))
    found.require_unchanged()
    return found


def require_uefi(image: CloudImage) -> None:
    """Raise UsageError for a disk that only a BIOS could boot: firmware would find nothing and wait for ever."""
    with tempfile.TemporaryDirectory() as scratch:
        part = Path(scratch) / "head"
        count = min(HEAD_BYTES, image.virtual_bytes) // 512
        command = ["qemu-img", "dd", "-f", image.format, "-O", "raw", "bs=512", f"count={count}"]
        run([*command, f"if={image.path}", f"of={part}"], timeout_s=60)
        head = part.read_bytes()
    if not has_efi_system(head):
        raise _refused(image.path, "no EFI system partition: only a BIOS boots it", "get its variant for UEFI")


def _raw(path: Path, head: bytes, size: int) -> int:
    for at, magic, name in _OTHERS:
        if head[at : at + len(magic)] == magic:
            do = "decompress it first" if "compressed" in name else "convert it: qemu-img convert -O qcow2"
            raise _refused(path, f"it is {name}, neither qcow2 nor raw", do)
    if head[510:512] != b"\x55\xaa":
        raise _refused(path, "neither qcow2 nor a raw disk with a boot sector", "name a bootable disk's image")
    if size % 512:
        raise _refused(path, f"{size} bytes are no whole sectors", "get it again")
    return size


def _qcow2(path: Path, file: IO[bytes], file_bytes: int) -> int:
    """Judge a qcow2 header; the virtual size in bytes."""
    file.seek(0)
    head = file.read(1 << 16)
    if len(head) < _V2.size + _V3.size:
        raise _refused(path, "its header is cut off", "get it again")
    fields = _V2.unpack_from(head)
    _, version, backing, _, cluster_bits, size, crypt, l1_size, l1_at, table_at, table_clusters, snapshots, _ = fields
    features, _, _, refcount_order, header_bytes = _V3.unpack_from(head, _V2.size) if version == 3 else (0, 0, 0, 4, 72)
    flat = "make it whole: qemu-img convert -O qcow2"
    again = "get it again"
    _demand(path, version in (2, 3), f"qcow2 of version {version}", "convert it: qemu-img convert -O qcow2")
    _demand(path, backing == 0, "it has a backing file, which could be any file of this host", flat)
    _demand(path, crypt == 0, "it is encrypted", flat)
    _demand(path, not features & _DATA_FILE, "its data is in another file, which could be any of this host", flat)
    _demand(path, not features & _CORRUPT, "it is marked as corrupt", again)
    _demand(path, not features & _DIRTY, "it was not closed", "repair it: qemu-img check -r all")
    _demand(path, not features & ~_KNOWN, f"unknown features {features:#x}", flat)
    _demand(path, 9 <= cluster_bits <= 21, f"clusters of 2^{cluster_bits} bytes", again)
    _demand(path, refcount_order <= 6 and 72 <= header_bytes <= 1 << cluster_bits, "its header is damaged", again)
    _demand(path, 0 < size <= VIRTUAL_BYTES_MAX and size % 512 == 0, f"a virtual size of {size} bytes", again)
    entries = (1 << cluster_bits) // (16 if features & 16 else 8)
    needed = -(-size // (entries << cluster_bits))
    _demand(path, needed <= l1_size <= _L1_BYTES_MAX // 8, f"a table of {l1_size} entries for {size} bytes", again)
    _demand(path, l1_at + 8 * l1_size <= file_bytes, "its tables lie behind its end", again)
    table_bytes = table_clusters << cluster_bits
    _demand(path, 0 < table_bytes <= _REFCOUNT_TABLE_BYTES_MAX, f"a reference table of {table_bytes} bytes", again)
    _demand(path, table_at + table_bytes <= file_bytes, "its tables lie behind its end", again)
    _demand(path, snapshots <= _SNAPSHOTS_MAX, f"{snapshots} snapshots", flat)
    kinds = _extensions(path, head[: 1 << min(cluster_bits, 16)], header_bytes)
    _demand(path, _EXTERNAL_DATA not in kinds, "it names another file for its data", flat)
    _demand(path, _LUKS not in kinds, "it is encrypted", flat)
    return int(size)


def _extensions(path: Path, head: bytes, at: int) -> set[int]:
    kinds = set()
    while at + 8 <= len(head):
        kind, length = struct.unpack_from(">II", head, at)
        if kind == _END:
            break
        _demand(path, at + 8 + length <= len(head), "its header is damaged", "get it again")
        kinds.add(kind)
        at += 8 + (length + 7) // 8 * 8
    return kinds


def _check(path: Path) -> None:
    """Let QEMU's own tool look through all tables, with bounded memory and time. What leaks space does no harm."""
    bounds = ["prlimit", f"--as={_CHECK_MEMORY_BYTES}", f"--cpu={_CHECK_S}", "--core=0", "--"]
    report = 'if ! said=$(qemu-img check -f qcow2 --output=json -- "$1"); then :; fi; printf %s "$said"'
    said = run([*bounds, "sh", "-c", report, "sh", str(path)], timeout_s=2 * _CHECK_S)
    try:
        found = json.loads(said.stdout)
    except ValueError:
        why = " ".join(said.stderr.decode(errors="replace").split())[-300:]
        raise TareError(f"image {path}", f"it cannot be checked: {why}", "get it again") from None
    if found.get("check-errors") or found.get("corruptions"):
        raise TareError(f"image {path}", f"it is damaged in {found.get('corruptions', 0)} places", "get it again")


def _demand(path: Path, good: bool, why: str, do: str) -> None:
    if not good:
        raise _refused(path, why, do)


def _refused(path: Path, why: str, do: str) -> UsageError:
    return UsageError(f"image {path}", why, do)


def _identity(info: os.stat_result) -> tuple[int, ...]:
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns


def _digest(file: IO[bytes]) -> str:
    file.seek(0)
    return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"  # type: ignore[arg-type]
