"""`tare oci events`: a container's statistics and its out-of-memory kills, in the JSON that runc's callers read.

The figures are `runtime.cgroups.statistics`; here they only get runc's names. What the host does not give is left out.
"""

from __future__ import annotations

import os
import re
import select
from collections.abc import Iterator

from runtime.cgroups.statistics import DeviceIo, Level, Statistics
from runtime.container import oci
from runtime.container.bundles import Record
from runtime.errors import UsageError

UNLIMITED = (1 << 63) - 1
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_OPERATIONS = (
    ("Read", "read_bytes", "reads"),
    ("Write", "write_bytes", "writes"),
    ("Discard", "discard_bytes", "discards"),
)
Document = dict[str, object]


def seconds(text: str) -> float:
    """A duration as Go writes it: `5s`, `1m30s`, `250ms`. Raises UsageError for none, and for nothing at all."""
    found = _DURATION.findall(text)
    total = sum(float(number) * _UNIT_S[unit] for number, unit in found)
    if "".join(number + unit for number, unit in found) != text or total <= 0:
        raise UsageError(f"interval {text!r}", "not a duration", "write it like 5s or 1m30s")
    return total


def events(runtime: oci.Runtime, container_id: str, interval_s: float, *, once: bool) -> Iterator[Document]:
    """The statistics now and, unless `once`, every `interval_s` until the container ends, with what it ran out of.

    Raises TareError when the container does not run.
    """
    place = runtime.find(container_id)
    record = oci.need(place, "events", "running", "created", "paused")
    group = oci.cgroup_of(record)
    killed = 0
    while True:
        read = group.statistics()
        for _ in range((read.memory.killed or 0) - killed):
            yield {"type": "oom", "id": container_id}
        killed = read.memory.killed or 0
        yield {"type": "stats", "id": container_id, "data": document(read)}
        if once or _ends_within(record, interval_s):
            return


def _ends_within(record: Record, timeout_s: float) -> bool:
    pidfd = oci.open_init(record)
    if pidfd is None:
        return True
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))
    finally:
        os.close(pidfd)


def document(read: Statistics) -> Document:
    """Runc's names for the figures (runc's types/events.go)."""
    memory, cpu = read.memory, read.cpu
    return _known(
        cpu={
            "usage": _known(
                total=cpu.total_ns, percpu=list(cpu.per_cpu_ns) or None, kernel=cpu.system_ns, user=cpu.user_ns
            ),
            "throttling": _known(
                periods=cpu.periods, throttledPeriods=cpu.throttled_periods, throttledTime=cpu.throttled_ns
            ),
        },
        memory=_known(
            cache=memory.cache_bytes,
            usage=_level(memory.memory),
            swap=_level(memory.with_swap if memory.with_swap.current_bytes is not None else memory.swap),
            kernel=_level(memory.kernel),
            kernelTCP=_level(memory.kernel_tcp),
            raw=dict(memory.detail) or None,
        ),
        pids=_known(current=read.pids.current, limit=read.pids.limit),
        blkio=_blkio(read.io),
        hugetlb={size: _level(level) for size, level in read.huge_pages.items()},
    )


def _level(level: Level) -> Document:
    if level.current_bytes is None:
        return {}
    limit = UNLIMITED if level.limit_bytes is None else level.limit_bytes
    return _known(limit=limit, usage=level.current_bytes, max=level.peak_bytes, failcnt=level.failures or 0)


def _blkio(devices: tuple[DeviceIo, ...]) -> Document:
    """One row a device and operation."""

    def rows(column: int) -> list[Document]:
        return [
            {"major": int(major), "minor": int(minor), "op": names[0], "value": value}
            for device in devices
            for major, _, minor in [device.device.partition(":")]
            for names in _OPERATIONS
            if (value := getattr(device, names[column])) is not None
        ]

    return _known(ioServiceBytesRecursive=rows(1) or None, ioServicedRecursive=rows(2) or None)


def _known(**values: object) -> Document:
    return {name: value for name, value in values.items() if value is not None}
