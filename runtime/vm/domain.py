"""A virtual machine as a value, and its libvirt domain XML: a pure function of that value.

What a knowing engineer would configure and nothing a measurement would have to explain: no graphics,
USB, sound or balloon; the CPU model that the accelerator has at best; one socket; unmerged memory.
Not where any of the files come from, and no limits: those are the control group's (see `guest`).
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from string import ascii_lowercase

from runtime.channel import PORT_NAME

MIB = 1 << 20
TRANSLATION_CACHE_MIB = 64
"""TCG's buffer for translated code; QEMU's own default, up to 1 GiB, would drown what the guest itself costs."""


@dataclass(frozen=True, slots=True)
class Firmware:
    """UEFI: the code, shared and read-only, and this instance's own copy of the variables."""

    code: Path
    variables: Path


@dataclass(frozen=True, slots=True)
class DirectKernel:
    """Boot `kernel` with `initrd` without asking the disk."""

    kernel: Path
    initrd: Path
    command_line: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One guest. `memory_bytes` is what the guest sees; `agent` and `console` are sockets that QEMU connects to.

    `cache` is QEMU's disk cache mode: `none` (O_DIRECT, native AIO) or `writeback`. `flat` puts the
    devices straight on the root complex instead of one hot-pluggable port each, for fewer buses to scan.
    `more_disks` are raw images, which the guest finds as vdb and so on and may write to; `translation_cache_mib` is
    TCG's.
    """

    name: str
    accelerator: str
    emulator: Path
    memory_bytes: int
    vcpus: int
    boot: Firmware | DirectKernel
    disk: Path
    base: Path
    cache: str
    agent: Path
    console: Path
    flat: bool = False
    more_disks: tuple[Path, ...] = ()
    translation_cache_mib: int = TRANSLATION_CACHE_MIB


def domain_xml(domain: Domain) -> str:
    """The XML for virDomainCreateXML. Format: libvirt.org/formatdomain.html."""
    kvm = domain.accelerator == "kvm"
    root = ET.Element("domain", type="kvm" if kvm else "qemu")
    _text(root, "name", domain.name)
    _text(root, "memory", str(domain.memory_bytes // 1024), unit="KiB")
    # Merged pages would make the memory of two guests of one image depend on whether ksmd came by.
    ET.SubElement(ET.SubElement(root, "memoryBacking"), "nosharepages")
    _text(root, "vcpu", str(domain.vcpus), placement="static")
    _boot(ET.SubElement(root, "os"), domain.boot)
    _features(ET.SubElement(root, "features"), None if kvm else domain.translation_cache_mib)
    cpu = ET.SubElement(root, "cpu", mode="host-passthrough" if kvm else "maximum")
    ET.SubElement(cpu, "topology", sockets="1", dies="1", cores=str(domain.vcpus), threads="1")
    clock = ET.SubElement(root, "clock", offset="utc")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    # A guest that ends, panics (panic=-1 reboots at once) or crashes is gone: never restarted behind our back.
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")
    _devices(ET.SubElement(root, "devices"), domain)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _boot(os: ET.Element, boot: Firmware | DirectKernel) -> None:
    _text(os, "type", "hvm", arch="x86_64", machine="q35")
    match boot:
        case Firmware(code, variables):
            _text(os, "loader", str(code), readonly="yes", type="pflash")
            _text(os, "nvram", str(variables))
            ET.SubElement(os, "bootmenu", enable="no")
        case DirectKernel(kernel, initrd, command_line):
            _text(os, "kernel", str(kernel))
            _text(os, "initrd", str(initrd))
            _text(os, "cmdline", command_line)


def _features(features: ET.Element, translation_cache_mib: int | None) -> None:
    ET.SubElement(features, "acpi")
    ET.SubElement(features, "apic")
    if translation_cache_mib is not None:
        _text(ET.SubElement(features, "tcg"), "tb-cache", str(translation_cache_mib), unit="MiB")


def _devices(devices: ET.Element, domain: Domain) -> None:
    _text(devices, "emulator", str(domain.emulator))
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    driver = {"name": "qemu", "type": "qcow2", "cache": domain.cache, "discard": "unmap"}
    driver |= {"io": "native"} if domain.cache == "none" else {}
    ET.SubElement(disk, "driver", driver)
    ET.SubElement(disk, "source", file=str(domain.disk))
    # Said here, so that libvirt need not open the overlay and guess what lies below.
    backing = ET.SubElement(disk, "backingStore", type="file")
    ET.SubElement(backing, "format", type="raw")
    ET.SubElement(backing, "source", file=str(domain.base))
    ET.SubElement(backing, "backingStore")
    ET.SubElement(disk, "target", dev="vda", bus="virtio")
    if isinstance(domain.boot, Firmware):
        ET.SubElement(disk, "boot", order="1")
    for letter, path in zip(ascii_lowercase[1:], domain.more_disks, strict=False):
        more = ET.SubElement(devices, "disk", type="file", device="disk")
        ET.SubElement(more, "driver", driver | {"type": "raw"})
        ET.SubElement(more, "source", file=str(path))
        ET.SubElement(more, "target", dev=f"vd{letter}", bus="virtio")
    ports = ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    if domain.flat:
        for slot, device in enumerate((disk, ports, rng), start=3):
            place = {"type": "pci", "domain": "0x0000", "bus": "0x00", "slot": f"{slot:#04x}", "function": "0x0"}
            ET.SubElement(device, "address", place)
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "source", mode="connect", path=str(domain.agent))
    ET.SubElement(channel, "target", type="virtio", name=PORT_NAME)
    serial = ET.SubElement(devices, "serial", type="unix")
    ET.SubElement(serial, "source", mode="connect", path=str(domain.console))
    ET.SubElement(serial, "target", type="isa-serial", port="0")
    ET.SubElement(devices, "controller", type="usb", model="none")
    ET.SubElement(devices, "memballoon", model="none")
