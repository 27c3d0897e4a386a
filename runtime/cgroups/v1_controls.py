"""Resources as the control files of cgroup v1.

Control files: Documentation/admin-guide/cgroup-v1/ in the kernel's source. Not the directories and their
processes, that is `v1`; not devices, that is `devices`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

from runtime.cgroups.controls import (
    Batch,
    Control,
    Names,
    line_of_device,
    plain,
    present,
    refuse_weight,
    scheduler,
    schedulers,
)
from runtime.cgroups.files import parse_keyed
from runtime.cgroups.resources import BlockIo, Cpu, Memory, NetworkClass, Resources
from runtime.cgroups.values import UNLIMITED, cpus, given, huge_limit, shares, swap_alone, swappiness, weight
from runtime.cgroups.weights import whole_pages

_THROTTLES = (
    ("throttleReadBpsDevice", "throttle_read_bps_device", "read_bps_device"),
    ("throttleWriteBpsDevice", "throttle_write_bps_device", "write_bps_device"),
    ("throttleReadIOPSDevice", "throttle_read_iops_device", "read_iops_device"),
    ("throttleWriteIOPSDevice", "throttle_write_iops_device", "write_iops_device"),
)

Locate = Callable[[str, str], Path]
"""(limit, file name) → the file of this group. Raises TareError where its controller is not there."""


def needed(resources: Resources) -> Iterator[str]:
    """The controllers, beyond those that every group joins, whose files `resources` asks for."""
    if resources.cpu is not None and (resources.cpu.cpus or resources.cpu.mems):
        yield "cpuset"
    if resources.hugepage_limits:
        yield "hugetlb"
    if resources.network is not None and resources.network.class_id is not None:
        yield "net_cls"
    if resources.network is not None and resources.network.priorities:
        yield "net_prio"
    if resources.rdma:
        yield "rdma"


class V1Controls:
    """Translates for one group. `locate` finds its files, `io_device` is the disk it lives on, if known."""

    def __init__(self, locate: Locate, io_device: str | None, names: Names) -> None:
        self._locate = locate
        self._io_device = io_device
        self._name = names

    def batches(self, resources: Resources) -> Iterator[Batch]:
        """Every control, in the order of writing. Raises TareError naming what v1 or this host lacks."""
        if resources.cpu is not None:
            yield from self._cpuset(resources.cpu)
            yield from self._cpu(resources.cpu)
        if resources.memory is not None:
            yield from self._memory(resources.memory)
        if resources.pids is not None and resources.pids.limit is not None:
            limit = resources.pids.limit
            yield (self._plain("pids.limit", "pids.max", "max" if limit <= 0 else str(limit)),)
        if resources.block_io is not None:
            yield from self._block_io(resources.block_io)
        yield from self._huge_pages(resources)
        if resources.network is not None:
            yield from self._network(resources.network)
        for device, limits in resources.rdma.items():
            words = {"hca_handle": limits.hca_handles, "hca_object": limits.hca_objects}
            text = " ".join(f"{word}={value}" for word, value in words.items() if value is not None)
            file = self._locate(self._name("rdma"), "rdma.max")
            yield (Control(self._name("rdma"), file, f"{device} {text}", text, line_of_device(device), None),)

    def _plain(self, name: str, file: str, value: str) -> Control:
        return plain(self._name(name), self._locate(self._name(name), file), value)

    def _cpuset(self, cpu: Cpu) -> Iterator[Batch]:
        if cpu.cpus:
            yield (self._plain("cpu.cpus", "cpuset.cpus", cpus(self._name, "cpu.cpus", cpu.cpus)),)
        if cpu.mems:
            yield (self._plain("cpu.mems", "cpuset.mems", cpus(self._name, "cpu.mems", cpu.mems)),)

    def _cpu(self, cpu: Cpu) -> Iterator[Batch]:
        realtime = (
            ("cpu.realtimePeriod", "cpu.rt_period_us", cpu.realtime_period),
            ("cpu.realtimeRuntime", "cpu.rt_runtime_us", cpu.realtime_runtime),
        )
        yield from self._batch(realtime)
        quota = None if not cpu.quota else -1 if cpu.quota < 0 else cpu.quota
        bandwidth = (
            ("cpu.period", "cpu.cfs_period_us", cpu.period or None),
            ("cpu.quota", "cpu.cfs_quota_us", quota),
            ("cpu.burst", "cpu.cfs_burst_us", cpu.burst),
        )
        yield from self._batch(bandwidth)
        yield from self._batch(
            (
                ("cpu.shares", "cpu.shares", None if cpu.idle else shares(self._name, cpu.shares)),
                ("cpu.idle", "cpu.idle", cpu.idle),
            )
        )

    def _batch(self, rows: tuple[tuple[str, str, int | None], ...]) -> Iterator[Batch]:
        batch = tuple(self._plain(name, file, str(value)) for name, file, value in rows if value is not None)
        if batch:
            yield batch

    def _memory(self, memory: Memory) -> Iterator[Batch]:
        if given(memory.kernel):
            raise self._name.refuse("memory.kernel", "kernels no longer keep a limit of kernel memory alone")
        if memory.use_hierarchy is False:
            raise self._name.refuse("memory.useHierarchy", "kernels no longer account memory without the groups below")
        swap = memory.swap
        if memory.limit == UNLIMITED and swap is None:
            swap = UNLIMITED  # the sum of both cannot stay below one of them
        if given(memory.limit) and given(swap):
            swap_alone(self._name, memory)
        pair = (
            ("memory.limit", "memory.limit_in_bytes", memory.limit),
            ("memory.swap", "memory.memsw.limit_in_bytes", swap),
        )
        batch = tuple(self._size(name, file, value) for name, file, value in pair if value)
        if batch:
            yield batch
        for name, file, value in (
            ("memory.reservation", "memory.soft_limit_in_bytes", memory.reservation),
            ("memory.kernelTCP", "memory.kmem.tcp.limit_in_bytes", memory.kernel_tcp),
        ):
            if value is not None:
                yield (self._size(name, file, value),)
        if (value := swappiness(self._name, memory.swappiness)) is not None:
            yield (self._plain("memory.swappiness", "memory.swappiness", str(value)),)
        if memory.disable_oom_killer is not None:
            yield from self._oom_killer(memory.disable_oom_killer)

    def _size(self, name: str, file: str, size_bytes: int) -> Control:
        path = self._locate(self._name(name), file)
        if size_bytes < 0:
            return Control(self._name(name), path, "-1", whole_pages((1 << 63) - 1))
        return plain(self._name(name), path, whole_pages(size_bytes))

    def _oom_killer(self, disabled: bool) -> Iterator[Batch]:
        def parse(text: str) -> str:
            return str(parse_keyed(text).get("oom_kill_disable", ""))

        name = self._name("memory.disableOOMKiller")
        value = str(int(disabled))
        yield (Control(name, self._locate(name, "memory.oom_control"), value, value, parse, parse),)

    def _block_io(self, block_io: BlockIo) -> Iterator[Batch]:
        if block_io.leaf_weight:
            yield (self._plain("blockIO.leafWeight", "blkio.leaf_weight", str(block_io.leaf_weight)),)
        if block_io.weight:
            value = str(weight(self._name, "blockIO.weight", block_io.weight))
            yield (self._plain("blockIO.weight", self._weight_file("blockIO.weight", self._io_device, ""), value),)
        for device in block_io.weight_device:
            if device.leaf_weight:
                raise self._name.refuse("blockIO.weightDevice.leafWeight", "no scheduler knows it any more")
            if device.weight:
                number = f"{device.major}:{device.minor}"
                file = self._weight_file("blockIO.weightDevice", number, "_device")
                value = str(weight(self._name, "blockIO.weightDevice", device.weight))
                yield (self._of_device("blockIO.weightDevice", file, number, value),)
        for name, field, file in _THROTTLES:
            for cap in getattr(block_io, field):
                number = f"{cap.major}:{cap.minor}"
                yield (self._of_device(f"blockIO.{name}", f"blkio.throttle.{file}", number, str(cap.rate)),)

    def _of_device(self, name: str, file: str, device: str, value: str) -> Control:
        parse = line_of_device(device)
        path = self._locate(self._name(name), file)
        shown = "" if value == "0" else value  # no rate is no line

        def undo(text: str) -> str:
            return f"{device} {parse(text) or 0}"

        return Control(self._name(name), path, f"{device} {value}", shown, parse, undo)

    def _weight_file(self, name: str, device: str | None, suffix: str) -> str:
        """BFQ's file, where the disk obeys it; CFQ's on kernels that still have that."""
        if present(self._locate(self._name(name), f"blkio.weight{suffix}")):
            return f"blkio.weight{suffix}"
        if device is None and "bfq" not in schedulers():
            raise self._name.refuse(name, "no disk of this host has a scheduler that obeys weights")
        if device is not None and (found := scheduler(device)) != "bfq":
            raise refuse_weight(self._name(name), device, found)
        return f"blkio.bfq.weight{suffix}"

    def _huge_pages(self, resources: Resources) -> Iterator[Batch]:
        """In the v1 hierarchy, or where a hybrid host has the controller on v2, there."""
        for limit in resources.hugepage_limits:
            size, shown = huge_limit(self._name, limit)
            stem = f"hugetlb.{size}"
            file = self._locate(self._name("hugepageLimits"), f"{stem}.limit_in_bytes")
            if file.name.endswith(".max"):
                reserved = file.with_name(f"{stem}.rsvd.max")
            else:
                reserved = file.with_name(f"{stem}.rsvd.limit_in_bytes")
            for path in (file, reserved):
                if path is file or present(path):
                    yield (Control(self._name("hugepageLimits"), path, shown, shown),)

    def _network(self, network: NetworkClass) -> Iterator[Batch]:
        if network.class_id is not None:
            yield (self._plain("network.classID", "net_cls.classid", str(network.class_id)),)
        for entry in network.priorities:
            if not re.fullmatch(r"[^\s/]{1,15}", entry.name):
                raise self._name.refuse("network.priorities", f"{entry.name!r} names no interface", "correct it")
            name = self._name("network.priorities")
            file = self._locate(name, "net_prio.ifpriomap")
            value = str(entry.priority)
            yield (Control(name, file, f"{entry.name} {value}", value, line_of_device(entry.name)),)
