"""Domain XML is a pure function: compared with golden files, and put before libvirt's own schema."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.vm.connection import Connection
from runtime.vm.domain import MIB, DirectKernel, Domain, Firmware, domain_xml

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
CASES = {
    "microvm-tcg": MICROVM,
    "microvm-kvm": replace(MICROVM, accelerator="kvm", vcpus=3),
    "vm-tcg": VM,
    "vm-kvm": replace(VM, accelerator="kvm", memory_bytes=1024 * MIB),
    "vm-writeback": replace(VM, cache="writeback"),
    "vm-disks": replace(VM, more_disks=(Path("/a.raw"), Path("/b.raw")), translation_cache_mib=512),
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
