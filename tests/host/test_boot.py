"""The machine boots under plain QEMU, both ways, and says so on the agent's port; a failed boot ends, explained."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import DEVNULL, Popen

import pytest

from runtime.driver import Host
from runtime.images.disk import Machine
from runtime.images.store import ImageStore
from runtime.spec import ImageRef
from tests.conftest import skip_or_fail

FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
BOOT_S = 180  # a bound, not an expectation: emulation on a busy host is slow


@pytest.fixture
def machine(bench_host: Host) -> Machine:
    if shutil.which("qemu-system-x86_64") is None:
        skip_or_fail("needs qemu-system-x86_64")
    return ImageStore(bench_host.root).machine(ImageRef.parse("tare/debian:bookworm"))


@contextmanager
def qemu(machine: Machine, scratch: Path, *options: str) -> Iterator[tuple[Popen[bytes], socket.socket]]:
    """A machine on a throw-away overlay, and the host's end of the agent's port, connected before it starts."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(scratch / "port"))
        listener.listen()
        listener.settimeout(30)
        command = [
            *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "512", "-no-reboot"),
            *("-nodefaults", "-display", "none", "-serial", f"file:{scratch}/console"),
            *("-drive", f"file={machine.disk},format=raw,if=none,id=disk,snapshot=on"),
            *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=port,path={scratch}/port"),
            *("-device", "virtserialport,chardev=port,name=org.tare.agent"),
            *options,
        ]
        process = Popen(command, stdin=DEVNULL)
        try:
            port = listener.accept()[0]
            with port:
                port.settimeout(BOOT_S)
                yield process, port
        finally:
            process.kill()
            process.wait()


def direct(machine: Machine, cmdline: str) -> tuple[str, ...]:
    return ("-kernel", str(machine.kernel), "-initrd", str(machine.initrd), "-append", cmdline)


def test_direct_boot_reaches_userland(machine: Machine, tmp_path: Path) -> None:
    with qemu(machine, tmp_path, *direct(machine, machine.cmdline)) as (_, port):
        assert port.recv(1) == b"U", (tmp_path / "console").read_text(errors="replace")


def test_firmware_boot_reaches_userland(machine: Machine, tmp_path: Path) -> None:
    if not FIRMWARE.exists():
        skip_or_fail("needs OVMF")
    with qemu(machine, tmp_path, "-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}") as (_, port):
        assert port.recv(1) == b"U", (tmp_path / "console").read_text(errors="replace")


@pytest.mark.parametrize(
    ("change", "why"),
    [("", "no tareroot="), ("tareroot=/dev/vda1", "/dev/vda1: ")],
)
def test_failed_direct_boot_says_why_and_ends(machine: Machine, tmp_path: Path, change: str, why: str) -> None:
    cmdline = machine.cmdline.replace("tareroot=/dev/vda2", change)
    with qemu(machine, tmp_path, *direct(machine, cmdline)) as (process, _):
        process.wait(BOOT_S)
    assert f"stage1: {why}" in (tmp_path / "console").read_text(errors="replace")
