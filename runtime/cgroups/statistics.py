"""What a group has used and met, as figures: a superset of `Usage`, for `stats` and the OCI `events`.

A figure that the host does not give is None, or absent from its mapping; nothing is computed from others.
The readers of the two versions are `v1_statistics` and `v2_statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.instance import Usage
from runtime.record import field, record


@record
class CpuStatistics:
    """Nanoseconds of CPU time since the start; quota periods gone by, those throttled, and for how long."""

    total_ns: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    per_cpu_ns: tuple[int, ...] = ()
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None
    bursts: int | None = None
    burst_ns: int | None = None


@record
class Level:
    """One pool: bytes in it now, at most until now, its limit (None: unlimited), and how often the limit was met."""

    current_bytes: int | None = None
    peak_bytes: int | None = None
    limit_bytes: int | None = None
    failures: int | None = None


@record
class MemoryStatistics:
    """Memory by what it is. `swap` is v2's, of swap alone; `with_swap` is v1's, of memory and swap together.

    `inactive_file_bytes` is cache that goes first, which `docker stats` does not count. `detail` is the whole of
    memory.stat, whose names differ between the versions.
    """

    memory: Level = Level()
    swap: Level = Level()
    with_swap: Level = Level()
    kernel: Level = Level()
    kernel_tcp: Level = Level()
    anonymous_bytes: int | None = None
    cache_bytes: int | None = None
    inactive_file_bytes: int | None = None
    out_of_memory: int | None = None
    killed: int | None = None
    detail: Mapping[str, int] = field(default_factory=dict)

    @property
    def working_set_bytes(self) -> int | None:
        """Memory now without the cache that goes first: what `docker stats` shows."""
        now = self.memory.current_bytes
        return None if now is None else max(0, now - (self.inactive_file_bytes or 0))


@record
class PidsStatistics:
    """Tasks now, at most until now, the limit (None: unlimited), and how often a fork was refused."""

    current: int | None = None
    peak: int | None = None
    limit: int | None = None
    failures: int | None = None


@record
class DeviceIo:
    """Bytes and operations of one disk since the start. v1 sees reads and direct writes only."""

    device: str
    read_bytes: int | None = None
    write_bytes: int | None = None
    reads: int | None = None
    writes: int | None = None
    discard_bytes: int | None = None
    discards: int | None = None


@record
class Pressure:
    """Microseconds in which some, or all, of the group's tasks waited for a resource (PSI; v2 only)."""

    some_us: int | None = None
    full_us: int | None = None


@record
class Statistics:
    """Everything about one group. `huge_pages` is by page size, `pressure` by resource: cpu, memory, io."""

    method: str
    cpu: CpuStatistics = CpuStatistics()
    memory: MemoryStatistics = MemoryStatistics()
    pids: PidsStatistics = PidsStatistics()
    io: tuple[DeviceIo, ...] = ()
    huge_pages: Mapping[str, Level] = field(default_factory=dict)
    pressure: Mapping[str, Pressure] = field(default_factory=dict)

    def usage(self) -> Usage:
        """The part of it that every backend has."""

        def total(name: str) -> int | None:
            values = [value for device in self.io if (value := getattr(device, name)) is not None]
            return sum(values) if values else None

        return Usage(
            method=self.method,
            cpu_ns=self.cpu.total_ns,
            memory_bytes=self.memory.memory.current_bytes,
            memory_peak_bytes=self.memory.memory.peak_bytes,
            pids=self.pids.current,
            io_read_bytes=total("read_bytes"),
            io_write_bytes=total("write_bytes"),
        )
