"""A stand-in for bare metal: a Debian guest that is a host itself, with cgroup v2 alone and, where emulated, KVM.

Its image is the bench recipe's with an interpreter and the tools of a host beside it; our VM driver boots it, on
whatever accelerator it chooses. Its second disk carries this source tree, the test libraries and a state root with the
bench image. Everything is lost with the machine. Nothing timed here means anything.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from runtime.command import run
from runtime.driver import Host
from runtime.drivers.libvirt import PreparedGuest, VmDriver
from runtime.images import recipe
from runtime.images.store import ImageStore
from runtime.instance import ExecResult
from runtime.spec import ImageRef, InstanceSpec
from runtime.vm.domain import MIB
from runtime.vm.guest import Guest

SOURCE = Path(__file__).resolve().parents[2]
BENCH = ImageRef.parse("tare/debian:bookworm")
BENCH_MACHINE = ImageRef.parse("tare/debian-vm:bookworm")
IMAGE, MACHINE_IMAGE = "tare/standin:bookworm", "tare/standin-vm:bookworm"
PACKAGES = (
    # The libraries that are more than Python come from Debian, to fit its interpreter.
    *("python3", "python3-zstandard", "libseccomp2"),
    *("docker-registry", "iproute2", "iptables", "nftables", "procps", "runc", "util-linux-extra", "e2fsprogs"),
    *("qemu-system-x86", "qemu-utils", "ovmf", "libvirt-daemon-driver-qemu", "libvirt-daemon", "python3-libvirt"),
)
# What libvirt-daemon-system would make, which would also bring services that nothing here needs.
LIBVIRT_USER = "useradd --system --user-group --no-create-home --shell /usr/sbin/nologin libvirt-qemu"
MEMORY_BYTES, CPUS = 4608 * MIB, 2
TRANSLATION_CACHE_MIB = 512  # much code runs here, and nothing is measured
BOOT_S = 300.0  # bounds, not expectations: emulation on a busy host is slow
TEST_S = 420.0
END_S = 30.0  # to tell where it was
HANG_S = 90
PLACE = "/srv/tare"  # where the second disk is mounted
MODULES = (
    *("_pytest", "py", "pytest", "pluggy", "iniconfig", "packaging", "pygments"),
    *("hypothesis", "sortedcontainers", "_hypothesis_globals"),
    *("click", "pyroute2", "pyseccomp", "rich", "markdown_it", "mdurl"),
)


class StandIn:
    """The running machine."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest

    def run(self, *argv: str, timeout_s: float = 120.0) -> ExecResult:
        """Run a command in it. Raises TareError when it is not done after `timeout_s`."""
        return self._guest.exec(argv, timeout_s)

    def pytest(self, *arguments: str, timeout_s: float = TEST_S) -> ExecResult:
        """Run tests of the source tree in it; nothing may be skipped for want of a privilege.

        Those that are not done after `timeout_s` are interrupted, and say where they were.
        """
        options = ["-o", "addopts=", "-p", "no:cacheprovider", "-rfE", "-q", "--durations=10"]
        options += ["-o", f"faulthandler_timeout={HANG_S}"]  # says where, before the bound on all of them strikes
        bound = ["timeout", "--signal=INT", f"--kill-after={END_S:g}", f"{timeout_s:g}"]
        command = [*bound, "python3", "-m", "pytest", *options, *arguments]
        environment = (f"TARE_TEST_ROOT={PLACE}/state", "TARE_MUST_WORK=1")
        return self._ours(environment, command, timeout_s + 2 * END_S)

    def virtualise(self) -> None:
        """Have it offer KVM, in a way that its own emulator bears (`cr8.py`); it may have loaded the module itself."""
        self.run("python3", f"{PLACE}/source/tests/guest/cr8.py").check()
        for argv in (("modprobe", "-r", "kvm_amd"), ("modprobe", "kvm_amd")):
            self.run(*argv).check()

    def tare(self, *arguments: str, timeout_s: float) -> ExecResult:
        """Run a command of ours in it, on the same state as the tests."""
        return self._ours((f"TARE_ROOT={PLACE}/state",), ["python3", "-m", "tare", *arguments], timeout_s)

    def _ours(self, environment: Sequence[str], command: Sequence[str], timeout_s: float) -> ExecResult:
        paths = (f"PYTHONPATH={PLACE}/source:{PLACE}/modules", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
        return self.run("env", "-C", f"{PLACE}/source", *paths, *environment, *command, timeout_s=timeout_s)


def build(store: ImageStore) -> None:
    """Make the stand-in's image, unless it is current. About a minute the first time."""
    bench = recipe.load("debian")
    made = replace(
        bench,
        image=IMAGE,
        machine_image=MACHINE_IMAGE,
        base=replace(bench.base, packages=PACKAGES),
        machine=replace(bench.machine, commands=(*bench.machine.commands, LIBVIRT_USER)),
        source=bench.source + repr((PACKAGES, LIBVIRT_USER)).encode(),
    )
    recipe.build(store, made)


@contextmanager
def booted(host: Host, scratch: Path) -> Iterator[StandIn]:
    """A stand-in with everything on its second disk. `scratch` is on the file system of `host`'s state root."""
    build(ImageStore(host.root))
    disk = _second_disk(ImageStore(host.root), scratch)
    driver = VmDriver(host)
    try:
        guest = driver.launch(_prepared(driver, disk))
        try:
            guest.wait_ready(BOOT_S)
            machine = StandIn(guest)
            for argv in (("mkdir", "-p", PLACE), ("mount", "/dev/vdb", PLACE)):
                machine.run(*argv).check()
            machine.virtualise()
            yield machine
        finally:
            guest.close()
    finally:
        driver.close()


def _prepared(driver: VmDriver, disk: Path) -> PreparedGuest:
    """The guest as the driver would launch it, with more of a host: two CPUs, memory, the second disk."""
    prepared = driver.prepare(InstanceSpec(image=ImageRef.parse(IMAGE)))
    plan = replace(
        prepared.plan,
        memory_bytes=MEMORY_BYTES,
        vcpus=CPUS,
        more_disks=(disk,),
        translation_cache_mib=TRANSLATION_CACHE_MIB,
    )
    return replace(prepared, plan=plan)


def _second_disk(store: ImageStore, scratch: Path) -> Path:
    """An ext4 image with everything below PLACE."""
    tree = scratch / "tree"
    tree.mkdir()
    for name in ("harness", "runtime", "workloads", "tests", "pyproject.toml", "tare.py"):
        _copy(SOURCE / name, tree / "source" / name)
    for name in MODULES:
        found = importlib.util.find_spec(name)
        assert found is not None
        assert found.origin is not None
        origin = Path(found.origin)
        origin = origin.parent if origin.name == "__init__.py" else origin
        _copy(origin, tree / "modules" / origin.name)
    # Or every command there would compile what it imports first.
    places = ["-s", str(tree), "-p", PLACE]
    run([sys.executable, "-m", "compileall", "-q", "-j", "0", *places, str(tree)], timeout_s=300)
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
    """The bench image and its machine: its disk, and its documents, of whose layers empty directories stand."""
    used = {layer.directory for layer in store.resolve(BENCH).layers}
    for layer in store.resolve(BENCH_MACHINE).layers:
        directory = target / layer.directory.relative_to(store.directory)
        directory.parent.mkdir(parents=True)
        if layer.directory in used:
            run(["cp", "-al", str(layer.directory), str(directory)], timeout_s=120)
        else:
            directory.mkdir()
    machine = store.machine(BENCH).directory
    (target / "machines").mkdir()
    run(["cp", "-a", "--sparse=always", str(machine), str(target / "machines")], timeout_s=300)
    for path in (store.directory / "blobs/sha256").iterdir():
        if path.stat().st_size < 1 << 16:  # a document, not a layer's archive
            _copy(path, target / "blobs/sha256" / path.name)
    _copy(store.directory / "oci-layout", target / "oci-layout")
    index = json.loads((store.directory / "index.json").read_bytes())
    names = {str(BENCH), str(BENCH_MACHINE)}
    index["manifests"] = [each for each in index["manifests"] if names & set(each.get("annotations", {}).values())]
    (target / "index.json").write_text(json.dumps(index))
