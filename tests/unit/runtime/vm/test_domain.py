"""Domain XML is a pure function: compared with golden files, and put before libvirt's own schema."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.errors import TareError, UsageError
from runtime.vm.connection import Connection
from runtime.vm.domain import MIB, DirectKernel, Domain, Firmware, Interface, Tuning, domain_xml

GOLDEN = Path(__file__).resolve().parents[3] / "data" / "domain"
MICROVM = Domain(
    name="tare-0123456789ab",
    accelerator="tcg",
    emulator=Path("/var/lib/tare/cache/qemu-0123456789ab"),
    memory_bytes=256 * MIB,
    vcpus=1,
    boot=DirectKernel(Path("/images/vmlinuz"), Path("/images/initrd"), "console=ttyS0 quiet <&>"),
    disk=Path("/instances/tare-0123456789ab/disk.qcow2"),
    base=Path("/images/disk.raw"),
    cache="none",
    agent=Path("/run/tare/vm/tare-0123456789ab/agent"),
    console=Path("/run/tare/vm/tare-0123456789ab/console"),
    flat=True,
)
VM = replace(
    MICROVM,
    boot=Firmware(Path("/usr/share/OVMF/OVMF_CODE_4M.fd"), Path("/instances/tare-0123456789ab/variables.fd")),
    flat=False,
)
CARD = Interface("tare-v1", "02:00:0a:c8:00:02", 1500)
CASES = {
    "microvm-tcg": MICROVM,
    "microvm-kvm": replace(MICROVM, accelerator="kvm", vcpus=3),
    "vm-tcg": VM,
    "vm-kvm": replace(VM, accelerator="kvm", memory_bytes=1024 * MIB),
    "vm-writeback": replace(VM, cache="writeback"),
    "vm-disks": replace(VM, more_disks=(Path("/a.raw"), Path("/b.raw")), translation_cache_mib=512),
    "vm-network": replace(VM, interface=CARD, uuid="0b5a4f0e-3f3c-4a8e-9d3b-2f1c0d9e8a77"),
    "microvm-restored": replace(
        MICROVM, base=Path("/saved/disk.qcow2"), base_format="qcow2", lowest=Path("/images/disk.raw")
    ),
    "vm-cloud": replace(VM, base=Path("/images/cloud.qcow2"), base_format="qcow2", seed=Path("/instances/seed.iso")),
    "vm-pinned": replace(VM, vcpus=2, tuning=Tuning(pins=(3, 1))),
    "vm-hugepages": replace(VM, accelerator="kvm", tuning=Tuning(hugepages=True)),
    "vm-locked": replace(VM, tuning=Tuning(locked=True)),
    "vm-reflink": replace(VM, disk=Path("/instances/disk.raw"), tuning=Tuning(reflink=True)),
    "vm-daemon": replace(VM, security_models=("dac", "apparmor")),
    "microvm-network": replace(MICROVM, interface=CARD),
    "microvm-all": replace(
        MICROVM,
        accelerator="kvm",
        interface=CARD,
        more_disks=(Path("/a.raw"),),
        seed=Path("/instances/seed.iso"),
        tuning=Tuning(pins=(2,), hugepages=True, locked=True),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_xml_is_as_recorded(name: str) -> None:
    path = GOLDEN / f"{name}.xml"
    xml = domain_xml(CASES[name])
    if os.environ.get("TARE_RECORD") == "1":
        path.write_text(xml)
    assert xml == path.read_text()


@pytest.mark.parametrize("name", CASES)
def test_libvirt_accepts_the_xml_by_its_schema_and_keeps_all_of_it(name: str, tests_libvirt: Connection) -> None:
    xml = domain_xml(CASES[name])
    flags = tests_libvirt.libvirt.VIR_DOMAIN_DEFINE_VALIDATE
    domain = tests_libvirt.handle.defineXMLFlags(xml, flags)
    try:
        kept = ET.fromstring(domain.XMLDesc())
    finally:
        domain.undefine()
    for element in ET.fromstring(xml).iter():
        for attribute, value in element.attrib.items():
            if (element.tag, attribute) not in (("memory", "unit"), ("tb-cache", "unit")):
                found = [other.get(attribute) for other in kept.iter(element.tag)]
                assert value in found, f"{element.tag} {attribute}={value} was dropped"


def test_libvirt_rejects_what_its_schema_does_not_know(tests_libvirt: Connection) -> None:
    xml = domain_xml(MICROVM).replace("clock", "clokc")
    with pytest.raises(TareError, match="schema"), tests_libvirt.explained("domain"):
        tests_libvirt.handle.defineXMLFlags(xml, tests_libvirt.libvirt.VIR_DOMAIN_DEFINE_VALIDATE)


def test_no_two_cases_give_the_same_xml() -> None:
    assert len({domain_xml(case) for case in CASES.values()}) == len(CASES)


def test_pins_name_a_cpu_for_every_vcpu() -> None:
    with pytest.raises(UsageError, match="pins to 1 CPUs: the guest has 2 vCPUs"):
        replace(VM, vcpus=2, tuning=Tuning(pins=(0,)))


def test_a_pin_is_a_cpu_number() -> None:
    with pytest.raises(UsageError, match="not negative"):
        Tuning(pins=(0, -1))


@pytest.mark.parametrize(
    ("mac", "mtu", "why"),
    [("02:00:0a:00:00", 1500, "hardware address"), ("03:00:0a:00:00:01", 1500, "hardware"), (CARD.mac, 67, "MTU 67")],
)
def test_an_interface_needs_one_cards_address_and_a_real_mtu(mac: str, mtu: int, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        Interface("tap0", mac, mtu)


def test_devices_of_a_flat_guest_have_a_slot_each() -> None:
    root = ET.fromstring(domain_xml(CASES["microvm-all"]))
    slots = [address.get("slot") for address in root.iter("address")]
    assert slots == ["0x03", "0x06", "0x07", "0x04", "0x05", "0x08"]
