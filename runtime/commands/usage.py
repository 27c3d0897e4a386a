"""What containers use, for `tare stats`: the control group's figures, and rates between two looks at them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.cgroups.statistics import Statistics
from runtime.container.lifecycle import Containers
from runtime.container.state import Record
from runtime.errors import TareError

HEADS = {
    "ID": "CONTAINER ID",
    "Name": "NAME",
    "CPUPerc": "CPU %",
    "MemUsage": "MEM USAGE / LIMIT",
    "MemPerc": "MEM %",
    "NetIO": "NET I/O",
    "BlockIO": "BLOCK I/O",
    "PIDs": "PIDS",
}
"""The columns, by their names in a template."""
PERIOD_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One container. Figures that the host does not give are None; `cpu_percent` is of one CPU."""

    record: Record
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_limit_bytes: int | None = None
    network_bytes: tuple[int, int] | None = None
    block_bytes: tuple[int | None, int | None] = (None, None)
    pids: int | None = None

    @property
    def memory_percent(self) -> float | None:
        """Of the limit."""
        if self.memory_bytes is None or not self.memory_limit_bytes:
            return None
        return 100 * self.memory_bytes / self.memory_limit_bytes

    def words(self, whole: bool) -> dict[str, str]:
        """As in the table, by the names of the columns."""
        identity = self.record.id if whole else self.record.short_id
        return {
            "ID": identity,
            "Container": identity,
            "Name": self.record.name,
            "CPUPerc": _percent(self.cpu_percent),
            "MemUsage": f"{_size(self.memory_bytes)} / {_size(self.memory_limit_bytes)}",
            "MemPerc": _percent(self.memory_percent),
            "NetIO": " / ".join(_decimal(value) for value in self.network_bytes or (None, None)),
            "BlockIO": " / ".join(_decimal(value) for value in self.block_bytes),
            "PIDs": "--" if self.pids is None else str(self.pids),
        }

    def document(self, whole: bool) -> dict[str, Any]:
        """As JSON: numbers with their units in the names."""
        received, sent = self.network_bytes or (None, None)
        return {
            "ID": self.record.id if whole else self.record.short_id,
            "Name": self.record.name,
            "cpu_percent": self.cpu_percent,
            "memory_bytes": self.memory_bytes,
            "memory_limit_bytes": self.memory_limit_bytes,
            "memory_percent": self.memory_percent,
            "network_received_bytes": received,
            "network_sent_bytes": sent,
            "block_read_bytes": self.block_bytes[0],
            "block_written_bytes": self.block_bytes[1],
            "pids": self.pids,
        }


class Meter:
    """Looks again and again; a rate is over the time since the look before."""

    def __init__(self, containers: Containers) -> None:
        self._containers = containers
        self._before: dict[str, tuple[float, int]] = {}
        self._next = time.monotonic()

    def rest(self) -> None:
        """Until the next look is due."""
        self._next = max(self._next + PERIOD_S, time.monotonic())
        time.sleep(max(0.0, self._next - time.monotonic()))

    def look(self, records: Sequence[Record]) -> list[Row]:
        """The containers as they are now."""
        return [self._row(record) for record in records]

    def _row(self, record: Record) -> Row:
        found: Statistics | None = None
        if record.running:
            with suppress(OSError, TareError):  # it may end meanwhile
                found = self._containers.ground.group(record.id).statistics()
        if found is None:
            return Row(record=record)
        memory = found.memory.memory
        usage = found.usage()
        return Row(
            record=record,
            cpu_percent=self._rate(record.id, found.cpu.total_ns),
            memory_bytes=found.memory.working_set_bytes,
            memory_limit_bytes=min(filter(None, (memory.limit_bytes, _host_memory())), default=None),
            network_bytes=_network(record.pid),
            block_bytes=(usage.io_read_bytes, usage.io_write_bytes),
            pids=found.pids.current,
        )

    def _rate(self, container_id: str, total_ns: int | None) -> float | None:
        if total_ns is None:
            return None
        now = time.monotonic()
        before = self._before.get(container_id)
        self._before[container_id] = now, total_ns
        if before is None or now <= before[0]:
            return 0.0
        return 100 * (total_ns - before[1]) / 1e9 / (now - before[0])


def _network(pid: int, proc: Path = Path("/proc")) -> tuple[int, int] | None:
    """Bytes received and sent by the namespace of process `pid`, without its loopback."""
    try:
        rows = (proc / str(pid) / "net/dev").read_text().splitlines()[2:]
    except OSError:
        return None
    counts = [words.split() for name, _, words in (row.partition(":") for row in rows) if name.strip() != "lo"]
    return sum(int(words[0]) for words in counts), sum(int(words[8]) for words in counts)


def _host_memory(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    try:
        row = next(row for row in meminfo.read_text().splitlines() if row.startswith("MemTotal:"))
    except (OSError, StopIteration):
        return None
    return int(row.split()[1]) * 1024


def _percent(value: float | None) -> str:
    return "--" if value is None else f"{value:.2f}%"


def _size(value: int | None) -> str:
    return "--" if value is None else _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _decimal(value: int | None) -> str:
    return "--" if value is None else _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, step: int, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if value < step:
            return f"{value:.4g}{unit}"
        value /= step
    return f"{value:.4g}{units[-1]}"
