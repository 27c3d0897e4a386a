"""What is known of a guest before its launch: its share of the limits, and the script that starts QEMU inside them.

A limit binds the whole domain, so guest and QEMU share it. Not the launch itself (`guest`).
"""

from __future__ import annotations

import hashlib
import os
import shlex
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import ceil
from pathlib import Path
from typing import Literal

from runtime.driver import Host
from runtime.errors import TareError
from runtime.images.cloud import CloudImage
from runtime.spec import InstanceSpec, Limits, parse_cpuset
from runtime.vm.adoption import STARTED
from runtime.vm.domain import MIB, TRANSLATION_CACHE_MIB, DirectKernel, Firmware, Tuning
from runtime.vm.nocloud import Seed
from runtime.vm.saved import Saved

DEFAULT_MEMORY_BYTES = 256 * MIB
MINIMUM_MEMORY_BYTES = 96 * MIB  # below it Debian's kernel and initramfs do not fit
MINIMUM_FIRMWARE_MEMORY_BYTES = 144 * MIB  # with less, OVMF crashes as it loads them: seen at 128
QEMU_THREADS_MIN = 64  # QEMU aborts when it cannot start a worker
JOINS = "cgroup"
"""The file in an instance's run directory that names what to write 0 to, to enter its control group."""
_QEMU_BYTES = 48 * MIB  # heap, stacks and firmware of an idle QEMU 7.2 without graphics


class Quota(StrEnum):
    """What a CPU limit binds: all of QEMU's threads together, or those alone that run the guest's vCPUs."""

    DOMAIN = "domain"
    VCPUS = "vcpus"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All that can be known before a launch. A Firmware's `variables` are the template of each guest's own.

    `env` is what commands get, `memory_bytes` the guest's memory, `stop_timeout_s` how long it may take to
    power itself off, `more_disks` raw images to attach beside its own disk. `image` is a user's own, whose file
    `base` then is, and `seed` what cloud-init finds on a volume of each guest's own.
    `translation_cache_mib` is TCG's buffer for translated code. A `nameless` guest is not told who and where it is:
    it is to be saved. With a `saved` state it is restored, not booted:
    `base` is the state's disk then, and `lowest` the raw one below.
    """

    driver: str
    spec: InstanceSpec
    accelerator: str
    emulator: Path
    base: Path
    cache: str
    memory_bytes: int
    vcpus: int
    boot: Firmware | DirectKernel
    stop_timeout_s: float
    env: tuple[tuple[str, str], ...] = ()
    more_disks: tuple[Path, ...] = ()
    translation_cache_mib: int = TRANSLATION_CACHE_MIB
    base_format: Literal["raw", "qcow2"] = "raw"
    lowest: Path | None = None
    saved: Saved | None = None
    nameless: bool = False
    seed: Seed | None = None
    image: CloudImage | None = None
    tuning: Tuning = field(default_factory=Tuning)
    quota: Quota = Quota.DOMAIN


def on_image(plan: Plan, image: CloudImage, seed: Seed, firmware: Firmware) -> Plan:
    """`plan` for a user's own disk image: it boots by itself, through firmware, and gets our agent from its seed."""
    return replace(plan, base=image.path, base_format=image.format, boot=firmware, seed=seed, image=image)


def overhead_bytes(accelerator: str) -> int:
    """What QEMU itself may use beside the guest's memory."""
    return _QEMU_BYTES + (TRANSLATION_CACHE_MIB * MIB if accelerator == "tcg" else 0)


def guest_memory_bytes(limits: Limits, accelerator: str, *, firmware: bool = False) -> int:
    """The memory the guest sees: what a limit on the whole domain leaves beside QEMU, in whole MiB.

    Raises TareError when that is too little to boot, directly or through UEFI `firmware`.
    """
    if limits.memory_bytes is None:
        return DEFAULT_MEMORY_BYTES
    minimum = MINIMUM_FIRMWARE_MEMORY_BYTES if firmware else MINIMUM_MEMORY_BYTES
    rest = (limits.memory_bytes - overhead_bytes(accelerator)) // MIB * MIB
    if rest < minimum:
        need = (minimum + overhead_bytes(accelerator)) // MIB
        raise TareError(
            f"memory limit of {limits.memory_bytes // MIB} MiB",
            f"QEMU under {accelerator} and a booting guest need {need} MiB together",
            "raise the limit",
        )
    return rest


def vcpu_count(limits: Limits) -> int:
    """As many vCPUs as the guest may use CPUs: the CPU limit, rounded up, but no more than the cpuset has; else 1."""
    room = None if limits.cpuset is None else len(parse_cpuset(limits.cpuset))
    wanted = room or 1 if limits.cpus is None else ceil(limits.cpus)
    return min(wanted, room or wanted)


def pinned(tuning: Tuning, limits: Limits, vcpus: int) -> Tuning:
    """`tuning` with a CPU for each vCPU, where none is asked for and the cpuset leaves each exactly one.

    With more CPUs than vCPUs the choice stays the host's, as it is for a container.
    """
    cpus = () if limits.cpuset is None else tuple(sorted(parse_cpuset(limits.cpuset)))
    return replace(tuning, pins=cpus) if not tuning.pins and len(cpus) == vcpus else tuning


def require_host_memory(need_bytes: int, meminfo: Path = Path("/proc/meminfo")) -> None:
    """Raise TareError when the host has less than `need_bytes` available."""
    rows = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    available = int(rows["MemAvailable"].split()[0]) * 1024
    if need_bytes > available:
        raise TareError(
            f"virtual machine of {need_bytes // MIB} MiB",
            f"the host has {available // MIB} MiB available",
            "lower the memory limit or stop something",
        )


def write_emulator(host: Host, qemu: Path) -> Path:
    """The program libvirt is to start for `qemu`; see the module's docstring.

    Its name changes with QEMU's file, because libvirt remembers an emulator's abilities by path and time.
    """
    info = qemu.stat()
    script = (
        "#!/bin/sh\n"
        f"# For {qemu} of {info.st_size} bytes, changed {info.st_mtime_ns}.\n"
        f"own={shlex.quote(str(host.run / 'vm'))}/${{2#guest=}}\n"
        "own=${own%%,*}\n"
        'if [ "$1" = -name ] && [ -d "$own" ]; then\n'
        f'\techo $$ >"$own/{STARTED}"\n'
        f'\twhile read -r procs; do echo 0 >"$procs" || exit 1; done <"$own/{JOINS}" || exit 1\n'
        "fi\n"
        f'exec {shlex.quote(str(qemu))} "$@"\n'
    )
    path = host.root / "cache" / f"qemu-{hashlib.sha256(script.encode()).hexdigest()[:12]}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        new = path.with_suffix(f".{os.getpid()}")
        new.write_text(script)
        new.chmod(0o700)
        new.rename(path)
    return path


def host_limits(limits: Limits, quota: Quota = Quota.DOMAIN) -> Limits:
    """`limits` for QEMU's group: a guest's processes are no processes of the host, so `pids` bounds QEMU's threads.

    A CPU limit that binds only the vCPUs is not the group's (see `quota`).
    """
    if limits.pids is not None:
        limits = replace(limits, pids=max(limits.pids, QEMU_THREADS_MIN))
    return replace(limits, cpus=None) if quota is Quota.VCPUS else limits
