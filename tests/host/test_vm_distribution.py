"""The distribution's own machine, booted once: firmware, its init, the least memory, a card that it must let alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.drivers.libvirt import VmDriver
from runtime.spec import Limits
from runtime.vm.guest import Guest
from runtime.vm.plan import MINIMUM_FIRMWARE_MEMORY_BYTES, overhead_bytes
from tests.host.drivers import usable
from tests.host.network import address_of, ask, driver, inside
from tests.host.test_vm import READY_S
from tests.host.test_vm_network import PERL_SERVER, SPEC

__all__ = ["driver"]  # a fixture


@pytest.fixture(scope="module")
def guest(bench_host: Host) -> Iterator[Guest]:
    """One on a bridge with as little memory as is allowed; the last test closes it."""
    with usable(VmDriver(bench_host)) as vm:
        least = MINIMUM_FIRMWARE_MEMORY_BYTES + overhead_bytes(vm.prepare(SPEC).accelerator.name)
        with vm.launch(vm.prepare(dataclasses.replace(SPEC, limits=Limits(memory_bytes=least)))) as guest:
            guest.wait_ready(READY_S)
            yield guest


def test_it_boots_through_firmware_in_the_least_memory_that_is_allowed(guest: Guest) -> None:
    assert guest.plan.memory_bytes == MINIMUM_FIRMWARE_MEMORY_BYTES
    names = [name for name, _ in guest.timeline]
    assert names == ["request", "disk", "spawned", "firmware", "userland", "ready"]
    assert guest.exec(["readlink", "/proc/1/exe"], 60).stdout == b"/usr/lib/systemd/systemd\n"
    assert guest.exec(["test", "-d", "/sys/firmware/efi"], 60).exit_code == 0


def test_it_does_not_fight_for_its_card(guest: Guest, driver: ContainerDriver) -> None:
    guest.exec(["perl", "-e", PERL_SERVER, "7004"], 60).check()
    with driver.launch(driver.prepare(SPEC)) as container:
        container.wait_ready(30)
        assert guest.address is not None
        assert ask(guest.address, 7004, *inside(container)) == address_of(container)
        guest.exec(["systemctl", "is-system-running", "--wait"], 120)
        assert ask(guest.address, 7004, *inside(container)) == address_of(container)
    units = guest.exec(["systemctl", "list-units", "--all", "--no-legend", "systemd-networkd*", "networking*"], 60)
    assert b" running" not in units.stdout
    assert guest.exec(["hostname"], 60).stdout.decode().strip() == guest.id


def test_no_unit_of_it_fails(guest: Guest) -> None:
    guest.exec(["systemctl", "is-system-running", "--wait"], 120)
    assert guest.exec(["systemctl", "--failed", "--no-legend"], 60).stdout == b""


def test_it_powers_off_when_it_is_closed(guest: Guest) -> None:
    guest.close()
    assert [name for name, _ in guest.timeline][-2:] == ["stopped", "removed"]
    assert "Power down" in guest.console()
