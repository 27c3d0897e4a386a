"""Statistics out of cgroup v2's accounting files. `directory` is the group."""

from __future__ import annotations

from pathlib import Path

from runtime.cgroups.files import keyed, number
from runtime.cgroups.statistics import (
    CpuStatistics,
    DeviceIo,
    Level,
    MemoryStatistics,
    PidsStatistics,
    Pressure,
    Statistics,
)


def statistics(method: str, directory: Path) -> Statistics:
    """Everything that v2 tells."""
    pressure = {name: found for name in ("cpu", "memory", "io") if (found := _pressure(directory / f"{name}.pressure"))}
    return Statistics(
        method=method,
        cpu=_cpu(directory),
        memory=_memory(directory),
        pids=PidsStatistics(
            current=number(directory / "pids.current"),
            peak=number(directory / "pids.peak"),
            limit=number(directory / "pids.max"),
            failures=keyed(directory / "pids.events").get("max"),
        ),
        io=io(directory / "io.stat"),
        huge_pages=huge_pages(directory),
        pressure=pressure,
    )


def _cpu(directory: Path) -> CpuStatistics:
    told = keyed(directory / "cpu.stat")

    def ns(name: str) -> int | None:
        return told[name] * 1000 if name in told else None

    return CpuStatistics(
        total_ns=ns("usage_usec"),
        user_ns=ns("user_usec"),
        system_ns=ns("system_usec"),
        periods=told.get("nr_periods"),
        throttled_periods=told.get("nr_throttled"),
        throttled_ns=ns("throttled_usec"),
        bursts=told.get("nr_bursts"),
        burst_ns=ns("burst_usec"),
    )


def _memory(directory: Path) -> MemoryStatistics:
    detail, events = keyed(directory / "memory.stat"), keyed(directory / "memory.events")
    return MemoryStatistics(
        memory=_level(directory, "memory", events.get("max")),
        swap=_level(directory, "memory.swap", keyed(directory / "memory.swap.events").get("max")),
        kernel=Level(current_bytes=detail.get("kernel")),
        kernel_tcp=Level(current_bytes=detail.get("sock")),
        anonymous_bytes=detail.get("anon"),
        cache_bytes=detail.get("file"),
        inactive_file_bytes=detail.get("inactive_file"),
        out_of_memory=events.get("oom"),
        killed=events.get("oom_kill"),
        detail=detail,
    )


def _level(directory: Path, stem: str, failures: int | None) -> Level:
    return Level(
        current_bytes=number(directory / f"{stem}.current"),
        peak_bytes=number(directory / f"{stem}.peak"),
        limit_bytes=number(directory / f"{stem}.max"),
        failures=failures,
    )


def io(path: Path) -> tuple[DeviceIo, ...]:
    """Each device of io.stat, a nested keyed file; none where there is none."""
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return ()
    return tuple(_device(words[0], words[1:]) for words in map(str.split, lines) if len(words) > 1)


def _device(device: str, words: list[str]) -> DeviceIo:
    pairs = (word.partition("=") for word in words)
    told = {key: int(value) for key, _, value in pairs if value.isdigit()}
    return DeviceIo(
        device=device,
        read_bytes=told.get("rbytes"),
        write_bytes=told.get("wbytes"),
        reads=told.get("rios"),
        writes=told.get("wios"),
        discard_bytes=told.get("dbytes"),
        discards=told.get("dios"),
    )


def huge_pages(directory: Path) -> dict[str, Level]:
    """By page size, as the files are named."""
    sizes = [path.name.split(".")[1] for path in directory.glob("hugetlb.*.current") if path.name.count(".") == 2]
    return {
        size: Level(
            current_bytes=number(directory / f"hugetlb.{size}.current"),
            limit_bytes=number(directory / f"hugetlb.{size}.max"),
            failures=keyed(directory / f"hugetlb.{size}.events").get("max"),
        )
        for size in sorted(sizes)
    }


def _pressure(path: Path) -> Pressure | None:
    """The totals of a PSI file: `some avg10=… total=N`, and the same of `full`."""
    try:
        rows = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return None
    totals = {row[0]: int(row[-1].partition("=")[2]) for row in rows if row and row[-1].startswith("total=")}
    return Pressure(some_us=totals.get("some"), full_us=totals.get("full"))
