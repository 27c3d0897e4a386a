"""A stand-in for bare metal: the bench image's own machine, booted under emulation, as a host with cgroup v2 alone.

Its second disk carries what a developer's host has: an interpreter, pytest, this source tree and a state
root with the bench image. Everything is lost with the machine. Nothing timed here means anything.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.channel import PORT_NAME, Channel
from runtime.command import run
from runtime.driver import Host
from runtime.images.disk import Machine
from runtime.images.store import Image, ImageStore
from runtime.instance import ExecResult, Timeline
from runtime.spec import ImageRef

SOURCE = Path(__file__).resolve().parents[2]
IMAGE = ImageRef.parse("tare/debian:bookworm")
MACHINE_IMAGE = ImageRef.parse("tare/debian-vm:bookworm")
FIRMWARE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")  # the machine's own boot loader starts systemd
MEMORY_MIB, CPUS = 2048, 2
BOOT_S = 300.0  # bounds, not expectations: emulation on a busy host is slow
TEST_S = 900.0
# Where the second disk is mounted, and what is on it.
PLACE = "/srv/tare"
PYTHON = f"{PLACE}/userland/usr/bin/python3.11"
LIBRARIES = f"{PLACE}/userland/lib/x86_64-linux-gnu:{PLACE}/userland/usr/lib/x86_64-linux-gnu"
MODULES = (
    *("_pytest", "py", "pytest", "pluggy", "iniconfig", "packaging", "pygments"),
    *("hypothesis", "sortedcontainers", "_hypothesis_globals", "pyseccomp"),
)


class StandIn:
    """The running machine, through its agent."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def run(self, *argv: str, timeout_s: float = 120.0) -> ExecResult:
        """Run a command in it. Raises TareError when it is not done after `timeout_s`."""
        return self._channel.exec(argv, timeout_s)

    def mount(self) -> None:
        """Make the second disk's content available."""
        for argv in (("mkdir", "-p", PLACE), ("mount", "/dev/vdb", PLACE)):
            self.run(*argv).check()

    def pytest(self, *arguments: str, timeout_s: float = TEST_S) -> ExecResult:
        """Run tests of the source tree in it; nothing may be skipped for want of a privilege."""
        environment = [
            f"LD_LIBRARY_PATH={LIBRARIES}",
            f"PYTHONPATH={PLACE}/source:{PLACE}/modules",
            f"TARE_TEST_ROOT={PLACE}/state",
            "TARE_MUST_WORK=1",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
        ]
        options = ["-o", "addopts=", "-p", "no:cacheprovider", "-rfE", "-q", "--durations=5"]
        command = [PYTHON, "-m", "pytest", *options, *arguments]
        return self.run("env", "-C", f"{PLACE}/source", *environment, *command, timeout_s=timeout_s)


@contextmanager
def booted(host: Host, scratch: Path) -> Iterator[StandIn]:
    """A stand-in with everything on its second disk. `scratch` is on the file system of `host`'s state root."""
    store = ImageStore(host.root)
    disk = _second_disk(store, _userland(host.root.parent / "standin", store.resolve(MACHINE_IMAGE)), scratch)
    console = scratch / "console"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(scratch / "port"))
        listener.listen()
        listener.settimeout(30)
        process = subprocess.Popen(_qemu(store.machine(IMAGE), disk, scratch), stdin=subprocess.DEVNULL)
        try:
            channel = Channel(listener.accept()[0], Timeline(), lambda: console.read_text(errors="replace")[-2000:])
            channel.wait("ready", BOOT_S)
            machine = StandIn(channel)
            machine.mount()
            yield machine
            channel.close()
        finally:
            process.kill()
            process.wait()


def _qemu(machine: Machine, disk: Path, scratch: Path) -> list[str]:
    """The machine on throw-away overlays of both disks."""
    return [
        *("qemu-system-x86_64", "-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "max", "-no-reboot"),
        *("-smp", str(CPUS), "-m", str(MEMORY_MIB), "-nodefaults", "-display", "none"),
        *("-serial", f"file:{scratch}/console"),
        *("-drive", f"if=pflash,format=raw,readonly=on,file={FIRMWARE}"),
        *("-drive", f"file={machine.disk},format=raw,if=none,id=first,snapshot=on"),
        *("-drive", f"file={disk},format=raw,if=none,id=second,cache=unsafe"),
        *("-device", "virtio-blk-pci,drive=first", "-device", "virtio-blk-pci,drive=second"),
        *("-device", "virtio-serial-pci", "-chardev", f"socket,id=port,path={scratch}/port"),
        *("-device", f"virtserialport,chardev=port,name={PORT_NAME}"),
    ]


def _userland(directory: Path, machine: Image) -> Path:
    """Python and the libraries that it needs and the machine lacks, unpacked once and kept in `directory`."""
    final = directory / "userland"
    if final.is_dir():
        return final
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / f"userland-{os.getpid()}"
    mirror = [text] if (text := os.environ.get("TARE_MIRROR")) else []
    command = ["mmdebstrap", "--variant=extract", "--format=directory", "--include=python3.11,gcc-12-base"]
    run([*command, "bookworm", str(partial), *mirror], timeout_s=600)
    for place in ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"):
        for library in (partial / place).glob("*.so*"):
            # The machine's own come first: of the C library two that differ would not work together.
            if any((layer.directory / "usr/lib/x86_64-linux-gnu" / library.name).exists() for layer in machine.layers):
                library.unlink()
    partial.rename(final)
    return final


def _second_disk(store: ImageStore, userland: Path, scratch: Path) -> Path:
    """An ext4 image with everything below PLACE."""
    tree = scratch / "tree"
    tree.mkdir()
    shutil.copytree(userland, tree / "userland", symlinks=True, copy_function=os.link)
    for name in ("runtime", "workloads", "tests", "pyproject.toml"):
        _copy(SOURCE / name, tree / "source" / name)
    for name in MODULES:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        origin = Path(found.origin)
        origin = origin.parent if origin.name == "__init__.py" else origin
        _copy(origin, tree / "modules" / origin.name)
    _copy_store(store, tree / "state/lib/images")
    disk = scratch / "second.raw"
    run(["mke2fs", "-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", str(tree), str(disk), "3G"], timeout_s=300)
    shutil.rmtree(tree)
    return disk


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True)
    else:
        shutil.copy2(source, target)


def _copy_store(store: ImageStore, target: Path) -> None:
    """The index, the documents, and the layers that containers use; of the machine's an empty directory stands."""
    used = {layer.directory for layer in store.resolve(IMAGE).layers}
    for layer in store.resolve(MACHINE_IMAGE).layers:
        directory = target / layer.directory.relative_to(store.directory)
        directory.parent.mkdir(parents=True)
        if layer.directory in used:
            run(["cp", "-al", str(layer.directory), str(directory)], timeout_s=120)
        else:
            directory.mkdir()
    for path in (store.directory / "blobs/sha256").iterdir():
        if path.stat().st_size < 1 << 16:  # a document, not a layer's archive
            _copy(path, target / "blobs/sha256" / path.name)
    for name in ("index.json", "oci-layout"):
        _copy(store.directory / name, target / name)
