"""What a run must remember of its host: the machine, its kernel, its tools; and what it was doing during a cell.

Every `collect_*` takes one topic, reads it where it lies and leaves out what is not there: an absent
value is absent, never guessed. Nothing identifies the machine or its owner: names, serial numbers,
addresses and paths stay out. Whether a figure is any good is said by `harness.doctor` and `harness.stats`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from harness.hoststate import HostState, host_state
from harness.redaction import redact
from harness.software import collect_programs, collect_tare
from runtime.cgroups.detect import detect, io_device
from runtime.driver import host_from_env

__all__ = ["STABLE", "HostState", "capture", "fingerprint", "host_state", "identity", "meminfo"]

PROC = Path("/proc")
SYS = Path("/sys")
# A paravirtual clock gives its hypervisor away where nothing else does.
_HYPERVISORS = (("kvm-clock", "kvm"), ("hyperv", "hyperv"), ("xen", "xen"))
# What makes a host another host for comparisons: everything that moves figures and does not move by itself.
STABLE = {
    "cpu": (
        "model", "microcode", "flags_sha256", "logical", "cores", "sockets", "smt", "mitigations", "governors", "turbo"
    ),
    "numa": ("nodes", "balancing"),
    "memory": ("total_bytes", "swap_bytes", "huge_pages", "ksm"),
    "kernel": ("release", "build", "command_line", "clock_source"),
    "machine": ("hypervisor", "product"),
    "cgroup": ("mode",),
}  # fmt: skip


def capture(*, proc: Path = PROC, sys: Path = SYS, storage: Path | None = None) -> dict[str, Any]:
    """Everything about this host, by topic. `storage` is where instances will lie (Tare's state root, if not given)."""
    topics = {
        "cpu": collect_cpu(proc, sys),
        "numa": collect_numa(proc, sys),
        "memory": collect_memory(proc, sys),
        "kernel": collect_kernel(proc, sys),
        "machine": collect_machine(proc, sys),
        "cgroup": collect_cgroup(proc),
        "storage": collect_storage(host_from_env().root if storage is None else storage, proc, sys),
        "network": collect_network(),
        "clock": collect_clock(),
        "limits": collect_limits(),
        "programs": collect_programs(),
        "tare": collect_tare(),
    }
    return {topic: found for topic, found in topics.items() if found}


def identity(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """What names this machine and no other. Recorded where the user asks for it, and nowhere else."""
    dmi = sys / "class/dmi/id"
    return _present(
        host_name=_read(proc / "sys/kernel/hostname"),
        product_serial=_read(dmi / "product_serial"),
        product_uuid=_read(dmi / "product_uuid"),
        disk_serials=[text for path in sorted((sys / "block").glob("*/device/serial")) if (text := _read(path))],
    )


def fingerprint(environment: Mapping[str, Any]) -> str:
    """A SHA-256, in hex, of what makes this host comparable with itself: hardware, kernel, their settings; no load."""
    stable = {topic: {name: environment.get(topic, {}).get(name) for name in names} for topic, names in STABLE.items()}
    return hashlib.sha256(json.dumps(stable, sort_keys=True).encode()).hexdigest()


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip("\n\0 ") or None
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else None


def _chosen(path: Path) -> str | None:
    # sysfs marks the choice among several: `always [madvise] never`
    text = _read(path)
    marked = re.search(r"\[(\S+)\]", text) if text else None
    return marked.group(1) if marked else text


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None and value not in ("", [], {})}


def _cpuinfo(proc: Path) -> list[dict[str, str]]:
    blocks = re.split(r"\n\s*\n", _read(proc / "cpuinfo") or "")
    rows = ((line.partition(":") for line in block.splitlines()) for block in blocks if block.strip())
    return [{key.strip(): value.strip() for key, _, value in row} for row in rows]


def collect_cpu(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """Model, microcode, features, topology, SMT, frequency policy and mitigations."""
    processors = [block for block in _cpuinfo(proc) if "processor" in block]
    first = processors[0] if processors else {}
    flags = first.get("flags") or first.get("Features") or ""
    cores = {(block.get("physical id"), block.get("core id")) for block in processors if "core id" in block}
    sockets = {block["physical id"] for block in processors if "physical id" in block}
    root = sys / "devices/system/cpu"
    policies = sorted((root / "cpufreq").glob("policy*"))
    smt = _number(root / "smt/active")
    return _present(
        model=first.get("model name") or first.get("CPU part"),
        vendor=first.get("vendor_id"),
        family=first.get("cpu family"),
        model_number=first.get("model"),
        stepping=first.get("stepping"),
        microcode=first.get("microcode"),
        flags_sha256=hashlib.sha256(" ".join(sorted(flags.split())).encode()).hexdigest() if flags else None,
        virtualization=next((flag for flag in ("vmx", "svm") if flag in flags.split()), None),
        logical=len(processors) or None,
        cores=len(cores) or None,
        sockets=len(sockets) or None,
        smt=None if smt is None else bool(smt),
        isolated=_read(root / "isolated"),
        frequency_driver=_read(policies[0] / "scaling_driver") if policies else None,
        governors=sorted({each for policy in policies if (each := _read(policy / "scaling_governor"))}),
        turbo=_turbo(root),
        caches=_caches(root / "cpu0/cache"),
        mitigations={path.name: text for path in _files(root / "vulnerabilities") if (text := _read(path))},
    )


def _turbo(root: Path) -> bool | None:
    no_turbo, boost = _number(root / "intel_pstate/no_turbo"), _number(root / "cpufreq/boost")
    return not no_turbo if no_turbo is not None else bool(boost) if boost is not None else None


def _caches(root: Path) -> dict[str, str]:
    found = {}
    for index in sorted(root.glob("index*")):
        level, kind, size = (_read(index / name) for name in ("level", "type", "size"))
        if level and kind and size:
            found[f"L{level}{'' if kind == 'Unified' else kind[0].lower()}"] = size
    return found


def _files(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.is_dir() else []


def collect_numa(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """The number of memory nodes, the CPUs of each, and whether the kernel moves pages to where they are used."""
    nodes = sorted((sys / "devices/system/node").glob("node[0-9]*"))
    return _present(
        nodes=len(nodes) or None,
        cpus=[_read(node / "cpulist") or "" for node in nodes],
        balancing=_number(proc / "sys/kernel/numa_balancing"),
    )


def meminfo(proc: Path = PROC) -> dict[str, int]:
    """The sizes in /proc/meminfo, in bytes."""
    rows = (line.split() for line in (_read(proc / "meminfo") or "").splitlines())
    return {row[0].rstrip(":"): int(row[1]) << 10 for row in rows if len(row) == 3 and row[2] == "kB"}


def collect_memory(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """Sizes, swap, and the settings that move memory figures: huge pages, same-page merging, overcommit."""
    sizes, mm = meminfo(proc), sys / "kernel/mm"
    return _present(
        total_bytes=sizes.get("MemTotal"),
        swap_bytes=sizes.get("SwapTotal"),
        huge_pages=_chosen(mm / "transparent_hugepage/enabled"),
        huge_pages_defrag=_chosen(mm / "transparent_hugepage/defrag"),
        ksm=_number(mm / "ksm/run"),
        swappiness=_number(proc / "sys/vm/swappiness"),
        overcommit=_number(proc / "sys/vm/overcommit_memory"),
        zswap=_read(sys / "module/zswap/parameters/enabled"),
    )


def collect_kernel(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """Release, build, command line with identifiers hidden, clock source, and the distribution around it."""
    clock = sys / "devices/system/clocksource/clocksource0"
    # What follows ` -- ` is for init, not for the kernel, and may hold anything.
    command_line = (_read(proc / "cmdline") or "").partition(" -- ")[0]
    return _present(
        release=_read(proc / "sys/kernel/osrelease"),
        build=_read(proc / "sys/kernel/version"),
        machine=platform.machine(),
        command_line=redact(command_line, [_read(proc / "sys/kernel/hostname") or ""]),
        clock_source=_read(clock / "current_clocksource"),
        clock_sources=(_read(clock / "available_clocksource") or "").split(),
        tainted=_number(proc / "sys/kernel/tainted"),
        pressure=(proc / "pressure/cpu").exists(),
        distribution=_distribution(),
    )


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME")
    except OSError:
        return None


def collect_machine(proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """Whether this is a virtual machine, and whose; the product's name without its serial numbers."""
    flags = next(iter(_cpuinfo(proc)), {}).get("flags", "").split()
    clocks = _read(sys / "devices/system/clocksource/clocksource0/available_clocksource") or ""
    known = next((name for sign, name in _HYPERVISORS if sign in clocks), "unknown")
    dmi = sys / "class/dmi/id"
    return _present(
        hypervisor=_read(sys / "hypervisor/type") or (known if "hypervisor" in flags else None),
        vendor=_read(dmi / "sys_vendor"),
        product=_read(dmi / "product_name"),
        firmware_date=_read(dmi / "bios_date"),
    )


def collect_cgroup(proc: Path = PROC) -> dict[str, Any]:
    """The hierarchy's mode (v2, v1, hybrid) and which controllers are where."""
    try:
        found = detect(proc / "self/mountinfo")
    except OSError:
        return {}
    known = {line.split()[0] for line in (_read(proc / "cgroups") or "").splitlines() if line[:1] != "#"}
    return _present(mode=found.mode, v1=sorted(found.v1.keys() & known), v2=sorted(found.v2_controllers))


def collect_storage(path: Path, proc: Path = PROC, sys: Path = SYS) -> dict[str, Any]:
    """The file system and the disk under `path` (or its nearest parent that exists)."""
    path = next(each for each in (path.absolute(), *path.absolute().parents) if os.access(each, os.F_OK))
    usage = shutil.disk_usage(path)
    try:
        device = io_device(path, mountinfo=proc / "self/mountinfo", sys=sys)
    except OSError:
        device = None
    disk = sys / "dev/block" / device if device else None
    rotational = _number(disk / "queue/rotational") if disk else None
    kind, options = _mount_of(path, proc / "self/mountinfo")
    return _present(
        filesystem=kind,
        options=options,
        total_bytes=usage.total,
        free_bytes=usage.free,
        rotational=None if rotational is None else bool(rotational),
        scheduler=_chosen(disk / "queue/scheduler") if disk else None,
        write_cache=_read(disk / "queue/write_cache") if disk else None,
        model=_read(disk / "device/model") if disk else None,
    )


def _mount_of(path: Path, mountinfo: Path) -> tuple[str | None, str | None]:
    best: tuple[int, str | None, str | None] = (0, None, None)
    for line in (_read(mountinfo) or "").splitlines():
        left, _, right = line.partition(" - ")
        point = Path(left.split()[4].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= best[0]:
            best = len(point.parts), right.split()[0], left.split()[5]
    return best[1:]


def collect_network() -> dict[str, Any]:
    """How many links of which kind, their MTUs, and whether Tare left some; no names, no addresses."""
    from pyroute2 import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        with IPRoute() as route:
            answers = list(route.get_links())
    except (OSError, NetlinkError):
        return {}
    links = [(link.get("ifname"), link.get(("linkinfo", "kind")), link.get("mtu")) for link in answers]
    kinds = [kind or ("loopback" if name == "lo" else "device") for name, kind, _ in links]
    return _present(
        kinds={kind: kinds.count(kind) for kind in sorted(set(kinds))},
        mtus=sorted({mtu for name, _, mtu in links if mtu and name != "lo"}),
        tare_links=sum(name.startswith("tare") for name, _, _ in links),
    )


def collect_clock() -> dict[str, Any]:
    """The step of the clock that every timeline is stamped with: the least difference two readings showed."""
    readings = [time.monotonic_ns() for _ in range(1000)]
    steps = [later - earlier for earlier, later in pairwise(readings) if later > earlier]
    return _present(monotonic_step_ns=min(steps, default=None))


def collect_limits() -> dict[str, Any]:
    """The limits of this process that instances run into; an unlimited one is left out."""
    import resource

    limits = {"open_files": resource.RLIMIT_NOFILE, "processes": resource.RLIMIT_NPROC}
    soft = {name: resource.getrlimit(limit)[0] for name, limit in limits.items()}
    return {name: value for name, value in soft.items() if value != resource.RLIM_INFINITY}
