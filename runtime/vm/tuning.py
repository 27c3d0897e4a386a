"""What a guest may be given beyond its share: whether this host has it, and whether the guest got it.

Not how it is asked for (`domain`), nor a limit: pins, huge pages and locked memory make a guest faster, never smaller.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from pathlib import Path

from runtime.errors import TareError, UsageError
from runtime.instance import LimitReading
from runtime.linux.procfs import PROC
from runtime.spec import Limits, parse_cpuset
from runtime.vm.domain import MIB, Tuning
from runtime.vm.quota import vcpu_threads

VARIABLE = "TARE_VM_TUNING"


def from_environment(environment: Mapping[str, str] = os.environ) -> Tuning:
    """What TARE_VM_TUNING asks for all guests: `hugepages`, `locked`, `reflink`, with commas. Raises UsageError."""
    words = {word.strip() for word in environment.get(VARIABLE, "").split(",")} - {""}
    if unknown := words - {"hugepages", "locked", "reflink"}:
        why = f"no such tuning: {min(unknown)}"
        raise UsageError(f"{VARIABLE}={environment[VARIABLE]}", why, "use hugepages,locked,reflink")
    return Tuning(hugepages="hugepages" in words, locked="locked" in words, reflink="reflink" in words)


def require(tuning: Tuning, limits: Limits, memory_bytes: int, proc: Path = PROC) -> None:
    """Raise UsageError or TareError for what this host or `limits` cannot give a guest of `memory_bytes`, by name."""
    allowed = os.sched_getaffinity(0) if limits.cpuset is None else parse_cpuset(limits.cpuset)
    for cpu in tuning.pins:
        if cpu not in allowed:
            shown = ",".join(map(str, sorted(allowed)))
            raise UsageError(f"pin to CPU {cpu}", f"the guest may run on {shown}", "choose from these")
    if tuning.hugepages:
        _require_huge_pages(memory_bytes, proc)
    if tuning.locked:
        _require_lockable()


def _require_huge_pages(memory_bytes: int, proc: Path) -> None:
    if not any(line.split()[2] == "hugetlbfs" for line in (proc / "mounts").read_text().splitlines()):
        do = "mkdir -p /dev/hugepages && mount -t hugetlbfs hugetlbfs /dev/hugepages"
        raise TareError("huge pages", "no hugetlbfs is mounted", do)
    rows = dict(line.split(":", 1) for line in (proc / "meminfo").read_text().splitlines())
    page_bytes = int(rows["Hugepagesize"].split()[0]) * 1024
    free, need = int(rows["HugePages_Free"]) - int(rows["HugePages_Rsvd"]), -(-memory_bytes // page_bytes)
    if free < need:
        wanted = int(rows["HugePages_Total"]) + need - free
        raise TareError(
            "huge pages",
            f"a guest of {memory_bytes // MIB} MiB needs {need} of {page_bytes // 1024} KiB, the host has {free} free",
            f"echo {wanted} > /proc/sys/vm/nr_hugepages",
        )


def _require_lockable() -> None:
    """To lock QEMU's memory, libvirt lifts its bound, which needs CAP_SYS_RESOURCE; found out by lifting our own."""
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (OSError, ValueError) as error:
        raise TareError(
            "locked memory", f"this host does not let RLIMIT_MEMLOCK be raised: {error}", "leave it out"
        ) from error
    resource.setrlimit(resource.RLIMIT_MEMLOCK, before)


def readings(tuning: Tuning, pid: int, memory_bytes: int, proc: Path = PROC) -> tuple[LimitReading, ...]:
    """What of `tuning` QEMU `pid` really has, read from the kernel."""
    found = []
    if tuning.pins:
        threads = vcpu_threads(pid, len(tuning.pins), proc)
        for vcpu, (thread, cpu) in enumerate(zip(threads, tuning.pins, strict=True)):
            source = proc / str(pid) / "task" / str(thread) / "status"
            read = _status(source, "Cpus_allowed_list")
            found.append(LimitReading(f"vCPU {vcpu} pinned", str(cpu), read, str(source), read == str(cpu)))
    status = proc / str(pid) / "status"
    for name, asked, field in (
        ("huge pages", tuning.hugepages, "HugetlbPages"),
        ("locked memory", tuning.locked, "VmLck"),
    ):
        if asked:
            read, need_kib = _status(status, field), memory_bytes // 1024
            holds = read.removesuffix(" kB").isdigit() and int(read.removesuffix(" kB")) >= need_kib
            found.append(LimitReading(name, f"{need_kib} kB", read, f"{status} {field}", holds))
    return tuple(found)


def _status(path: Path, field: str) -> str:
    try:
        rows = (line.partition(":") for line in path.read_text().splitlines())
    except OSError as error:
        return error.strerror or str(error)
    return next((value.strip() for name, _, value in rows if name == field), "not told")
