"""Restored guests, really: many from one saved state, each somebody of its own; states that must not be used."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers import restore as module
from runtime.drivers.libvirt import MicrovmDriver, PreparedGuest, find_qemu
from runtime.drivers.restore import RestoreDriver
from runtime.errors import TareError
from runtime.ledger import Ledger
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkMode, NetworkSpec
from runtime.vm import accelerator, sweep
from runtime.vm.domain import MIB
from runtime.vm.guest import Guest
from runtime.vm.saved import Saved
from tests.host.drivers import emulated
from tests.host.life import ROOT, borrow
from tests.host.test_vm_network import PERL_SERVER, asked

SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"), limits=Limits(memory_bytes=240 * MIB))
ON_BRIDGE = dataclasses.replace(SPEC, network=NetworkSpec(mode=NetworkMode.BRIDGE))
READY_S = 180.0
MANY = 3
# Saves a state, or tries to, until it is killed.
SAVER = """
import sys
from pathlib import Path
from runtime.driver import Host
from runtime.drivers.restore import RestoreDriver
from tests.host.test_vm_restore import SPEC
driver = RestoreDriver(Host(root=Path(sys.argv[1]), run=Path(sys.argv[2])))
print("begun", flush=True)
driver.prepare(SPEC)
"""


@pytest.fixture(scope="module")
def host(bench_host: Host) -> Iterator[Host]:
    """States of these tests' own, which they damage."""
    root = Path(tempfile.mkdtemp(prefix="tr", dir="/var/tmp"))
    host = Host(root=root / "lib", run=bench_host.run)
    borrow(bench_host, host)
    yield host
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def driver(host: Host) -> Iterator[RestoreDriver]:
    with emulated(RestoreDriver, host) as driver:
        yield driver


@pytest.fixture(autouse=True)
def nothing_left(driver: RestoreDriver) -> Iterator[None]:
    """No page, QEMU or file of what this process has launched, but for the states."""
    before = {instance_id for instance_id, _ in Ledger(driver.host.run).live()}
    yield
    mine = {instance_id for instance_id, pid in Ledger(driver.host.run).live() if pid == os.getpid()}
    assert mine <= before
    assert driver.leftovers() == []
    instances = {path.name for path in (driver.host.root / "instances").glob("*")}
    assert instances <= before


@pytest.fixture(scope="module")
def guests(driver: RestoreDriver) -> Iterator[list[Guest]]:
    """Several restored at once from one saved state."""
    prepared = driver.prepare(ON_BRIDGE)

    def start(_: int) -> Guest:
        guest = driver.launch(prepared)
        guest.wait_ready(READY_S)
        return guest

    with ThreadPoolExecutor(MANY) as pool:
        guests = list(pool.map(start, range(MANY)))
    yield guests
    for guest in guests:
        guest.close()


def saved(prepared: PreparedGuest) -> Saved:
    assert prepared.plan.saved is not None
    return prepared.plan.saved


def inside(guest: Guest, command: str) -> str:
    return guest.exec(["sh", "-c", command], 60).check().stdout.decode().strip()


@pytest.mark.parametrize(
    "command",
    [
        "hostname",
        "cat /etc/hostname",
        "cat /etc/machine-id",
        "cat /sys/class/net/e*/address",
        "tail -n 1 /etc/hosts",
        "cat /proc/sys/kernel/random/uuid",
        "head -c 16 /dev/urandom | od -A n -t x1",
    ],
)
def test_each_of_many_is_somebody_of_its_own(guests: list[Guest], command: str) -> None:
    assert len({inside(guest, command) for guest in guests}) == MANY


def test_each_knows_its_own_name_and_the_host_s_time(guests: list[Guest]) -> None:
    for guest in guests:
        assert inside(guest, "hostname") == guest.id
        earliest, then, latest = time.time(), float(inside(guest, "date +%s.%N")), time.time()
        assert earliest - 1 < then < latest + 1
        state = saved_state(guest).stat().st_mtime
        assert then - state > 0, "nothing was seen: the state is of the same moment"


def saved_state(guest: Guest) -> Path:
    assert guest.plan.saved is not None
    return guest.plan.saved.state


def test_each_writes_to_a_disk_of_its_own_over_the_same(guests: list[Guest]) -> None:
    disk = hashlib.sha256(guests[0].plan.base.read_bytes()).hexdigest()
    for guest in guests:
        inside(guest, f"test ! -e /var/tmp/mine; echo {guest.id} >/var/tmp/mine; sync")
    assert [inside(guest, "cat /var/tmp/mine") for guest in guests] == [guest.id for guest in guests]
    assert len({guest.disk_paths().exclusive for guest in guests}) == MANY
    assert len({guest.disk_paths().shared for guest in guests}) == 1
    assert hashlib.sha256(guests[0].plan.base.read_bytes()).hexdigest() == disk


def test_they_reach_each_other_by_addresses_of_their_own(guests: list[Guest], driver: RestoreDriver) -> None:
    first, *others = guests
    assert first.address is not None
    first.exec(["perl", "-e", PERL_SERVER, "7000"], 60).check()
    assert [asked(other, first.address, 7000) for other in others] == [other.address for other in others]
    booted = MicrovmDriver(driver.host)
    try:
        with booted.launch(booted.prepare(ON_BRIDGE)) as guest:
            guest.wait_ready(READY_S)
            assert asked(guest, first.address, 7000) == guest.address
    finally:
        booted.close()


def test_its_agent_goes_on_as_a_booted_one_s(guests: list[Guest]) -> None:
    guest = guests[0]
    assert [name for name, _ in guest.timeline][:4] == ["request", "disk", "spawned", "userland"]
    assert "ready" in guest.timeline
    assert not {"firmware", "kernel"} & {name for name, _ in guest.timeline}
    assert guest.channel.ping(b"x" * 100_000) > 0
    assert len(guest.exec(["head", "-c", "3000000", "/dev/zero"], 60).stdout) == 3_000_000
    with pytest.raises(TareError, match=r"not done after 0\.2 s; killed"):
        guest.exec(["sleep", "1000"], 0.2)
    assert guest.exec(["sh", "-c", "exit 7"], 60).exit_code == 7


# --- states that are not to be used


@pytest.fixture
def prepared(driver: RestoreDriver) -> PreparedGuest:
    return driver.prepare(SPEC)


def works(driver: RestoreDriver, prepared: PreparedGuest) -> None:
    with driver.launch(prepared) as guest:
        guest.wait_ready(READY_S)


def again(driver: RestoreDriver) -> PreparedGuest:
    """Prepared by a driver that holds no state yet."""
    other = RestoreDriver(driver.host)
    try:
        return other.prepare(SPEC)
    finally:
        other.close()


@pytest.mark.parametrize("part", ["a bit", "its end", "its disk", "its record"])
def test_a_damaged_state_is_made_anew(driver: RestoreDriver, prepared: PreparedGuest, part: str) -> None:
    state = saved(prepared)
    driver._states_used.close()
    match part:
        case "a bit":
            with state.state.open("r+b") as file:
                file.seek(state.size_bytes // 2)
                byte = file.read(1)
                file.seek(-1, os.SEEK_CUR)
                file.write(bytes([byte[0] ^ 1]))
        case "its end":
            os.truncate(state.state, state.size_bytes - 4096)
        case "its disk":
            state.disk.unlink()
        case "its record":
            (state.directory / "record.json").write_text("{")
    damaged_ns = time.time_ns()
    anew = driver.prepare(SPEC)
    assert saved(anew).directory == state.directory
    assert saved(anew).state.stat().st_mtime_ns > damaged_ns
    works(driver, anew)


def test_a_damaged_state_that_others_use_is_refused(driver: RestoreDriver, prepared: PreparedGuest) -> None:
    state = saved(prepared)
    whole = state.state.read_bytes()
    try:
        os.truncate(state.state, state.size_bytes - 4096)
        with pytest.raises(TareError, match=f"saved state {state.directory.name}: corrupt"):
            again(driver)
    finally:
        state.state.write_bytes(whole)
    assert saved(again(driver)) == state


def test_a_state_that_qemu_does_not_take_is_told_in_its_words(driver: RestoreDriver, prepared: PreparedGuest) -> None:
    state = saved(prepared)
    directory = driver.host.root / "garbage"
    shutil.copytree(state.directory, directory)
    with (directory / "state").open("r+b") as file:
        file.seek(state.offset)
        file.write(os.urandom(1 << 20))
    bad = dataclasses.replace(state, directory=directory)
    plan = dataclasses.replace(prepared.plan, saved=bad)
    try:
        with pytest.raises(TareError, match=r"virtual machine tare-.*: .*(migration|load|stream)"):
            driver.launch(dataclasses.replace(prepared, plan=plan))
    finally:
        shutil.rmtree(directory)


@pytest.mark.parametrize("change", ["QEMU", "CPU", "network", "memory"])
def test_a_state_of_another_machine_is_not_found(
    driver: RestoreDriver, prepared: PreparedGuest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: str
) -> None:
    plan = dataclasses.replace(prepared.plan, base=prepared.plan.lowest, base_format="raw", lowest=None, saved=None)  # type: ignore[arg-type]
    ours = driver._key(plan)
    assert ours == saved(prepared).directory.name
    match change:
        case "QEMU":
            other = tmp_path / "qemu"
            shutil.copy2(find_qemu(), other)
            monkeypatch.setattr(module, "find_qemu", lambda: other)
        case "CPU":
            cpuinfo = Path("/proc/cpuinfo").read_text().replace("flags\t\t:", "flags\t\t: lahf_lm_of_another")
            (tmp_path / "cpuinfo").write_text(cpuinfo)
            theirs = accelerator.key(plan.emulator, tmp_path / "cpuinfo")
            monkeypatch.setattr(accelerator, "key", lambda _: theirs)
        case "network":
            plan = dataclasses.replace(plan, spec=ON_BRIDGE)
        case "memory":
            plan = dataclasses.replace(plan, memory_bytes=plan.memory_bytes + MIB)
    assert driver._key(plan) != ours


def test_a_killed_maker_leaves_what_a_sweep_removes(driver: RestoreDriver, bench_host: Host) -> None:
    root = Path(tempfile.mkdtemp(prefix="tr", dir="/var/tmp"))
    host = Host(root=root / "lib", run=root / "run")
    try:
        borrow(bench_host, host)
        maker = subprocess.Popen(
            [sys.executable, "-c", SAVER, str(host.root), str(host.run)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert maker.stdout is not None
        assert maker.stdout.readline() == "begun\n"
        while not (half := list((host.root / "cache/saved").glob("*.half"))) and maker.poll() is None:
            time.sleep(0.01)
        assert half
        maker.send_signal(signal.SIGKILL)
        maker.communicate()
        other = RestoreDriver(host)
        try:
            assert str(half[0]) in other.leftovers()
            assert str(half[0]) in other.sweep()
            assert other.leftovers() == []
        finally:
            other.close()
        assert list(sweep.qemus(host)) == []
        assert list((host.root / "instances").glob("*")) == []
    finally:
        shutil.rmtree(root)
