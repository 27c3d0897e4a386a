"""What a control group is asked to give and to withhold: `linux.resources` of the OCI configuration, as values.

Frozen and neutral between cgroup v1 and v2, which `v1.py` and `v2.py` translate; `of_limits` says the same of a
backend-neutral `Limits`. Field names are the specification's in snake case (runtime-spec 1.2, config-linux.md).
None and empty mean "not asked for".
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.cgroups.weights import bfq_weight, cpu_shares
from runtime.errors import TareError
from runtime.record import field, record
from runtime.spec import Limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PERIOD_US: Final = 100_000
"""The CFS bandwidth period: the kernel's default, and Docker's."""

LIMIT_NAMES: Final[Mapping[str, str]] = {
    "cpu.cpus": "cpuset",
    "cpu.period": "cpus",
    "cpu.quota": "cpus",
    "cpu.shares": "cpu_weight",
    "memory.limit": "memory_bytes",
    "memory.reservation": "memory_low_bytes",
    "memory.swap": "swap_bytes",
    "pids.limit": "pids",
    "blockIO.throttleReadBpsDevice": "io_read_bps",
    "blockIO.throttleWriteBpsDevice": "io_write_bps",
    "blockIO.weight": "io_weight",
}
"""What `Limits` calls the controls that `of_limits` makes of it."""


@record
class Memory:
    """Bytes; -1 is unlimited. `reservation` is v1's soft limit and v2's memory.low, `swap` memory *plus* swap."""

    limit: int | None = None
    reservation: int | None = None
    swap: int | None = None
    kernel: int | None = None
    kernel_tcp: int | None = field(default=None, metadata={"name": "kernelTCP"})
    swappiness: int | None = None
    disable_oom_killer: bool | None = field(default=None, metadata={"name": "disableOOMKiller"})
    use_hierarchy: bool | None = None
    check_before_update: bool | None = None


@record
class Cpu:
    """`shares` as v1 counts them (1024 is one part); `quota`, `burst`, `period` in µs; `cpus`, `mems` kernel lists."""

    shares: int | None = None
    quota: int | None = None
    burst: int | None = None
    period: int | None = None
    realtime_runtime: int | None = None
    realtime_period: int | None = None
    cpus: str | None = None
    mems: str | None = None
    idle: int | None = None


@record
class Pids:
    """At most `limit` tasks; -1 (or 0, as in Docker) is unlimited."""

    limit: int | None = None


@record
class WeightDevice:
    """A weight of 10–1000 for one device."""

    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


@record
class ThrottleDevice:
    """A cap for one device: bytes or operations per second."""

    major: int
    minor: int
    rate: int


@record
class BlockIo:
    """Block I/O: `weight` of 10–1000 (500 is one part) and caps per device."""

    weight: int | None = None
    leaf_weight: int | None = None
    weight_device: tuple[WeightDevice, ...] = ()
    throttle_read_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_write_bps_device: tuple[ThrottleDevice, ...] = ()
    throttle_read_iops_device: tuple[ThrottleDevice, ...] = field(
        default=(), metadata={"name": "throttleReadIOPSDevice"}
    )
    throttle_write_iops_device: tuple[ThrottleDevice, ...] = field(
        default=(), metadata={"name": "throttleWriteIOPSDevice"}
    )


@record
class HugepageLimit:
    """At most `limit` bytes of huge pages of one size, such as 2MB."""

    page_size: str
    limit: int


@record
class DeviceRule:
    """One rule of the device filter; later ones win. `type` is a, b or c; None is any; `access` letters of rwm."""

    allow: bool
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    access: str | None = None


@record
class NetworkPriority:
    """v1's priority of what leaves through interface `name`."""

    name: str
    priority: int


@record
class NetworkClass:
    """v1's net_cls and net_prio; on v2 there is nothing of the kind."""

    class_id: int | None = field(default=None, metadata={"name": "classID"})
    priorities: tuple[NetworkPriority, ...] = ()


@record
class Rdma:
    """Handles and objects of one RDMA device."""

    hca_handles: int | None = None
    hca_objects: int | None = None


@record
class Resources:
    """Everything at once. `unified` are v2 files by name (`memory.high`), written after the rest.

    `devices` None leaves devices alone; an empty tuple is a filter that denies everything.
    """

    devices: tuple[DeviceRule, ...] | None = None
    memory: Memory | None = None
    cpu: Cpu | None = None
    pids: Pids | None = None
    block_io: BlockIo | None = field(default=None, metadata={"name": "blockIO"})
    hugepage_limits: tuple[HugepageLimit, ...] = ()
    network: NetworkClass | None = None
    rdma: Mapping[str, Rdma] = field(default_factory=dict)
    unified: Mapping[str, str] = field(default_factory=dict)


def of_limits(limits: Limits, io_device: str | None = None) -> Resources:
    """The same as `limits`; `io_device` (`MAJOR:MINOR`) is the disk that its I/O limits are for.

    The I/O weight becomes BFQ's, 1–1000. Raises TareError for I/O limits without a device.
    """
    return Resources(
        cpu=_cpu(limits),
        memory=_memory(limits),
        pids=None if limits.pids is None else Pids(limit=limits.pids),
        block_io=_block_io(limits, io_device),
    )


def _cpu(limits: Limits) -> Cpu | None:
    if limits.cpus is None and limits.cpu_weight is None and limits.cpuset is None:
        return None
    return Cpu(
        quota=None if limits.cpus is None else round(limits.cpus * PERIOD_US),
        period=None if limits.cpus is None else PERIOD_US,
        shares=None if limits.cpu_weight is None else cpu_shares(limits.cpu_weight),
        cpus=limits.cpuset,
    )


def _memory(limits: Limits) -> Memory | None:
    if limits.memory_bytes is None and limits.memory_low_bytes is None:
        return None
    memory, swap = limits.memory_bytes, limits.swap_bytes
    both = None if memory is None or swap is None else memory + swap
    return Memory(limit=memory, reservation=limits.memory_low_bytes, swap=both)


def _block_io(limits: Limits, io_device: str | None) -> BlockIo | None:
    if limits.io_read_bps is None and limits.io_write_bps is None and limits.io_weight is None:
        return None

    def caps(name: str, rate: int | None) -> tuple[ThrottleDevice, ...]:
        if rate is None:
            return ()
        major, minor = need_device(name, io_device).split(":")
        return (ThrottleDevice(major=int(major), minor=int(minor), rate=rate),)

    if limits.io_weight is not None:
        need_device("io_weight", io_device)
    return BlockIo(
        weight=None if limits.io_weight is None else bfq_weight(limits.io_weight),
        throttle_read_bps_device=caps("io_read_bps", limits.io_read_bps),
        throttle_write_bps_device=caps("io_write_bps", limits.io_write_bps),
    )


def need_device(name: str, device: str | None) -> str:
    """The device number `MAJOR:MINOR` that I/O limits apply to. Raises TareError where there is none."""
    if device is None:
        raise TareError(
            f"limit {name}",
            "the file system of the state directory lies on no block device",
            "move it (TARE_ROOT) or leave the limit out",
        )
    return device
