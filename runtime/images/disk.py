"""A bootable virtual machine made from unpacked layers, without mounts, loop devices or a boot loader's installer.

One sparse GPT disk: an EFI system partition with systemd-boot, kernel and initramfs, then the ext4 root.
Beside it, kernel and a small initramfs for booting the same disk directly. Not for a running machine's
writable disk, which is an overlay of the VM driver's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from runtime.command import run
from runtime.errors import TareError
from runtime.images import initramfs, merging
from runtime.record import ordered_record

DEFAULT_BYTES = 4 << 30
STAGE1 = Path(__file__).parents[1] / "guest" / "stage1.c"
_MIB = 1 << 20
_ESP_START = 1 * _MIB
_ESP_BYTES = 64 * _MIB
_ROOT_START = _ESP_START + _ESP_BYTES
_LABEL = "tare-root"
# The console is for a person or a failed boot to read; at the default level it would slow an emulated machine down.
# Guests that start many at once under emulation miss ticks; the kernel would take its timer for broken, and panic.
_FIRMWARE_CMDLINE = f"root=LABEL={_LABEL} rw console=ttyS0 quiet panic=-1 no_timer_check init=/usr/lib/tare/first"
_DIRECT_CMDLINE = "console=ttyS0 quiet panic=-1 tareroot=/dev/vda2"


@ordered_record
class Machine:
    """What boots: either `disk` alone through UEFI firmware, or `kernel`, `initrd` and `cmdline` with `disk` as vda.

    The disk is raw, sparse and shared: it must be used read-only, below an overlay. The guest tells
    its progress on the virtio-serial port org.tare.agent in both cases.
    """

    directory: Path
    disk: Path
    kernel: Path
    initrd: Path
    cmdline: str
    digest: str

    @classmethod
    def at(cls, directory: Path, digest: str) -> Machine:
        """The machine that lies in `directory`."""
        return cls(
            directory, directory / "disk.raw", directory / "vmlinuz", directory / "initrd", _DIRECT_CMDLINE, digest
        )


def digest(layers: Sequence[str], disk_bytes: int) -> str:
    """Identifies a machine by all it is made from: layers, size, and the code that makes it."""
    code = [Path(__file__), Path(merging.__file__), Path(initramfs.__file__), STAGE1]
    made_from = [*layers, str(disk_bytes), *(hashlib.sha256(path.read_bytes()).hexdigest() for path in code)]
    return "sha256:" + hashlib.sha256("\n".join(made_from).encode()).hexdigest()


def build(layers: Sequence[Path], work: Path, name: str, disk_bytes: int) -> None:
    """Make `work/machine/` from layer directories, lowest first; `work` is on their file system and is scratch.

    `name` seeds the disk's identifiers.

    Raises TareError when the layers hold no kernel or boot loader, or a tool fails.
    """
    tree, machine = work / "tree", work / "machine"
    merging.merge(layers, tree)
    machine.mkdir()
    kernel, version = _kernel(tree)
    shutil.copyfile(kernel, machine / "vmlinuz")
    _compile_stage1(work / "stage1")
    directory = tree / "usr/lib/modules" / version
    modules = initramfs.module_files(directory)
    network = [path for path in initramfs.module_files(directory, initramfs.NETWORK_MODULES) if path not in modules]
    (machine / "initrd").write_bytes(initramfs.initramfs((work / "stage1").read_bytes(), modules, network))
    identity = uuid.uuid5(uuid.NAMESPACE_OID, name)
    disk = work / "disk.raw"
    _partition(disk, disk_bytes, identity)
    _fill_boot_partition(disk, tree, kernel, tree / f"boot/initrd.img-{version}", work, identity)
    _fill_root_partition(disk, tree, disk_bytes, identity)
    # mke2fs leaves its zeros as allocated, unwritten extents; in a copy they are holes.
    run(["cp", "--sparse=always", str(disk), str(machine / "disk.raw")], timeout_s=300)


def _compile_stage1(program: Path) -> None:
    run(["gcc", "-static", "-Os", "-s", "-Wl,--build-id=none", "-o", str(program), str(STAGE1)], timeout_s=120)


def _kernel(tree: Path) -> tuple[Path, str]:
    kernels = sorted((tree / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise TareError("virtual machine", "the image holds no kernel", "use an image made by: tare build")
    return kernels[-1], kernels[-1].name.removeprefix("vmlinuz-")


def _partition(disk: Path, disk_bytes: int, identity: uuid.UUID) -> None:
    with disk.open("wb") as file:
        file.truncate(disk_bytes)
    root_sectors = (disk_bytes - _ROOT_START - _MIB) // 512
    table = (
        f"label: gpt\nlabel-id: {identity}\n"
        f"start={_ESP_START // 512}, size={_ESP_BYTES // 512}, type=U, name=tare-esp\n"
        f"start={_ROOT_START // 512}, size={root_sectors}, type=L, name={_LABEL}\n"
    )
    run(["sfdisk", "--quiet", str(disk)], input=table.encode(), timeout_s=60)


def _fill_boot_partition(disk: Path, tree: Path, kernel: Path, initrd: Path, work: Path, identity: uuid.UUID) -> None:
    """FAT with systemd-boot as the removable-media loader: firmware starts it without any variable set."""
    loader = tree / "usr/lib/systemd/boot/efi/systemd-bootx64.efi"
    for needed in (loader, initrd):
        if not needed.exists():
            raise TareError("virtual machine", f"the image holds no {needed.name}", "use an image made by: tare build")
    (work / "loader.conf").write_text("timeout 0\ndefault tare.conf\n")
    (work / "tare.conf").write_text(f"title tare\nlinux /vmlinuz\ninitrd /initrd.img\noptions {_FIRMWARE_CMDLINE}\n")
    offset = str(_ESP_START // 512)
    volume = f"{identity.int & 0xFFFFFFFF:08x}"
    size_kib = str(_ESP_BYTES // 1024)
    environment = {**os.environ, "MTOOLS_SKIP_CHECK": "1", "SOURCE_DATE_EPOCH": "0"}
    make = ["mkfs.vfat", "--offset", offset, "-F", "32", "-s", "1", "-n", "TARE-ESP", "-i", volume, str(disk), size_kib]
    run(make, timeout_s=60, env=environment)
    image = f"{disk}@@{_ESP_START}"
    run(["mmd", "-i", image, "::/EFI", "::/EFI/BOOT", "::/loader", "::/loader/entries"], timeout_s=60, env=environment)
    for source, target in (
        (loader, "EFI/BOOT/BOOTX64.EFI"),
        (work / "loader.conf", "loader/loader.conf"),
        (work / "tare.conf", "loader/entries/tare.conf"),
        (kernel, "vmlinuz"),
        (initrd, "initrd.img"),
    ):
        run(["mcopy", "-m", "-i", image, str(source), f"::/{target}"], timeout_s=60, env=environment)


def _fill_root_partition(disk: Path, tree: Path, disk_bytes: int, identity: uuid.UUID) -> None:
    """The ext4 root, written in place. Its tables are whole, so that no guest fills them in while it is measured."""
    blocks = (disk_bytes - _ROOT_START - _MIB) // 4096
    extended = f"offset={_ROOT_START},lazy_itable_init=0,lazy_journal_init=0,hash_seed={identity},nodiscard"
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-L", _LABEL, "-U", str(identity)]
    run([*command, "-E", extended, "-d", str(tree), str(disk), str(blocks)], timeout_s=600)
