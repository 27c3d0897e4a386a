"""Statistics out of cgroup v1's accounting files. `directory` is the group in each controller's hierarchy."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from runtime.cgroups.files import keyed, number
from runtime.cgroups.statistics import (
    CpuStatistics,
    DeviceIo,
    Level,
    MemoryStatistics,
    PidsStatistics,
    Statistics,
)
from runtime.cgroups.v2_statistics import huge_pages as v2_huge_pages

Directory = Callable[[str], Path | None]
_NO_LIMIT = 1 << 62  # what unlimited looks like, whatever the page size


def statistics(method: str, directory: Directory, unified: Path | None = None) -> Statistics:
    """Everything that v1 tells; huge pages come from `unified` on a hybrid host that counts them there."""
    devices = io(directory("blkio"))
    own = directory("hugetlb")
    huge = _huge_pages(own) if own is not None else {} if unified is None else v2_huge_pages(unified)
    return Statistics(
        method=method,
        cpu=_cpu(directory("cpuacct"), directory("cpu")),
        memory=_memory(directory("memory")),
        pids=_pids(directory("pids")),
        io=devices,
        huge_pages=huge,
    )


def _cpu(accounting: Path | None, bandwidth: Path | None) -> CpuStatistics:
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    ticks = {} if accounting is None else keyed(accounting / "cpuacct.stat")
    periods = {} if bandwidth is None else keyed(bandwidth / "cpu.stat")
    user, system = ticks.get("user"), ticks.get("system")
    return CpuStatistics(
        total_ns=None if accounting is None else number(accounting / "cpuacct.usage"),
        user_ns=None if user is None else user * tick_ns,
        system_ns=None if system is None else system * tick_ns,
        per_cpu_ns=() if accounting is None else _numbers(accounting / "cpuacct.usage_percpu"),
        periods=periods.get("nr_periods"),
        throttled_periods=periods.get("nr_throttled"),
        throttled_ns=periods.get("throttled_time"),
        bursts=periods.get("nr_bursts"),
        burst_ns=periods.get("burst_time"),
    )


def _numbers(path: Path) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in path.read_text().split())
    except OSError:
        return ()


def _memory(directory: Path | None) -> MemoryStatistics:
    if directory is None:
        return MemoryStatistics()
    detail = keyed(directory / "memory.stat")
    control = keyed(directory / "memory.oom_control")
    return MemoryStatistics(
        memory=_level(directory, "memory."),
        with_swap=_level(directory, "memory.memsw."),
        swap=Level(current_bytes=detail.get("total_swap")),
        kernel=_level(directory, "memory.kmem."),
        kernel_tcp=_level(directory, "memory.kmem.tcp."),
        anonymous_bytes=detail.get("total_rss"),
        cache_bytes=detail.get("total_cache"),
        inactive_file_bytes=detail.get("total_inactive_file"),
        killed=control.get("oom_kill"),
        detail=detail,
    )


def _level(directory: Path, stem: str, limit: str = "limit_in_bytes") -> Level:
    bound = number(directory / f"{stem}{limit}")
    return Level(
        current_bytes=number(directory / f"{stem}usage_in_bytes"),
        peak_bytes=number(directory / f"{stem}max_usage_in_bytes"),
        limit_bytes=None if bound is None or bound >= _NO_LIMIT else bound,
        failures=number(directory / f"{stem}failcnt"),
    )


def _pids(directory: Path | None) -> PidsStatistics:
    if directory is None:
        return PidsStatistics()
    return PidsStatistics(
        current=number(directory / "pids.current"),
        peak=number(directory / "pids.peak"),
        limit=number(directory / "pids.max"),
        failures=keyed(directory / "pids.events").get("max"),
    )


def io(directory: Path | None) -> tuple[DeviceIo, ...]:
    """Each device of the throttling layer, which sees what no scheduler does; older kernels sum up in BFQ only."""
    if directory is None:
        return ()
    sizes, counts = (
        _by_device(directory / f"blkio.throttle.{name}_recursive") for name in ("io_service_bytes", "io_serviced")
    )
    return tuple(
        DeviceIo(
            device=device,
            read_bytes=sizes.get(device, {}).get("Read"),
            write_bytes=sizes.get(device, {}).get("Write"),
            discard_bytes=sizes.get(device, {}).get("Discard"),
            reads=counts.get(device, {}).get("Read"),
            writes=counts.get(device, {}).get("Write"),
            discards=counts.get(device, {}).get("Discard"),
        )
        for device in sorted({*sizes, *counts})
    )


def _by_device(path: Path) -> dict[str, dict[str, int]]:
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        if len(row) == 3:
            found.setdefault(row[0], {})[row[1]] = int(row[2])
    return found


def _huge_pages(directory: Path) -> dict[str, Level]:
    sizes = [
        path.name.split(".")[1] for path in directory.glob("hugetlb.*.usage_in_bytes") if path.name.count(".") == 2
    ]
    return {size: _level(directory, f"hugetlb.{size}.") for size in sorted(sizes)}
