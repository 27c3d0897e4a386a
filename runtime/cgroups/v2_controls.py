"""Resources as the control files of cgroup v2.

Control files: Documentation/admin-guide/cgroup-v2.rst in the kernel's source. Not the directory and its
processes, that is `v2`; not devices, that is `filter`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.cgroups.controls import (
    Batch,
    Control,
    Names,
    first_line,
    line_of_device,
    plain,
    present,
    refuse_weight,
    scheduler,
    schedulers,
    word_of_device,
)
from runtime.cgroups.files import number
from runtime.cgroups.resources import PERIOD_US, BlockIo, Cpu, Memory, Resources
from runtime.cgroups.values import UNLIMITED, cpus, given, huge_limit, shares, swap_alone, swappiness, weight
from runtime.cgroups.weights import cpu_weight, io_weight, whole_pages

_THROTTLES = (
    ("throttleReadBpsDevice", "throttle_read_bps_device", "rbps"),
    ("throttleWriteBpsDevice", "throttle_write_bps_device", "wbps"),
    ("throttleReadIOPSDevice", "throttle_read_iops_device", "riops"),
    ("throttleWriteIOPSDevice", "throttle_write_iops_device", "wiops"),
)
_NO_CAPS = "rbps=max wbps=max riops=max wiops=max"
_SIZE = re.compile(r"(\d+)([KMGT]?)", re.IGNORECASE)

Locate = Callable[[str, str], Path]
"""(limit, file name) → the file of this group. Raises TareError where its controller is not there."""


def needed(resources: Resources) -> Iterator[str]:
    """The controllers, beyond those that every group has, whose files `resources` asks for."""
    if resources.hugepage_limits:
        yield "hugetlb"
    if resources.rdma:
        yield "rdma"
    yield from {key.partition(".")[0] for key in resources.unified} & {"hugetlb", "rdma", "misc"}


class V2Controls:
    """Translates for one group. `locate` finds its files, `root` is the mount point, `io_device` its disk, if known."""

    def __init__(self, locate: Locate, root: Path, io_device: str | None, names: Names) -> None:
        self._locate = locate
        self._root = root
        self._io_device = io_device
        self._name = names

    def batches(self, resources: Resources) -> Iterator[Batch]:
        """Every control, in the order of writing. Raises TareError naming what v2 or this host lacks."""
        if resources.network is not None and (resources.network.class_id or resources.network.priorities):
            name = "network.classID" if resources.network.class_id else "network.priorities"
            raise self._name.refuse(name, "cgroup v2 has none", "mark packets by their group's path instead")
        if resources.cpu is not None:
            yield from self._cpu(resources.cpu)
        if resources.memory is not None:
            yield from self._memory(resources.memory)
        if resources.pids is not None and resources.pids.limit is not None:
            limit = resources.pids.limit
            yield (self._plain("pids.limit", "pids.max", "max" if limit <= 0 else str(limit)),)
        if resources.block_io is not None:
            yield from self._block_io(resources.block_io)
        yield from self._huge_pages(resources)
        for device, limits in resources.rdma.items():
            words = {"hca_handle": limits.hca_handles, "hca_object": limits.hca_objects}
            text = " ".join(f"{word}={value}" for word, value in words.items() if value is not None)
            file = self._locate(self._name("rdma"), "rdma.max")
            yield (Control(self._name("rdma"), file, f"{device} {text}", text, line_of_device(device), None),)
        for key, value in resources.unified.items():
            yield from self.unified(key, value)

    def _plain(self, name: str, file: str, value: str) -> Control:
        return plain(self._name(name), self._locate(self._name(name), file), value)

    def _cpu(self, cpu: Cpu) -> Iterator[Batch]:
        if cpu.realtime_period or cpu.realtime_runtime:
            name = "cpu.realtimePeriod" if cpu.realtime_period else "cpu.realtimeRuntime"
            raise self._name.refuse(name, "cgroup v2 has none")
        if cpu.cpus:
            yield (self._plain("cpu.cpus", "cpuset.cpus", cpus(self._name, "cpu.cpus", cpu.cpus)),)
        if cpu.mems:
            yield (self._plain("cpu.mems", "cpuset.mems", cpus(self._name, "cpu.mems", cpu.mems)),)
        bandwidth = []
        if cpu.quota or cpu.period:
            bandwidth.append(self._bandwidth(cpu))
        if cpu.burst is not None:
            bandwidth.append(self._plain("cpu.burst", "cpu.max.burst", str(cpu.burst)))
        if bandwidth:
            yield tuple(bandwidth)
        weight = shares(self._name, cpu.shares)
        if weight is not None and not cpu.idle:  # an idle group has no weight
            yield (self._plain("cpu.shares", "cpu.weight", str(cpu_weight(weight))),)
        if cpu.idle is not None:
            yield (self._plain("cpu.idle", "cpu.idle", str(cpu.idle)),)

    def _bandwidth(self, cpu: Cpu) -> Control:
        """Quota and period are one file; a quota alone has the kernel's period, a period alone keeps the quota."""
        name = self._name("cpu.quota" if cpu.quota else "cpu.period")
        path = self._locate(name, "cpu.max")
        if cpu.quota:
            quota = "max" if cpu.quota < 0 else str(cpu.quota)
            return plain(name, path, f"{quota} {cpu.period or PERIOD_US}")
        now = path.read_text().split()[0] if path.exists() else "max"
        return plain(name, path, f"{now} {cpu.period}")

    def _memory(self, memory: Memory) -> Iterator[Batch]:
        for name, asked in (
            ("memory.kernel", given(memory.kernel)),
            ("memory.kernelTCP", given(memory.kernel_tcp)),
            ("memory.swappiness", swappiness(self._name, memory.swappiness) is not None),
            ("memory.disableOOMKiller", bool(memory.disable_oom_killer)),
        ):
            if asked:
                raise self._name.refuse(name, "cgroup v2 has none")
        if memory.use_hierarchy is False:
            raise self._name.refuse("memory.useHierarchy", "cgroup v2 always accounts the groups below")
        limit_now = number(self._locate(self._name("memory.limit"), "memory.max")) if memory.swap else None
        for name, file, value in (
            ("memory.limit", "memory.max", memory.limit or None),
            ("memory.swap", "memory.swap.max", swap_alone(self._name, memory, limit_now)),
            ("memory.reservation", "memory.low", memory.reservation),
        ):
            if value is not None:
                size = "max" if value == UNLIMITED else whole_pages(value)
                yield (self._plain(name, file, size),)

    def _block_io(self, block_io: BlockIo) -> Iterator[Batch]:
        if block_io.leaf_weight:
            raise self._name.refuse("blockIO.leafWeight", "cgroup v2 has none")
        if block_io.weight:
            file = self.weight_file("blockIO.weight", self._io_device)
            value = self._weight("blockIO.weight", block_io.weight, file)
            yield (self._default("blockIO.weight", file, value),)
        for device in block_io.weight_device:
            if device.leaf_weight:
                raise self._name.refuse("blockIO.weightDevice.leafWeight", "cgroup v2 has none")
            if device.weight:
                number = f"{device.major}:{device.minor}"
                file = self.weight_file("blockIO.weightDevice", number)
                shown = str(self._weight("blockIO.weightDevice", device.weight, file))
                parse = line_of_device(number)
                name = self._name("blockIO.weightDevice")
                yield (Control(name, self._locate(name, file), f"{number} {shown}", shown, parse, None),)
        for name, field, key in _THROTTLES:
            for cap in getattr(block_io, field):
                yield (self._cap(f"blockIO.{name}", f"{cap.major}:{cap.minor}", key, cap.rate),)

    def _cap(self, name: str, device: str, key: str, rate: int) -> Control:
        word = f"{key}={rate or 'max'}"
        parse = word_of_device(device, key)

        def undo(text: str) -> str:
            return f"{device} {line_of_device(device)(text) or _NO_CAPS}"

        path = self._locate(self._name(name), "io.max")
        return Control(self._name(name), path, f"{device} {word}", word if rate else "", parse, undo)

    def _weight(self, name: str, value: int, file: str) -> int:
        value = weight(self._name, name, value)
        return value if file == "io.bfq.weight" else io_weight(max(10, value))

    def _default(self, name: str, file: str, value: int) -> Control:
        word = f"default {value}"
        return Control(self._name(name), self._locate(self._name(name), file), word, word, first_line, first_line)

    def weight_file(self, name: str, device: str | None) -> str:
        """The file of whichever mechanism weighs this disk's I/O: BFQ, or iocost where it was switched on.

        Raises TareError where none does.
        """
        try:
            costs = (self._root / "io.cost.qos").read_text()
        except OSError:
            costs = ""
        if device is None:
            if "bfq" in schedulers():
                return "io.bfq.weight"
            if "enable=1" in costs.split():
                return "io.weight"
            raise self._name.refuse(name, "no disk of this host has a scheduler that obeys weights")
        if (found := scheduler(device)) == "bfq":
            return "io.bfq.weight"
        if "enable=1" not in line_of_device(device)(costs).split():
            raise refuse_weight(self._name(name), device, found)
        return "io.weight"

    def limits_weight(self, value: int) -> Iterator[Batch]:
        """The I/O weight of a `Limits`, 1–10000, as it stands."""
        yield (self._default("blockIO.weight", self.weight_file("blockIO.weight", self._io_device), value),)

    def _huge_pages(self, resources: Resources) -> Iterator[Batch]:
        for limit in resources.hugepage_limits:
            size, shown = huge_limit(self._name, limit)
            name = self._name("hugepageLimits")
            for file in (f"hugetlb.{size}.max", f"hugetlb.{size}.rsvd.max"):
                path = self._locate(name, file)
                if not file.endswith(".rsvd.max") or present(path):
                    yield (plain(name, path, shown),)

    def unified(self, key: str, value: str) -> Iterator[Batch]:
        """A file of v2 by its name, one write a line of `value`. Raises TareError for what is no such file."""
        core = key.startswith("cgroup.") and not key.startswith("cgroup.max.")
        if core or not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)+", key):
            raise self._name.refuse(key, "not the name of a limit's control file", "write it like memory.high")
        path = self._locate(self._name(key), key)
        for line in value.splitlines() or [""]:
            yield (self._unified_line(key, path, line.strip()),)

    def _unified_line(self, key: str, path: Path, line: str) -> Control:
        """Shown by the kernel rounded to pages (memory), completed (cpu.max) or beside other devices' lines."""
        words = line.split()
        size = _SIZE.fullmatch(line)
        if size is not None and key.startswith("memory.") and key != "memory.swappiness":
            shown = whole_pages(int(size[1]) << "KMGT".find(size[2].upper() or "-") * 10 + 10)
            return Control(self._name(key), path, line, shown)
        if key.startswith("cpuset.cpus") or key == "cpuset.mems":
            return plain(self._name(key), path, cpus(self._name, key, line))
        if len(words) > 1 and ":" in words[0] and words[0].replace(":", "").isdigit():
            asked = " ".join(sorted(words[1:]))
            of_device = line_of_device(words[0])

            def of_line(text: str) -> str:
                return " ".join(sorted(word for word in of_device(text).split() if word in words[1:]))

            return Control(self._name(key), path, line, asked, of_line, None)
        if key in ("io.weight", "io.bfq.weight"):
            shown = line if line.startswith("default ") else f"default {line}"
            return Control(self._name(key), path, line, shown, first_line, first_line)

        def head(text: str) -> str:
            return " ".join(text.split()[: len(words)])

        return Control(self._name(key), path, line, " ".join(words), head)
