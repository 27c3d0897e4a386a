"""A virtual machine as a value, and its libvirt domain XML: a pure function of that value.

What a knowing engineer would configure and nothing a measurement would have to explain: no graphics,
USB, sound or balloon; the CPU model that the accelerator has at best; one socket; unmerged memory.
Not where any of the files come from, and no limits: those are the control group's (see `guest`).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from string import ascii_lowercase
from typing import Literal

from runtime.errors import UsageError
from runtime.frames import PORT_NAME

MIB = 1 << 20
TRANSLATION_CACHE_MIB = 64
"""TCG's buffer for translated code; QEMU's own default, up to 1 GiB, would drown what the guest itself costs."""

_FLAT_SLOTS = range(3, 0x1B)
"""Slots of q35's root complex that libvirt gives to nothing else: below are video's, above sound, USB and ISA."""
_MAC = re.compile(r"[0-9a-f]{2}(?::[0-9a-f]{2}){5}")


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


@dataclass(frozen=True, slots=True)
class Interface:
    """A network card on `tap`, a device that is there already and stays another's to configure and to remove."""

    tap: str
    mac: str
    mtu: int

    def __post_init__(self) -> None:
        if _MAC.fullmatch(self.mac) is None or int(self.mac[:2], 16) & 1:
            raise UsageError(f"hardware address {self.mac!r}", "not one card's", "write it like 02:00:0a:00:00:02")
        if not 68 <= self.mtu <= 65535:
            raise UsageError(f"MTU {self.mtu}", "must lie between 68 and 65535", "correct it")


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a host that has it to spare can give a guest beyond its share.

    `pins` holds one CPU of the host for each vCPU, in their order; QEMU's other threads get all of these.
    `hugepages` takes the guest's memory from the host's pool of huge pages, `locked` keeps all of QEMU's resident.
    `reflink` has the host's file system share the base disk's blocks, in place of QEMU by an overlay.
    """

    pins: tuple[int, ...] = ()
    hugepages: bool = False
    locked: bool = False
    reflink: bool = False

    def __post_init__(self) -> None:
        if any(cpu < 0 for cpu in self.pins):
            raise UsageError(f"pins {self.pins}", "a CPU's number is not negative", "name one CPU for each vCPU")


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """One guest. `memory_bytes` is what the guest sees; `agent` and `console` are sockets that QEMU connects to.

    `disk` is a qcow2 overlay of `base`, which is one itself when a raw `lowest` lies below it; as a reflink it stands
    alone, in the base's format. `cache` is QEMU's disk
    cache mode: `none` (O_DIRECT, native AIO) or `writeback`. `flat` puts the devices straight on the root complex
    instead of one hot-pluggable port each, for fewer buses to scan. `more_disks` are raw images, which the guest
    finds as vdb and so on and may write to; `seed`, a raw image it may only read, comes after them.
    `translation_cache_mib` is TCG's. Without a `uuid`, libvirt draws one. Of the host's `security_models` (as libvirt
    names them) none confines QEMU, which is root's as it is without a daemon.
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
    uuid: str | None = None
    interface: Interface | None = None
    base_format: Literal["raw", "qcow2"] = "raw"
    lowest: Path | None = None
    seed: Path | None = None
    tuning: Tuning = field(default_factory=Tuning)
    security_models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.tuning.pins and len(self.tuning.pins) != self.vcpus:
            why = f"the guest has {self.vcpus} vCPUs"
            raise UsageError(f"pins to {len(self.tuning.pins)} CPUs", why, "name one CPU for each vCPU")


def domain_xml(domain: Domain) -> str:
    """The XML for virDomainCreateXML. Format: libvirt.org/formatdomain.html."""
    kvm = domain.accelerator == "kvm"
    root = ET.Element("domain", type="kvm" if kvm else "qemu")
    _text(root, "name", domain.name)
    if domain.uuid is not None:
        _text(root, "uuid", domain.uuid)
    _text(root, "memory", str(domain.memory_bytes // 1024), unit="KiB")
    _backing(ET.SubElement(root, "memoryBacking"), domain.tuning)
    _text(root, "vcpu", str(domain.vcpus), placement="static")
    if domain.tuning.pins:
        _pins(ET.SubElement(root, "cputune"), domain.tuning.pins)
    _boot(ET.SubElement(root, "os"), domain.boot)
    _features(ET.SubElement(root, "features"), None if kvm else domain.translation_cache_mib)
    cpu = ET.SubElement(root, "cpu", mode="host-passthrough" if kvm else "maximum")
    ET.SubElement(cpu, "topology", sockets="1", dies="1", cores=str(domain.vcpus), threads="1")
    clock = ET.SubElement(root, "clock", offset="utc")
    if kvm:  # ticks that the host was too busy to give are made up for
        ET.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
        ET.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    # A guest that ends, panics (panic=-1 reboots at once) or crashes is gone: never restarted behind our back.
    for event in ("on_poweroff", "on_reboot", "on_crash"):
        _text(root, event, "destroy")
    _devices(ET.SubElement(root, "devices"), domain)
    for model in domain.security_models:
        _label(root, model)
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> None:
    ET.SubElement(parent, tag, attributes).text = text


def _label(root: ET.Element, model: str) -> None:
    """By `dac` QEMU would run as a user of libvirt's own, and its files be given to that; it is to run as root."""
    if model == "dac":
        label = ET.SubElement(root, "seclabel", type="static", model=model, relabel="no")
        _text(label, "label", "+0:+0")
    else:
        ET.SubElement(root, "seclabel", type="none", model=model)


def _backing(backing: ET.Element, tuning: Tuning) -> None:
    if tuning.hugepages:
        ET.SubElement(backing, "hugepages")
    # Merged pages would make the memory of two guests of one image depend on whether ksmd came by.
    ET.SubElement(backing, "nosharepages")
    if tuning.locked:
        ET.SubElement(backing, "locked")


def _pins(cputune: ET.Element, pins: tuple[int, ...]) -> None:
    for vcpu, cpu in enumerate(pins):
        ET.SubElement(cputune, "vcpupin", vcpu=str(vcpu), cpuset=str(cpu))
    ET.SubElement(cputune, "emulatorpin", cpuset=",".join(map(str, sorted(set(pins)))))


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
    reflink = domain.tuning.reflink
    disk = _disk(devices, domain.disk, "vda", domain.cache, domain.base_format if reflink else "qcow2")
    # Said here, so that libvirt need not open the disk and guess what lies below.
    chain = [] if reflink else [_below(domain.base, domain.base_format)]
    if domain.lowest is not None:
        chain.append(_below(domain.lowest, "raw"))
    chain.append(ET.Element("backingStore"))
    for upper, lower in pairwise(chain):
        upper.append(lower)
    disk.insert(2, chain[0])
    if isinstance(domain.boot, Firmware):
        ET.SubElement(disk, "boot", order="1")
    letters = iter(ascii_lowercase[1:])
    more = [_disk(devices, path, f"vd{next(letters)}", domain.cache, "raw") for path in domain.more_disks]
    if domain.seed is not None:
        more.append(_disk(devices, domain.seed, f"vd{next(letters)}", domain.cache, "raw"))
        ET.SubElement(more[-1], "readonly")
    ports = ET.SubElement(devices, "controller", type="virtio-serial", index="0")
    rng = ET.SubElement(devices, "rng", model="virtio")
    _text(rng, "backend", "/dev/urandom", model="random")
    cards = [] if domain.interface is None else [_interface(devices, domain.interface)]
    if domain.flat:
        # In the order of their slots the guest finds its disks.
        for slot, device in zip(_FLAT_SLOTS, (disk, ports, rng, *more, *cards), strict=False):
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


def _below(path: Path, kind: str) -> ET.Element:
    backing = ET.Element("backingStore", type="file")
    ET.SubElement(backing, "format", type=kind)
    ET.SubElement(backing, "source", file=str(path))
    return backing


def _disk(devices: ET.Element, path: Path, target: str, cache: str, kind: str) -> ET.Element:
    disk = ET.SubElement(devices, "disk", type="file", device="disk")
    # A guest whose disk fails for the host's reasons stands still, and `events` hears why: an error told to the guest
    # instead would be taken for its own, and look like a result.
    driver = {"name": "qemu", "type": kind, "cache": cache, "error_policy": "stop", "discard": "unmap"}
    ET.SubElement(disk, "driver", driver | ({"io": "native"} if cache == "none" else {}))
    ET.SubElement(disk, "source", file=str(path))
    ET.SubElement(disk, "target", dev=target, bus="virtio")
    return disk


def _interface(devices: ET.Element, interface: Interface) -> ET.Element:
    card = ET.SubElement(devices, "interface", type="ethernet")
    ET.SubElement(card, "mac", address=interface.mac)
    ET.SubElement(card, "target", dev=interface.tap, managed="no")
    ET.SubElement(card, "model", type="virtio")
    ET.SubElement(card, "mtu", size=str(interface.mtu))
    return card
