"""The doctor's questions about the host itself: pure judgements of what was captured, one small function a question.

What each answer does to figures stands in docs/method.md. Drivers and images are asked in `harness.doctor`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

GIB = 1 << 30
# close_range(2) with its flags is the youngest call that launching needs.
KERNEL = (5, 11)
CONTROLLERS = ("cpu", "cpuset", "memory", "pids")
FREE_BYTES = 8 * GIB
FREE_BYTES_LEAST = 1 * GIB
MEMORY_BYTES = 2 * GIB
MEMORY_BYTES_LEAST = GIB
STEAL = 0.01
BUSY = 0.1
CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")
CLOCK_STEP_NS = 1000


class Status(StrEnum):
    """`warn`: figures suffer or verdicts are refused. `block`: the comparison cannot be made at all."""

    OK = "ok"
    WARN = "warn"
    BLOCK = "block"


@dataclass(frozen=True, slots=True)
class Check:
    """One question answered. `mend` is a command for a root shell that changes the answer; empty where none does."""

    name: str
    status: Status
    detail: str
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """What the doctor saw: the captured environment, host activity over a moment, and a few things that only it needs.

    `others` counts processes that run containers or VMs, by name. `activity` is `HostState.delta`'s.
    `boot_editor` is the command that changes the kernel's boot parameters, `grubby` or `update-grub`.
    """

    uid: int
    environment: Mapping[str, Any]
    activity: Mapping[str, float] = field(default_factory=dict)
    available_bytes: int | None = None
    filesystems: frozenset[str] = frozenset()
    others: Mapping[str, int] = field(default_factory=dict)
    boot_editor: str = ""

    def get(self, topic: str, name: str) -> Any:
        """A captured value, or None."""
        return self.environment.get(topic, {}).get(name)


def check_user(sight: Sight) -> Check:
    """Namespaces, mounts and cgroups need root."""
    if sight.uid == 0:
        return Check("user", Status.OK, "root")
    return Check("user", Status.BLOCK, "not root: no namespaces, mounts or cgroups can be made", "su -")


def check_kernel(sight: Sight) -> Check:
    """Old kernels lack the calls that launching is made of."""
    release = str(sight.get("kernel", "release") or "")
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return Check("kernel", Status.WARN, f"release {release!r} cannot be read as a version")
    if (int(found[1]), int(found[2])) < KERNEL:
        return Check("kernel", Status.BLOCK, f"{release} is older than {KERNEL[0]}.{KERNEL[1]}: install a newer one")
    return Check("kernel", Status.OK, release)


def check_cgroups(sight: Sight) -> Check:
    """Limits need controllers; v1 cannot limit buffered writes nor reserve memory."""
    mode, v2 = sight.get("cgroup", "mode") or "none", sight.get("cgroup", "v2") or []
    offered = {*v2, *(sight.get("cgroup", "v1") or [])}
    missing = [name for name in CONTROLLERS if name not in offered]
    if missing:
        return Check(
            "cgroups", Status.BLOCK, f"{mode}, without {', '.join(missing)}", "mount -t cgroup2 cgroup2 /sys/fs/cgroup"
        )
    if mode == "v2":
        return Check("cgroups", Status.OK, f"v2 with {', '.join(sorted(v2))}")
    detail = f"{mode}: buffered writes cannot be limited nor memory be guarded; v2 comes with a reboot"
    return Check("cgroups", Status.WARN, detail, _boot_with(sight, "systemd.unified_cgroup_hierarchy=1"))


def _boot_with(sight: Sight, parameter: str) -> str:
    return {
        "grubby": f"grubby --update-kernel=ALL --args={parameter}",
        "update-grub": f"""sed -i 's/^GRUB_CMDLINE_LINUX="/&{parameter} /' /etc/default/grub && update-grub""",
    }.get(sight.boot_editor, "")


def check_overlay(sight: Sight) -> Check:
    """Containers stand on overlayfs; as a module it may load on first use, so the driver's probe decides."""
    if "overlay" in sight.filesystems:
        return Check("overlayfs", Status.OK, "offered by the kernel")
    return Check("overlayfs", Status.WARN, "not loaded; containers need it", "modprobe overlay")


def check_disk(sight: Sight) -> Check:
    """Images, disks and writable layers need room, on a local disk."""
    free, kind = sight.get("storage", "free_bytes"), sight.get("storage", "filesystem")
    if free is None:
        return Check("disk", Status.WARN, "free space cannot be read")
    detail = f"{free / GIB:.1f} GiB free on {kind}"
    if free < FREE_BYTES:
        status = Status.BLOCK if free < FREE_BYTES_LEAST else Status.WARN
        return Check("disk", status, f"{detail}, images and instances want {FREE_BYTES / GIB:.0f} GiB", "tare clean")
    return Check("disk", Status.OK, detail)


def check_memory(sight: Sight) -> Check:
    """Density ramps and virtual machines need memory that is free now."""
    free = sight.available_bytes
    if free is None:
        return Check("memory", Status.WARN, "free memory cannot be read")
    detail = f"{free / GIB:.1f} GiB available"
    if free < MEMORY_BYTES:
        status = Status.BLOCK if free < MEMORY_BYTES_LEAST else Status.WARN
        return Check(
            "memory", status, f"{detail}, at least {MEMORY_BYTES / GIB:.0f} GiB are wanted", "ps aux --sort=-rss | head"
        )
    return Check("memory", Status.OK, detail)


def check_swap(sight: Sight) -> Check:
    """Swapping makes memory figures and latencies depend on history."""
    if sight.get("memory", "swap_bytes"):
        return Check("swap", Status.WARN, "on: memory figures depend on what was swapped out before", "swapoff -a")
    return Check("swap", Status.OK, "off")


def check_ksm(sight: Sight) -> Check:
    """Merging equal pages makes instances share what they would not."""
    if sight.get("memory", "ksm") == 1:
        return Check("same-page merging", Status.WARN, "on: instances look smaller", "echo 2 > /sys/kernel/mm/ksm/run")
    return Check("same-page merging", Status.OK, "off")


def check_huge_pages(sight: Sight) -> Check:
    """Transparent huge pages everywhere move memory and bandwidth figures, guests' most."""
    mode = sight.get("memory", "huge_pages")
    if mode == "always":
        mend = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
        return Check("huge pages", Status.WARN, "always: memory figures come in steps of 2 MiB", mend)
    return Check("huge pages", Status.OK, mode or "none")


def check_numa_balancing(sight: Sight) -> Check:
    """Pages that follow their users between memory nodes cost whoever is measured meanwhile."""
    if sight.get("numa", "balancing") and (sight.get("numa", "nodes") or 1) > 1:
        mend = "sysctl -w kernel.numa_balancing=0"
        return Check("NUMA balancing", Status.WARN, "on: pages are moved behind a measurement's back", mend)
    return Check("NUMA balancing", Status.OK, "off" if sight.get("numa", "balancing") == 0 else "one memory node")


def check_governor(sight: Sight) -> Check:
    """A frequency that follows load makes short work look slow."""
    governors = sight.get("cpu", "governors")
    if not governors:
        return Check("governor", Status.OK, "none; the frequency is not ours to set")
    if governors == ["performance"]:
        return Check("governor", Status.OK, "performance")
    mend = "for f in /sys/devices/system/cpu/cpufreq/policy*/scaling_governor; do echo performance > $f; done"
    return Check("governor", Status.WARN, f"{', '.join(governors)}: the frequency follows the load", mend)


def check_turbo(sight: Sight) -> Check:
    """Turbo gives the first runner more than the second."""
    if sight.get("cpu", "turbo"):
        intel = sight.get("cpu", "frequency_driver") in ("intel_pstate", "intel_cpufreq")
        node = "intel_pstate/no_turbo" if intel else "cpufreq/boost"
        mend = f"echo {1 if intel else 0} > /sys/devices/system/cpu/{node}"
        return Check("turbo", Status.WARN, "on: speed depends on heat and on neighbours", mend)
    return Check("turbo", Status.OK, "off" if sight.get("cpu", "turbo") is False else "none seen")


def check_smt(sight: Sight) -> Check:
    """Two threads of a core slow each other, across any limit."""
    if sight.get("cpu", "smt"):
        mend = "echo off > /sys/devices/system/cpu/smt/control"
        return Check("hyperthreads", Status.WARN, "on: neighbours on one core slow each other", mend)
    return Check("hyperthreads", Status.OK, "off")


def check_steal(sight: Sight) -> Check:
    """CPU time that a hypervisor takes away is refused above 1 %."""
    steal = sight.activity.get("steal")
    if steal is not None and steal > STEAL:
        return Check("steal", Status.WARN, f"{steal:.1%} of CPU time: verdicts are refused above {STEAL:.0%}")
    return Check("steal", Status.OK, "none" if not steal else f"{steal:.1%}")


def check_load(sight: Sight) -> Check:
    """What else runs is measured along."""
    busy = sight.activity.get("busy", 0.0)
    if busy > BUSY:
        mend = "ps -eo pcpu,pid,comm --sort=-pcpu | head"
        return Check("load", Status.WARN, f"CPUs are {busy:.0%} busy with something else", mend)
    return Check("load", Status.OK, f"CPUs are {busy:.0%} busy")


def check_others(sight: Sight) -> Check:
    """Other containers and virtual machines compete for all that is measured."""
    if sight.others:
        counted = ", ".join(f"{count} {name}" for name, count in sorted(sight.others.items()))
        mend = f"ps -o pid,args -C {','.join(sorted(sight.others))}"
        return Check("other instances", Status.WARN, f"running: {counted}", mend)
    return Check("other instances", Status.OK, "none")


def check_clock(sight: Sight) -> Check:
    """A slow or coarse clock is refused where its step shows."""
    source, step = sight.get("kernel", "clock_source"), sight.get("clock", "monotonic_step_ns")
    detail = f"{source or 'unknown source'}, steps of {step if step is not None else '?'} ns"
    if source is not None and source not in CLOCKS:
        mend = "echo tsc > /sys/devices/system/clocksource/clocksource0/current_clocksource"
        return Check("clock", Status.WARN, f"{detail}: slow to read", mend)
    if step is None or step > CLOCK_STEP_NS:
        return Check("clock", Status.WARN, f"{detail}: coarse")
    return Check("clock", Status.OK, detail)


def check_pressure(sight: Sight) -> Check:
    """Without pressure figures a cell does not know who waited."""
    if sight.get("kernel", "pressure"):
        return Check("pressure", Status.OK, "recorded with every cell")
    detail = "the kernel keeps none; psi=1 at boot turns it on"
    return Check("pressure", Status.WARN, detail, _boot_with(sight, "psi=1"))


QUESTIONS: tuple[Callable[[Sight], Check], ...] = (
    check_user, check_kernel, check_cgroups, check_overlay, check_disk, check_memory, check_swap, check_ksm,
    check_huge_pages, check_numa_balancing, check_governor, check_turbo, check_smt, check_steal, check_load,
    check_others, check_clock, check_pressure,
)  # fmt: skip


def host_checks(sight: Sight) -> Iterator[Check]:
    """Every question about the host, in the order of the report."""
    return (question(sight) for question in QUESTIONS)
