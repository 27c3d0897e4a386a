"""Machines of a libvirt daemon, `qemu:///system`: what is different there, with a daemon of the tests' own."""

from __future__ import annotations

import os
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.libvirt import MicrovmDriver
from runtime.drivers.restore import RestoreDriver
from runtime.errors import TareError, UsageError
from runtime.ledger import Ledger
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkMode, NetworkSpec
from runtime.vm import sweep, uri
from runtime.vm.domain import MIB
from runtime.vm.guest import Guest
from tests.host.daemon import Daemon, daemon
from tests.host.drivers import emulated
from tests.host.life import IMAGE, Tare, rooted_for_machines

LIMITS = Limits(cpus=0.5, memory_bytes=512 * MIB, pids=100)
SPEC = InstanceSpec(image=ImageRef.parse(IMAGE), limits=LIMITS, network=NetworkSpec(mode=NetworkMode.BRIDGE))
READY_S = 180.0


@pytest.fixture(scope="module")
def system() -> Iterator[Daemon]:
    with daemon() as started:
        yield started


@pytest.fixture(scope="module")
def microvm(bench_host: Host, system: Daemon) -> Iterator[MicrovmDriver]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(uri.VARIABLE, system.uri)
        with emulated(MicrovmDriver, bench_host) as driver:
            yield driver


@pytest.fixture(autouse=True)
def nothing_left(microvm: MicrovmDriver) -> Iterator[None]:
    """No page, QEMU, domain or disk of what this process has launched."""
    before = {instance_id for instance_id, _ in Ledger(microvm.host.run).live()}
    yield
    mine = {instance_id for instance_id, pid in Ledger(microvm.host.run).live() if pid == os.getpid()}
    known = {instance_id for instance_id, _ in Ledger(microvm.host.run).live()}
    assert mine <= before
    assert [found for _, found, _ in sweep.qemus(microvm.host) if found not in known] == []
    assert set(microvm._connect().names()) <= before


@pytest.fixture(scope="module")
def guest(microvm: MicrovmDriver) -> Iterator[Guest]:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        yield guest


def test_facts_name_the_daemon_s_libvirt_and_qemu(microvm: MicrovmDriver) -> None:
    facts = microvm.probe().facts
    assert facts["uri"] == "qemu:///system"
    assert facts["libvirt's qemu"].count(".") == 2


def test_its_domain_is_in_the_daemon_s_list_while_it_lives(microvm: MicrovmDriver) -> None:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        assert guest.id in microvm._connect().names()
        guest.wait_ready(READY_S)
        assert guest.exec(["echo", "hello"], 60).stdout == b"hello\n"
    assert guest.id not in microvm._connect().names()
    assert [name for name, _ in guest.timeline][-2:] == ["stopped", "removed"]


def test_qemu_is_root_s_and_its_files_are_as_private_as_without_a_daemon(guest: Guest) -> None:
    (pid,) = guest.host_pids()
    status = Path(f"/proc/{pid}/status").read_text()
    assert "\nUid:\t0\t0\t0\t0\n" in status
    for path in guest.disk_paths().exclusive:
        info = path.stat()
        assert (info.st_uid, info.st_gid) == (0, 0)
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    for path in guest.disk_paths().shared:
        assert path.stat().st_uid == 0


def test_limits_bind_every_thread_before_the_guest_s_first_instruction(guest: Guest) -> None:
    """It is started paused, and goes on when all that the daemon made is in the group."""
    assert [reading for reading in guest.limit_readings() if not reading.holds] == []
    (pid,) = guest.host_pids()
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    assert len(threads) > 2
    for thread in threads:
        assert f"/tare/{guest.id}" in (thread / "cgroup").read_text()
    usage = guest.usage()
    assert usage.memory_bytes is not None
    assert usage.memory_bytes > 0.5 * procfs.rss_bytes((pid,))
    names = [name for name, _ in guest.timeline]
    assert names[:5] == ["request", "disk", "spawned", "userland", "ready"]


def test_a_domain_destroyed_by_others_is_told_of(microvm: MicrovmDriver) -> None:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        domain = microvm._connect().find(guest.id)
        assert domain is not None
        domain.destroy()
        with pytest.raises(TareError, match="it was destroyed through libvirt"):
            guest.exec(["true"], 60)


def test_a_killed_qemu_is_told_of(microvm: MicrovmDriver) -> None:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        os.kill(guest.host_pids()[0], signal.SIGKILL)
        with pytest.raises(TareError, match=r"QEMU was killed or failed|QEMU is gone"):
            guest.exec(["true"], 60)


def test_pausing_and_resuming_are_the_daemon_s(guest: Guest) -> None:
    guest.pause()
    with pytest.raises(TareError, match="not done after"):
        guest.exec(["true"], 0.5)
    guest.resume()
    assert guest.exec(["true"], 60).exit_code == 0


def test_a_restored_guest_is_refused_by_name(microvm: MicrovmDriver) -> None:
    driver = RestoreDriver(microvm.host)
    try:
        with pytest.raises(UsageError, match="a daemon's libvirt is not possible yet"):
            driver.prepare(replace(SPEC, network=NetworkSpec()))
    finally:
        driver.close()


def test_tare_vm_runs_on_it_and_clean_finds_nothing(bench_host: Host, system: Daemon) -> None:
    with rooted_for_machines(bench_host) as tare:
        process = tare.begin("--connect", system.uri, "vm", "run", "--rm", "--micro", IMAGE, "echo", "hello")
        out, err = process.communicate(timeout=READY_S)
        assert (out, err, process.returncode) == (b"hello\n", b"", 0)
        assert sweep_finds(tare) == []


def sweep_finds(tare: Tare) -> list[str]:
    return [str(path) for place in ("instances", "guests") for path in (tare.host.root / place).glob("*")]


def test_a_daemon_that_dies_is_told_of_and_its_machine_goes(bench_host: Host, microvm: MicrovmDriver) -> None:
    """The machine lives on without it; closing it kills QEMU, and no disk, group or page stays."""
    with daemon() as other, pytest.MonkeyPatch.context() as patch:
        patch.setenv(uri.VARIABLE, other.uri)
        with rooted_for_machines(bench_host) as tare:
            tare.variables[uri.VARIABLE] = other.uri
            process = tare.begin("vm", "run", "-d", "--micro", "--name", "one", IMAGE)
            process.communicate(timeout=READY_S)
            assert process.returncode == 0
            tare("vm", "exec", "one", "true").good()
            other.kill()
            tare("vm", "exec", "one", "true").good()
            said = tare("vm", "rm", "-f", "one")
            assert len(said.err.splitlines()) <= 1
            assert sweep_finds(tare) == []
            assert list(sweep.qemus(tare.host)) == []
