"""A control group on cgroup v2, the unified hierarchy.

Control files: Documentation/admin-guide/cgroup-v2.rst in the kernel's source.
"""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic

from runtime.cgroups.cgroup import (
    PERIOD_US,
    Cgroup,
    absent,
    cpu_list,
    limit,
    line_of_device,
    need_device,
    number,
    reading,
    refuse_weight,
    scheduler,
    whole_pages,
    write,
)
from runtime.errors import TareError
from runtime.instance import LimitReading, Usage
from runtime.spec import Limits

WANTED = ("cpuset", "io", "cpu", "memory", "pids")
"""Controllers enabled for the instances' groups, in this order, as far as the host offers them: the last it does."""


class V2Cgroup(Cgroup):
    """One instance's directory `<mount>/<parent>/<id>`."""

    method = "cgroup v2"

    def __init__(self, instance_id: str, mount: Path, *, parent: str = "tare", io_device: str | None = None) -> None:
        super().__init__(instance_id, io_device)
        self._mount = mount
        self._parent = mount / parent
        self.path = self._parent / instance_id

    def directories(self) -> tuple[Path, ...]:
        """The one directory."""
        return (self.path,)

    def join_files(self) -> tuple[Path, ...]:
        """None: a process is born inside, see `clone_into()`."""
        return ()

    def clone_into(self) -> Path:
        """The group's directory."""
        return self.path

    def mounts_inside(self) -> tuple[tuple[str, str], ...]:
        """The hierarchy itself, at /sys/fs/cgroup."""
        return (("", ""),)

    def create(self) -> None:
        """Make the directory; the first since boot makes the parent and hands the controllers down to it.

        That may be half done, by a process at it right now or one that died: who sees it completes it.
        """
        try:
            self.path.mkdir()
        except FileNotFoundError:
            self._parent.mkdir(exist_ok=True)
            self.path.mkdir(exist_ok=True)
        if not (self.path / f"{WANTED[-1]}.max").exists():
            self._hand_down()

    def _hand_down(self) -> None:
        for directory in (self._mount, self._parent):
            offered = (directory / "cgroup.controllers").read_text().split()
            for name in WANTED:
                if name in offered:
                    write(directory / "cgroup.subtree_control", f"+{name}")

    def apply(self, limits: Limits) -> None:
        """Write every limit."""
        for name, file, value, _ in self._controls(limits):
            limit(name, file, value)

    def readings(self, limits: Limits) -> tuple[LimitReading, ...]:
        """Each control file read back, as one reading a file (two for the two halves of io.max)."""
        return tuple(reading(name, shown, file, self._parser(name)) for name, file, _, shown in self._controls(limits))

    def _parser(self, name: str) -> Callable[[str], str]:
        if name in ("io_read_bps", "io_write_bps"):
            key = "rbps=" if name == "io_read_bps" else "wbps="
            of_device = line_of_device(self.io_device)
            return lambda text: next((word for word in of_device(text).split() if word.startswith(key)), "")
        if name == "io_weight":
            return lambda text: next(iter(text.splitlines()), "")
        return str.strip

    def _controls(self, limits: Limits) -> Iterator[tuple[str, Path, str, str]]:
        """(limit, file, value to write, what the file shows when it holds), in the order of writing."""

        def plain(name: str, file: str, value: str) -> tuple[str, Path, str, str]:
            return name, self.path / file, value, value

        if limits.cpuset is not None:
            yield plain("cpuset", "cpuset.cpus", cpu_list(limits.cpuset))
        if limits.cpus is not None:
            yield plain("cpus", "cpu.max", f"{round(limits.cpus * PERIOD_US)} {PERIOD_US}")
        if limits.cpu_weight is not None:
            yield plain("cpu_weight", "cpu.weight", str(limits.cpu_weight))
        if limits.memory_bytes is not None:
            yield plain("memory_bytes", "memory.max", whole_pages(limits.memory_bytes))
        if limits.swap_bytes is not None:
            yield plain("swap_bytes", "memory.swap.max", whole_pages(limits.swap_bytes))
        if limits.memory_low_bytes is not None:
            yield plain("memory_low_bytes", "memory.low", whole_pages(limits.memory_low_bytes))
        if limits.pids is not None:
            yield plain("pids", "pids.max", str(limits.pids))
        for name, key in (("io_read_bps", "rbps"), ("io_write_bps", "wbps")):
            value = getattr(limits, name)
            if value is not None:
                word = f"{key}={value}"
                yield name, self.path / "io.max", f"{need_device(name, self.io_device)} {word}", word
        if limits.io_weight is not None:
            word = f"default {limits.io_weight}"
            yield "io_weight", self.path / self._weight_file(), word, word

    def _weight_file(self) -> str:
        """The file of whichever mechanism weighs this disk's I/O: BFQ, or iocost where it was switched on."""
        device = need_device("io_weight", self.io_device)
        if (found := scheduler(device)) == "bfq":
            return "io.bfq.weight"
        try:
            costs = (self._mount / "io.cost.qos").read_text()
        except OSError:
            costs = ""
        if "enable=1" not in line_of_device(device)(costs).split():
            raise refuse_weight(device, found)
        return "io.weight"

    def usage(self) -> Usage:
        """From cpu.stat, memory.*, pids.current and io.stat."""
        cpu_us = _keyed(self.path / "cpu.stat").get("usage_usec")
        read, written = _io_bytes(self.path / "io.stat")
        return Usage(
            method=self.method,
            cpu_ns=None if cpu_us is None else cpu_us * 1000,
            memory_bytes=number(self.path / "memory.current"),
            memory_peak_bytes=number(self.path / "memory.peak"),
            pids=number(self.path / "pids.current"),
            io_read_bytes=read,
            io_write_bytes=written,
        )

    def set_frozen(self, frozen: bool, timeout_s: float = 5.0) -> None:
        """Write cgroup.freeze and wait for cgroup.events to say so; the kernel wakes pollers of that file."""
        wanted, deadline = int(frozen), monotonic() + timeout_s
        write(self.path / "cgroup.freeze", str(wanted))
        with (self.path / "cgroup.events").open() as events:
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            while _parse_keyed(events.read()).get("frozen") != wanted:
                left_s = deadline - monotonic()
                if left_s <= 0:
                    raise TareError(f"pause {self.id}", f"frozen is not {wanted} after {timeout_s:g} s")
                poller.poll(left_s * 1000)
                events.seek(0)

    def kill(self) -> None:
        """Through cgroup.kill (Linux 5.14), which misses no fork; one by one before that."""
        try:
            write(self.path / "cgroup.kill", "1")
        except OSError:
            super().kill()

    def remove(self, timeout_s: float = 5.0) -> None:
        """Remove the group, waiting for the kernel's word that the last process has left."""
        try:
            self._await_empty(monotonic() + timeout_s)
        except OSError as error:
            if not absent(error):
                raise
        super().remove(timeout_s)

    def _await_empty(self, deadline: float) -> None:
        with (self.path / "cgroup.events").open() as events:
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            while _parse_keyed(events.read()).get("populated") == 1 and monotonic() < deadline:
                self.kill()
                poller.poll(max(0.0, deadline - monotonic()) * 1000)
                events.seek(0)


def _parse_keyed(text: str) -> dict[str, int]:
    """A flat keyed file: one `name number` a line."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2}


def _keyed(path: Path) -> dict[str, int]:
    try:
        return _parse_keyed(path.read_text())
    except OSError:
        return {}


def _io_bytes(path: Path) -> tuple[int | None, int | None]:
    """Bytes read and written on all devices, from a nested keyed file; None where there is none."""
    try:
        words = path.read_text().split()
    except OSError:
        return None, None
    pairs = [word.split("=") for word in words if "=" in word]
    read, written = (sum(int(pair[1]) for pair in pairs if pair[0] == key) for key in ("rbytes", "wbytes"))
    return read, written
