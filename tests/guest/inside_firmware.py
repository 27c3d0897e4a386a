"""Run inside the stand-in by `test_standin.py`: the distribution's guest on KVM, through firmware and boot loader."""

from __future__ import annotations

import dataclasses
from contextlib import closing

from runtime.driver import Host
from runtime.drivers.libvirt import VmDriver
from runtime.spec import Limits
from tests.guest.inside import MIB
from tests.guest.inside_kvm import EXEC_S, SPEC, need, runs_on_kvm, said

READY_S = 360.0  # a bound, not an expectation: all of this is emulated


def test_vm_boots_through_firmware_on_kvm(bench_host: Host) -> None:
    with closing(VmDriver(bench_host)) as driver:
        need(driver)
        limits = Limits(cpus=2.0, memory_bytes=512 * MIB)
        with driver.launch(driver.prepare(dataclasses.replace(SPEC, limits=limits))) as guest:
            guest.wait_ready(READY_S)
            assert [name for name, _ in guest.timeline] == [
                *("request", "disk", "spawned", "firmware", "userland", "ready"),
            ]
            runs_on_kvm(guest)
            assert said(guest, "nproc") == "2"
            assert said(guest, "readlink", "/proc/1/exe") == "/usr/lib/systemd/systemd"
            assert guest.exec(["test", "-d", "/sys/firmware/efi"], EXEC_S).exit_code == 0
            assert [reading for reading in guest.limit_readings() if not reading.holds] == []
