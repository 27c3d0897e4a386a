"""What goes wrong with virtual machines, really done: each a clear error, and nothing of the machine left."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.libvirt import MicrovmDriver, PreparedGuest
from runtime.errors import TareError
from runtime.ledger import Ledger
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec
from runtime.vm import guest as guests
from runtime.vm import sweep
from runtime.vm.accelerator import VARIABLE
from runtime.vm.adoption import reaping
from runtime.vm.domain import DirectKernel
from runtime.vm.guest import Guest
from tests.conftest import skip_or_fail

SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"))
READY_S = 180.0


@pytest.fixture(scope="module")
def microvm(bench_host: Host) -> Iterator[MicrovmDriver]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, "tcg")
        driver = MicrovmDriver(bench_host)
        available = driver.probe()
        if not available.usable:
            driver.close()
            skip_or_fail(available.reason)
        yield driver
        driver.close()


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
