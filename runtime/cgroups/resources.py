"""What a control group is asked to give and to withhold: `linux.resources` of the OCI configuration, as values.

Frozen and neutral between cgroup v1 and v2, which `v1.py` and `v2.py` translate; `of_limits` says the same of a
backend-neutral `Limits`. Field names are the specification's in snake case (runtime-spec 1.2, config-linux.md).
None and empty mean "not asked for".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Pids:
    """At most `limit` tasks; -1 (or 0, as in Docker) is unlimited."""

    limit: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightDevice:
    """A weight of 10–1000 for one device."""

    major: int
    minor: int
    weight: int | None = None
    leaf_weight: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ThrottleDevice:
    """A cap for one device: bytes or operations per second."""

    major: int
    minor: int
    rate: int


@dataclass(frozen=True, slots=True, kw_only=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HugepageLimit:
    """At most `limit` bytes of huge pages of one size, such as 2MB."""

    page_size: str
    limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceRule:
    """One rule of the device filter; later ones win. `type` is a, b or c; None is any; `access` letters of rwm."""

    allow: bool
    type: str | None = None
    major: int | None = None
    minor: int | None = None
    access: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPriority:
    """v1's priority of what leaves through interface `name`."""

    name: str
    priority: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkClass:
    """v1's net_cls and net_prio; on v2 there is nothing of the kind."""

    class_id: int | None = field(default=None, metadata={"name": "classID"})
    priorities: tuple[NetworkPriority, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Rdma:
    """Handles and objects of one RDMA device."""

    hca_handles: int | None = None
    hca_objects: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
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
