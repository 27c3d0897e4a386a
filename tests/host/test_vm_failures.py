"""What goes wrong with virtual machines, really done: each a clear error, and nothing of the machine left."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import signal
import sysconfig
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from runtime.command import run
from runtime.driver import Host
from runtime.drivers.libvirt import FIRMWARE, QEMU, MicrovmDriver, PreparedGuest, VmDriver
from runtime.errors import TareError
from runtime.ledger import Ledger
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec
from runtime.vm import guest as guests
from runtime.vm import sweep
from runtime.vm.adoption import reaping
from runtime.vm.domain import MIB, DirectKernel
from runtime.vm.guest import Guest
from tests.host import efi
from tests.host.drivers import emulated
from tests.host.life import IMAGE, Said, Tare, await_no_keeper, borrow, rooted_for_machines

SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"))
READY_S = 180.0
FILLING = ("sh", "-c", "head -c 64M /dev/urandom >/var/tmp/x; sync")


@pytest.fixture(scope="module")
def microvm(bench_host: Host) -> Iterator[MicrovmDriver]:
    with emulated(MicrovmDriver, bench_host) as driver:
        yield driver


def changed(prepared: PreparedGuest, **changes: object) -> PreparedGuest:
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, **changes))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def nothing_left(microvm: MicrovmDriver) -> Iterator[None]:
    """No page, QEMU, group, disk or socket of what this process has launched."""
    yield
    host = microvm.host
    mine = [instance_id for instance_id, pid in Ledger(host.run).live() if pid == os.getpid()]
    known = {instance_id for instance_id, _ in Ledger(host.run).live()}
    assert mine == []
    assert [found for _, found, _ in sweep.qemus(host) if found not in known] == []
    assert microvm._connect().names() == []
    for directory in (host.root / "instances", host.run / "vm"):
        assert [path for path in directory.glob("tare-*/disk.qcow2") if path.parent.name not in known] == []


def script(tmp_path: Path, microvm: MicrovmDriver, body: str) -> PreparedGuest:
    """An emulator that is asked for its abilities as ever, but does `body` when a guest is to start."""
    prepared = microvm.prepare(SPEC)
    emulator = tmp_path / "emulator"
    own = f"{microvm.host.run}/vm"
    emulator.write_text(
        f'#!/bin/sh\nif [ "$1" = -name ] && [ "${{2#guest=tare-}}" != "$2" ]; then\nown={own}/${{2#guest=}}\n'
        f'own=${{own%%,*}}\necho $$ >$own/started\n{body}\nfi\nexec {prepared.plan.emulator} "$@"\n'
    )
    emulator.chmod(0o700)
    microvm._connect().abilities(emulator, "tcg")  # as `prepare` does: libvirt's first look is no part of a launch
    return changed(prepared, emulator=emulator)


def kill(guest: Guest, _: MicrovmDriver) -> None:
    os.kill(guest.host_pids()[0], signal.SIGKILL)


def destroy(guest: Guest, driver: MicrovmDriver) -> None:
    domain = driver._connect().find(guest.id)
    assert domain is not None
    assert guest._process is not None
    with reaping(guest._process):  # here QEMU is this process's child, and libvirt would wait for its zombie to go
        domain.destroy()


@pytest.mark.parametrize("paused", [False, True], ids=["idle", "paused"])
@pytest.mark.parametrize(("end", "words"), [(kill, "QEMU was ended by SIGKILL"), (destroy, "destroyed")])
def test_a_machine_ended_from_outside_is_told_of(
    microvm: MicrovmDriver, end: Callable[[Guest, MicrovmDriver], None], words: str, paused: bool
) -> None:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        if paused:
            guest.pause()
        end(guest, microvm)
        with pytest.raises(TareError, match=words):
            guest.exec(["true"], 60)
        assert not guest.alive()


@pytest.mark.parametrize(("end", "words"), [(kill, "SIGKILL"), (destroy, "destroyed")])
def test_a_machine_ended_while_it_boots_is_told_of(
    microvm: MicrovmDriver, end: Callable[[Guest, MicrovmDriver], None], words: str
) -> None:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        end(guest, microvm)
        with pytest.raises(TareError, match=words):
            guest.wait_ready(READY_S)


def test_an_emulator_that_ends_at_once_is_quoted(microvm: MicrovmDriver, tmp_path: Path) -> None:
    with pytest.raises(TareError, match="no bread today"):
        microvm.launch(script(tmp_path, microvm, "echo no bread today >&2; exit 1"))


def test_an_emulator_that_hangs_is_killed_in_time(
    microvm: MicrovmDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = script(tmp_path, microvm, f"echo $$ >{tmp_path}/pid; kill -STOP $$")
    monkeypatch.setattr(guests, "_START_TIMEOUT_S", 3.0)
    with pytest.raises(TareError, match="did not answer for 3 s and was killed"):
        microvm.launch(prepared)
    assert procfs.state(int((tmp_path / "pid").read_text())) in (None, "Z")


def test_a_damaged_initrd_is_told_by_the_console(microvm: MicrovmDriver, tmp_path: Path) -> None:
    prepared = microvm.prepare(SPEC)
    assert isinstance(prepared.plan.boot, DirectKernel)
    (tmp_path / "initrd").write_bytes(b"\x1f\x8b" + bytes(100_000))
    boot = dataclasses.replace(prepared.plan.boot, initrd=tmp_path / "initrd")
    with microvm.launch(changed(prepared, boot=boot)) as guest, pytest.raises(TareError, match=r"last words: .*\S"):
        guest.wait_ready(READY_S)


# --- what is not there


@pytest.fixture(scope="module")
def tare(bench_host: Host) -> Iterator[Tare]:
    with rooted_for_machines(bench_host) as tare:
        yield tare


def without(tare: Tare, hidden: Sequence[Path], *words: str, instead: Path = Path("/dev/null")) -> Said:
    """`tare` where the files `hidden` are `instead`, for it and its keeper alone."""
    masks = "".join(f"mount --bind {instead} {path} && " for path in hidden)
    return tare.call(["unshare", "--mount", "sh", "-c", f'{masks} exec "$@"', "sh", *tare.argv(*words)])


def assert_refused(tare: Tare, said: Said, words: str) -> None:
    """One line that holds `words`, and no trace of a machine."""
    assert said.code == 125
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    assert words in said.err
    assert tare("vm", "ls", "-aq").good() == ""
    assert traces(tare.host) == []
    await_no_keeper(tare.host)  # the next test's is another one


def traces(host: Host) -> list[str]:
    """What there is of machines: files, sockets, pages, records, QEMU."""
    places = [host.root / "instances", host.root / "guests", host.run / "vm", host.run / "instances"]
    files = [str(path) for place in places for path in place.glob("*")]
    return files + [f"QEMU {pid}" for pid, _, _ in sweep.qemus(host)]


def test_without_qemu_a_run_says_what_to_install(tare: Tare) -> None:
    found = shutil.which(QEMU)
    assert found is not None
    said = without(tare, [Path(found)], "vm", "run", "--micro", IMAGE, "true")
    assert_refused(tare, said, f"QEMU: {QEMU} is not on PATH (run ./bootstrap")


def test_without_libvirts_module_a_run_says_what_to_install(tare: Tare) -> None:
    (module,) = Path(sysconfig.get_path("platlib")).glob("libvirtmod.*.so")
    said = without(tare, [module], "vm", "run", "--micro", IMAGE, "true")
    assert_refused(tare, said, "libvirt: ")
    assert "run ./bootstrap" in said.err


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("qemu:///system?socket=/nowhere", "connection to qemu:///system: Failed to connect socket to '/nowhere'"),
        ("xen:///system", "libvirt URI xen:///system: its driver xen is not QEMU"),
        ("qemu+ssh://elsewhere/system", "it leads to another host"),
        ("nonsense", "it does not begin with a driver"),
    ],
)
def test_a_libvirt_that_is_not_there_or_is_none_is_refused(tare: Tare, uri: str, words: str) -> None:
    assert_refused(tare, tare("--connect", uri, "vm", "run", "--micro", IMAGE, "true"), words)


def test_without_firmware_a_run_says_what_to_install(tare: Tare) -> None:
    codes = [Path(code) for code, _ in FIRMWARE if Path(code).exists()]
    said = without(tare, codes, "vm", "run", IMAGE, "true")
    assert_refused(tare, said, "UEFI firmware: no readable OVMF image was found (run ./bootstrap")


def test_firmware_that_is_none_is_told_in_qemus_words(tare: Tare, tmp_path: Path) -> None:
    (tmp_path / "code").write_bytes(bytes(5000))
    codes = [Path(code) for code, _ in FIRMWARE if Path(code).exists()]
    said = without(tare, codes, "vm", "run", "--rm", IMAGE, "true", instead=tmp_path / "code")
    assert_refused(tare, said, "system firmware")


# --- a full disk


@contextmanager
def small(bench_host: Host, size: str) -> Iterator[Host]:
    """A state directory with the host's images, of which nothing else may be larger than `size`."""
    top = Path(tempfile.mkdtemp(prefix="tf", dir="/var/tmp"))
    try:
        run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tare-test", str(top)], timeout_s=60)
        try:
            host = Host(root=top / "lib", run=top / "run")
            borrow(bench_host, host)
            yield host
        finally:
            run(["umount", str(top)], timeout_s=60)
    finally:
        top.rmdir()


def fill(directory: Path) -> None:
    with (directory / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while True:
            ballast.write(bytes(4096))


@pytest.mark.parametrize("left", ["nothing", "too little"])
def test_a_full_disk_keeps_a_machine_from_being_made(
    microvm: MicrovmDriver, bench_host: Host, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    with small(bench_host, "128k") as host:
        monkeypatch.setattr(microvm, "host", host)
        prepared = microvm.prepare(SPEC)
        if left == "nothing":
            fill(host.root)
        with pytest.raises(TareError, match=f"no space is left below {host.root}"):
            microvm.launch(prepared)
        assert traces(host) == []


def test_a_disk_that_fills_while_a_guest_runs_is_told_at_once(
    microvm: MicrovmDriver, bench_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small(bench_host, "24m") as host:
        monkeypatch.setattr(microvm, "host", host)
        with microvm.launch(microvm.prepare(SPEC)) as guest:
            guest.wait_ready(READY_S)
            assert 'error_policy="stop"' in guest.xml().replace("'", '"')
            with pytest.raises(TareError, match=r"the host's disk is full: QEMU has paused the guest, writing /"):
                guest.exec(FILLING, 300)
            assert guest.trouble is not None
        assert traces(host) == []


def test_a_kept_machine_whose_disk_is_full_ends_and_says_why(bench_host: Host) -> None:
    with small(bench_host, "24m") as host:
        tare = Tare(host.root.parent, {"TARE_ACCELERATOR": "tcg"})
        words = (
            "vm",
            "run",
            "--micro",
            "--name",
            "fat",
            IMAGE,
            "sh",
            "-c",
            "head -c 64M /dev/urandom >/var/tmp/x; sync",
        )
        process = tare.begin(*words)
        _, err = process.communicate(timeout=READY_S)
        assert process.returncode == 125
        assert b"the host's disk is full" in err
        assert len(err.splitlines()) == 1
        assert "the host's disk is full" in tare("vm", "inspect", "fat").good()
        tare("vm", "rm", "fat").good()
        assert traces(host) == []
        await_no_keeper(host)
        tare.close()


# --- ends of their own


def test_a_machine_killed_during_a_command_is_told_of(microvm: MicrovmDriver) -> None:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        killer = threading.Timer(0.5, kill, (guest, microvm))
        killer.start()
        with pytest.raises(TareError, match="QEMU was ended by SIGKILL"):
            guest.exec(["sleep", "1000"], 300)
        killer.join()


@pytest.mark.parametrize(
    ("more", "words"),
    [("", "the guest ended by itself.*Kernel panic"), (" panic=0", "the kernel panicked.*Kernel panic")],
    ids=["ends", "stands still"],
)
def test_a_kernel_that_panics_during_a_command_is_told_of(microvm: MicrovmDriver, more: str, words: str) -> None:
    prepared = microvm.prepare(SPEC)
    boot = prepared.plan.boot
    assert isinstance(boot, DirectKernel)
    boot = dataclasses.replace(boot, command_line=boot.command_line + more)
    with microvm.launch(changed(prepared, boot=boot)) as guest:
        guest.wait_ready(READY_S)
        with pytest.raises(TareError, match=words):
            guest.exec(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 1000"], 300)


def test_a_kernel_that_panics_as_it_boots_is_told_of(microvm: MicrovmDriver) -> None:
    prepared = microvm.prepare(SPEC)
    boot = prepared.plan.boot
    assert isinstance(boot, DirectKernel)
    boot = dataclasses.replace(boot, command_line=f"{boot.command_line} rdinit=/none root=/dev/none panic=0")
    with microvm.launch(changed(prepared, boot=boot)) as guest, pytest.raises(TareError, match="the kernel panicked"):
        guest.wait_ready(READY_S)


def test_firmware_that_crashes_is_told_of(microvm: MicrovmDriver, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    efi.bootable(disk, efi.program(efi.INVALID_OPCODE))
    driver = VmDriver(microvm.host)
    try:
        prepared = changed(driver.prepare(SPEC), base=disk)
        with driver.launch(prepared) as guest, pytest.raises(TareError) as told:
            guest.wait_ready(READY_S)
        assert re.search(r"the firmware crashed.*X64 Exception Type", str(told.value))
    finally:
        driver.close()


def test_a_cloud_image_that_only_a_bios_boots_is_refused(tare: Tare, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.touch()
    os.truncate(disk, 8 * MIB)
    run(["sh", "-c", 'printf "label: dos\\ntype=83, bootable\\n" | sfdisk -q "$1"', "sh", str(disk)], timeout_s=60)
    said = tare("vm", "run", "--rm", str(disk), "true")
    assert_refused(tare, said, "no EFI system partition: only a BIOS boots it (get its variant for UEFI)")
