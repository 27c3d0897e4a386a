"""A CPU limit on the vCPUs alone: the second variant, as libvirt's vcpu quota is commonly used.

QEMU's other threads (emulation, disk, network) then work for the guest at nobody's expense, all but workers that a
vCPU's thread starts: those are born under its limit. Not the limit on the
whole domain, which is the control group's like every other.
"""

from __future__ import annotations

import re
from pathlib import Path

from runtime.cgroups.cgroup import Cgroup
from runtime.errors import TareError
from runtime.instance import LimitReading
from runtime.linux import procfs

GROUP = "vcpus"
_VCPU = re.compile(r"CPU (\d+)/(?:KVM|TCG)")  # as QEMU names them, which libvirt has it do


class VcpuQuota:
    """`cpus` of CPU time for the vCPU threads of a QEMU that lives in `cgroup`."""

    def __init__(self, cgroup: Cgroup, cpus: float) -> None:
        self._group = cgroup.thread_group(GROUP, cpus)
        self._bound: tuple[int, ...] = ()

    def bind(self, pid: int, vcpus: int) -> None:
        """Put the threads that run the `vcpus` vCPUs of QEMU `pid` under the limit; they have run without it before.

        Raises TareError when they are not all found, or the limit cannot be set.
        """
        self._bound = vcpu_threads(pid, vcpus)
        try:
            self._group.create()
            self._group.add(self._bound)
        except OSError as error:
            raise TareError("limit cpus on vCPUs", str(error), "use the limit on the whole domain") from error

    def readings(self) -> tuple[LimitReading, ...]:
        """The limit as the kernel holds it, and which threads it binds."""
        asked = ",".join(map(str, sorted(self._bound)))
        holds = False
        try:
            found = self._group.threads()
            # A worker that a vCPU's thread starts is born where that one is: more than was asked, not less.
            holds = set(self._bound) <= set(found)
            read = ",".join(map(str, found))
        except OSError as error:
            read = error.strerror or str(error)
        source = str(self._group.tasks)
        threads = LimitReading(name="cpus: threads", asked=asked, read=read, source=source, holds=holds)
        return (*self._group.readings(), threads)


def vcpu_threads(pid: int, vcpus: int, proc: Path = procfs.PROC) -> tuple[int, ...]:
    """The threads of QEMU `pid` that run vCPU 0, 1 and so on. Raises TareError when they are not `vcpus` in number."""
    found: dict[int, int] = {}
    for task in (proc / str(pid) / "task").glob("*"):
        try:
            name = (task / "comm").read_text().rstrip("\n")
        except OSError:  # a worker that has ended
            continue
        if match := _VCPU.fullmatch(name):
            found[int(match[1])] = int(task.name)
    if sorted(found) != list(range(vcpus)):
        raise TareError(f"QEMU {pid}", f"{len(found)} threads are named as vCPUs, not {vcpus}")
    return tuple(found[vcpu] for vcpu in range(vcpus))
