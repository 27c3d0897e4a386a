"""The two virtual machines, through libvirt: `vm`, as distributions run them, and `microvm`, the lightest there is.

`vm`: UEFI firmware, boot loader, Debian's kernel and initramfs, systemd. `microvm` is our name for a
kernel booted directly with a small initramfs and the guest agent as init; its machine type is q35 as well,
because QEMU's own `microvm` type loses guests under TCG when several start at once. Both boot the same disk.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from runtime.command import run
from runtime.driver import Driver, Host, Kind, Prepared
from runtime.errors import TareError, UsageError
from runtime.images.disk import Machine
from runtime.images.store import Image, ImageStore
from runtime.instance import Availability, Instance
from runtime.network.network import Networks
from runtime.spec import ImageRef, InstanceSpec
from runtime.vm import accelerator, parcels, reflink, sweep, tuning, wiring
from runtime.vm.accelerator import Accelerator
from runtime.vm.connection import Connection, connect, import_libvirt
from runtime.vm.domain import MIB, DirectKernel, Firmware, Tuning
from runtime.vm.guest import Guest
from runtime.vm.plan import (
    DEFAULT_MEMORY_BYTES,
    Plan,
    Quota,
    guest_memory_bytes,
    overhead_bytes,
    pinned,
    require_host_memory,
    vcpu_count,
    write_emulator,
)
from runtime.vm.room import room_for

QEMU = "qemu-system-x86_64"
# (code, variables) as Debian/Ubuntu, Fedora, Arch and openSUSE ship them: raw images without Secure Boot's keys.
FIRMWARE = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    ("/usr/share/qemu/ovmf-x86_64-code.bin", "/usr/share/qemu/ovmf-x86_64-vars.bin"),
)
# An emulated guest that starts among many misses timer ticks; the kernel would take its timer for broken, and panic.
STARVED = "no_timer_check"
_RACER = InstanceSpec(image=ImageRef("race"))  # only its limits matter: none
_race_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class PreparedGuest(Prepared):
    """A machine that lies ready, and how it will be run."""

    plan: Plan
    accelerator: Accelerator


class _Libvirt(Driver):
    """What all of them share. Without a `tuning`, the environment's is used (TARE_VM_TUNING)."""

    kind = Kind.VM
    ways = parcels.WAYS
    stop_timeout_s: ClassVar[float]
    boots_firmware: ClassVar[bool]
    quota: ClassVar[Quota] = Quota.DOMAIN

    def __init__(self, host: Host, asked: Tuning | None = None) -> None:
        super().__init__(host)
        self._tuning = asked
        self._connection: Connection | None = None
        self._images_used = ExitStack()
        self._accelerator: Accelerator | None = None
        self._facts: dict[str, str] = {}

    def probe(self) -> Availability:
        """Whether libvirt, QEMU and what boots the guest are here and answer; the accelerator, once it is known.

        The first time on a host takes some 10 s: libvirt asks QEMU for its abilities.
        """
        if os.geteuid() != 0:
            return Availability(False, "not root: QEMU could not be put into a control group", "use a root shell")
        try:
            import_libvirt()
            self._facts = self._facts or self._find_facts(find_qemu())
        except TareError as error:
            return Availability(False, f"{error.what}: {error.why}", error.do or "run ./bootstrap")
        return Availability(True, facts=self._facts | self._accelerator_facts())

    def prepare(self, spec: InstanceSpec) -> PreparedGuest:
        """Make the machine's disk, choose the accelerator (a race, once per boot of the host), plan the guest."""
        refuse(spec)
        with room_for(self.host, "preparing a virtual machine"):
            return self._prepared(spec)

    def _prepared(self, spec: InstanceSpec) -> PreparedGuest:
        store = ImageStore(self.host.root)
        before = self._images_used.pop_all()
        self._images_used.enter_context(store.using())  # nobody removes the disk from under what will be launched
        before.close()
        image = store.resolve(spec.image)
        if spec.argv:
            refuse_settings(image)
        machine = store.machine(spec.image)
        emulator = write_emulator(self.host, find_qemu())
        self._accelerator = chosen = self._choose(machine, emulator)
        plan = self._plan(spec, machine, emulator, chosen.name)
        plan = replace(plan, env=(*environment(image), *spec.env))
        require_host_memory(plan.memory_bytes + overhead_bytes(chosen.name))
        tuning.require(plan.tuning, spec.limits, plan.memory_bytes)
        if plan.tuning.reflink:
            reflink.require(plan.base, self.host.root / "cache")
        self._connect().machine_type(emulator, chosen.name)  # so that no launch pays for libvirt's first look at QEMU
        return PreparedGuest(spec, plan, chosen)

    def launch(self, prepared: Prepared) -> Guest:
        """Start one guest."""
        assert isinstance(prepared, PreparedGuest)
        return Guest.launch(prepared.plan, self.host, self._connect())

    def pack(self, instance: Instance, way: str, parcel: Path) -> None:
        """The overlay's content, with or without the disk under it."""
        parcels.pack(instance.disk_paths().exclusive[0], way, parcel)

    def unpack(self, way: str, parcel: Path, target: Path) -> None:
        """A disk is used as it is."""
        parcel.rename(target)

    def leftovers(self) -> list[str]:
        """QEMU processes, control groups, disks, sockets and pages whose owner is dead."""
        return [str(entry) for entry in sweep.find(self.host, self.name)]

    def sweep(self) -> list[str]:
        """Remove them."""
        return sweep.remove(self.host, self.name) + self._retire_networks()

    def close(self) -> None:
        """Let the connection go, and networks that nobody uses any more."""
        self._images_used.close()
        if self._connection is not None:
            self._connection.release()
            self._connection = None
        self._retire_networks()

    def _retire_networks(self) -> list[str]:
        with closing(Networks(self.host.root, self.host.run)) as networks:
            return networks.retire()

    def _connect(self) -> Connection:
        if self._connection is None:
            self._connection = connect(self.host)
        return self._connection

    def _plan(self, spec: InstanceSpec, machine: Machine, emulator: Path, name: str) -> Plan:
        firmware = find_firmware() if self.boots_firmware else None
        vcpus = vcpu_count(spec.limits)
        return Plan(
            driver=self.name,
            spec=spec,
            accelerator=name,
            emulator=emulator,
            base=machine.disk,
            cache=cache_mode(self.host.root),
            memory_bytes=guest_memory_bytes(spec.limits, name, firmware=self.boots_firmware),
            vcpus=vcpus,
            boot=firmware or DirectKernel(machine.kernel, machine.initrd, f"{machine.cmdline} {STARVED}"),
            stop_timeout_s=self.stop_timeout_s,
            tuning=pinned(self._asked(), spec.limits, vcpus),
            quota=self.quota,
        )

    def _asked(self) -> Tuning:
        return tuning.from_environment() if self._tuning is None else self._tuning

    def _choose(self, machine: Machine, emulator: Path) -> Accelerator:
        """The accelerator for this host: demanded, or remembered, or found by a race of the lightest guest."""
        if (answer := accelerator.forced()) is not None:
            return answer
        wanted = accelerator.key(emulator)
        with _race_lock:
            if (answer := accelerator.recall(self._cache, wanted)) is None:
                answer = accelerator.without_race() or self._race(machine, emulator)
                accelerator.keep(self._cache, wanted, answer)
        return answer

    def _race(self, machine: Machine, emulator: Path) -> Accelerator:
        connection = self._connect()
        connection.machine_type(emulator, "tcg")
        racer = MicrovmDriver(self.host)
        racer.stop_timeout_s = 0.0  # type: ignore[misc]
        return accelerator.race(
            lambda name: Guest.launch(racer._plan(_RACER, machine, emulator, name), self.host, connection)
        )

    def _find_facts(self, qemu: Path) -> dict[str, str]:
        firmware = str(find_firmware().code) if self.boots_firmware else "none: SeaBIOS loads the kernel"
        version = run([str(qemu), "--version"], timeout_s=30).stdout.decode().splitlines()[0]
        connection = self._connect()
        return connection.facts() | {
            "qemu": version.removeprefix("QEMU emulator version "),
            "qemu sha256": _sha256(qemu),
            **connection.abilities(write_emulator(self.host, qemu), "tcg"),
            "disk": f"virtio-blk, a {'reflink of' if self._asked().reflink else 'qcow2 overlay on'} a shared raw disk",
            "disk cache": (cache := cache_mode(self.host.root)),
            "disk io": "native" if cache == "none" else "threads",
            "network card": "virtio, no limit of its own",
            "firmware": firmware,
        }

    def _accelerator_facts(self) -> dict[str, str]:
        chosen = self._accelerator or accelerator.forced() or self._recalled() or accelerator.without_race()
        if chosen is None:
            return {"accelerator": "unknown", "accelerator reason": "found out when an image is prepared"}
        overhead, default = overhead_bytes(chosen.name) // MIB, DEFAULT_MEMORY_BYTES // MIB
        return {
            "accelerator": chosen.name,
            "accelerator reason": chosen.reason,
            "accelerator forced": "yes" if chosen.forced else "no",
            "cpu model": "host-passthrough" if chosen.name == "kvm" else "max",
            "guest memory": f"the limit less {overhead} MiB for QEMU; {default} MiB without a limit",
            "memory backing": self._backing_fact(),
            "vcpus": "the CPU limit, rounded up, else the cpuset's size, else 1",
            "topology": "1 socket, 1 thread a core",
            "pinning": str(self._asked().pins or "where the cpuset has one CPU a vCPU"),
            "cpu limit binds": "all of QEMU" if self.quota is Quota.DOMAIN else "the vCPU threads alone",
            "timers": "kvm-clock, RTC and PIT catch up, no HPET" if chosen.name == "kvm" else "QEMU's own, no HPET",
        }

    def _backing_fact(self) -> str:
        asked = self._asked()
        pages = "huge pages, which the memory limit does not count" if asked.hugepages else "ordinary pages, unmerged"
        return pages + (", locked" if asked.locked else "")

    def _recalled(self) -> Accelerator | None:
        """What an earlier process found out."""
        return accelerator.recall(self._cache, accelerator.key(write_emulator(self.host, find_qemu())))

    @property
    def _cache(self) -> Path:
        return self.host.root / "cache/accelerator.json"


class VmDriver(_Libvirt):
    """Firmware, boot loader, distribution kernel, systemd: the VM that the claims mean."""

    name = "vm"
    stop_timeout_s = 10.0
    boots_firmware = True


class MicrovmDriver(_Libvirt):
    """Direct kernel boot, the guest agent as init."""

    name = "microvm"
    stop_timeout_s = 2.0
    boots_firmware = False


def refuse(spec: InstanceSpec) -> None:
    """Raise UsageError for what a VM cannot do yet."""
    wishes = ((bool(spec.mounts), "mounts from the host", "leave them out"),)
    for asked, what, do in wishes:
        if asked:
            raise UsageError("virtual machine", f"{what} is not possible yet", do)
    wiring.refuse(spec.network)


def refuse_settings(image: Image) -> None:
    """Raise UsageError for what an image wants of its main process that the agent does not give one."""
    config = image.config.get("config", {})
    for setting, harmless in (("User", ("", "0", "root", "0:0", "root:root")), ("WorkingDir", ("", "/"))):
        if (config.get(setting) or "") not in harmless:
            why = f"the image's {setting} {config[setting]!r} is not possible for its program"
            raise UsageError("virtual machine", why, "launch it without a command and use exec")


def environment(image: Image) -> tuple[tuple[str, str], ...]:
    """The variables that the image's configuration gives to its processes."""
    words = image.config.get("config", {}).get("Env") or ()
    return tuple((name, value) for name, found, value in (str(word).partition("=") for word in words) if found)


def find_qemu() -> Path:
    """QEMU's program. Raises TareError when it is not installed."""
    found = shutil.which(QEMU)
    if found is None:
        raise TareError("QEMU", f"{QEMU} is not on PATH", "run ./bootstrap to install it")
    return Path(found).resolve()


def find_firmware() -> Firmware:
    """The host's UEFI firmware: its code and the template of its variables. Raises TareError when there is none."""
    for code, variables in FIRMWARE:
        if all(Path(name).is_file() and os.access(name, os.R_OK) for name in (code, variables)):
            return Firmware(Path(code), Path(variables))
    raise TareError("UEFI firmware", "no readable OVMF image was found", "run ./bootstrap to install it (package ovmf)")


def cache_mode(root: Path) -> str:
    """`none` where the file system of `root` takes O_DIRECT, told by doing it; else `writeback`."""
    probe = root / "cache" / f"direct.{os.getpid()}.{threading.get_ident()}"
    probe.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        os.close(os.open(probe, os.O_RDWR | os.O_CREAT | os.O_DIRECT | os.O_CLOEXEC, 0o600))
    except OSError:
        return "writeback"
    else:
        return "none"
    finally:
        probe.unlink(missing_ok=True)


@lru_cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
