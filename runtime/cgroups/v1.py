"""A control group on cgroup v1: one directory per hierarchy, all of the same name.

Control files: Documentation/admin-guide/cgroup-v1/ in the kernel's source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from time import monotonic

from runtime.cgroups.cgroup import (
    PERIOD_US,
    Cgroup,
    cpu_list,
    limit,
    line_of_device,
    need_device,
    number,
    pauses,
    reading,
    refuse_weight,
    scheduler,
    whole_pages,
    write,
)
from runtime.errors import TareError
from runtime.instance import LimitReading, Usage
from runtime.spec import Limits

ACCOUNTING = ("memory", "cpu", "cpuacct", "pids", "blkio", "freezer")
"""Controllers that are always joined: without them nothing could be read, frozen or found."""

DEVICES = "c *:* m,b *:* m,c 1:3 rwm,c 1:5 rwm,c 1:7 rwm,c 1:8 rwm,c 1:9 rwm,c 5:0 rwm,c 5:1 rwm,c 5:2 rwm,c 136:* rwm"
"""What a container may open: null, zero, full, random, urandom, tty, console, ptmx, its terminals. All may be made."""


def cpu_shares(weight: int) -> int:
    """`cpu.shares` for a v2 weight: the kernel's own relation, 100 ↔ 1024 (sched_weight_from_cgroup, kernel/sched)."""
    return max(2, round(weight * 1024 / 100))


def bfq_weight(weight: int) -> int:
    """A weight of 1–10000 on BFQ's scale of 1–1000, the default 100 kept (as io.weight does, block/bfq-cgroup.c)."""
    return min(1000, max(1, weight))


class V1Cgroup(Cgroup):
    """One instance's directories below the hierarchies `mounts` (controller → mount point).

    `guard_devices` confines the instance to the usual device nodes; a VM's QEMU needs others.
    """

    method = "cgroup v1"

    def __init__(
        self,
        instance_id: str,
        mounts: Mapping[str, Path],
        *,
        parent: str = "tare",
        io_device: str | None = None,
        guard_devices: bool = False,
        limits: Limits | None = None,
    ) -> None:
        super().__init__(instance_id, io_device)
        wanted = (
            *ACCOUNTING,
            *(("devices",) if guard_devices else ()),
            *(("cpuset",) if limits is not None and limits.cpuset is not None else ()),
        )
        self._mounts = {name: mounts[name] for name in wanted if name in mounts}
        self._parents = {name: mount / parent for name, mount in self._mounts.items()}
        self._paths = {name: path / instance_id for name, path in self._parents.items()}
        self.guards_devices = "devices" in self._paths
        # Controllers mounted together share a directory.
        self._directories = tuple(dict.fromkeys(self._paths.values()))
        self._possible = tuple(dict.fromkeys(mount / parent / instance_id for mount in mounts.values()))

    def directories(self) -> tuple[Path, ...]:
        """One per hierarchy."""
        return self._directories

    def possible_directories(self) -> tuple[Path, ...]:
        """One in every hierarchy of the host: another handle of this group may have joined more of them."""
        return self._possible

    def join_files(self) -> tuple[Path, ...]:
        """The `tasks` files: a thread that writes 0 there moves itself without the global lock `cgroup.procs` takes."""
        return tuple(directory / "tasks" for directory in self._directories)

    def clone_into(self) -> None:
        """Never on v1."""

    def mounts_inside(self) -> tuple[tuple[str, str], ...]:
        """Each joined hierarchy, under the name of its mount point."""
        names: dict[Path, list[str]] = {}
        for controller, mount in self._mounts.items():
            names.setdefault(mount, []).append(controller)
        return tuple((",".join(controllers), mount.name) for mount, controllers in names.items())

    def create(self) -> None:
        """Make all directories, and their common parents where this is the first instance since boot."""
        for directory in self._directories:
            try:
                directory.mkdir()
            except FileNotFoundError:
                self._create_parents()
                directory.mkdir(exist_ok=True)

    def _create_parents(self) -> None:
        """Each under another name first: nobody may find a parent that does not guard or feed its children yet."""
        for name, parent in self._parents.items():
            partial = parent.with_name(f"{parent.name}-{os.getpid()}")
            if parent.is_dir():
                continue
            partial.mkdir(exist_ok=True)
            if name == "devices":
                _guard(partial)
            elif name == "cpuset":
                _feed(partial)
            try:
                partial.rename(parent)
            except OSError:  # somebody else was faster
                partial.rmdir()

    def _file(self, limit_name: str, name: str) -> Path:
        controller = name.partition(".")[0]
        if controller not in self._paths:
            raise TareError(f"limit {limit_name}", f"this host has no v1 controller {controller}", "leave it out")
        return self._paths[controller] / name

    def apply(self, limits: Limits) -> None:
        """Write every limit; memory before memory+swap, which may never be the smaller one."""
        for name, file, value, _ in self._controls(limits):
            limit(name, file, value)

    def readings(self, limits: Limits) -> tuple[LimitReading, ...]:
        """Each control file read back, as one reading a file."""
        return tuple(
            reading(name, shown, file, line_of_device(self.io_device) if file.name.endswith("_device") else str.strip)
            for name, file, _, shown in self._controls(limits)
        )

    def _controls(self, limits: Limits) -> Iterator[tuple[str, Path, str, str]]:
        """(limit, file, value to write, what the file shows when it holds), in the order of writing."""

        def plain(name: str, file: str, value: str) -> tuple[str, Path, str, str]:
            return name, self._file(name, file), value, value

        if limits.cpuset is not None:
            yield plain("cpuset", "cpuset.cpus", cpu_list(limits.cpuset))
        if limits.cpus is not None:
            yield plain("cpus", "cpu.cfs_period_us", str(PERIOD_US))
            yield plain("cpus", "cpu.cfs_quota_us", str(round(limits.cpus * PERIOD_US)))
        if limits.cpu_weight is not None:
            yield plain("cpu_weight", "cpu.shares", str(cpu_shares(limits.cpu_weight)))
        if limits.memory_bytes is not None:
            yield plain("memory_bytes", "memory.limit_in_bytes", whole_pages(limits.memory_bytes))
            if limits.swap_bytes is not None:
                both = limits.memory_bytes + limits.swap_bytes
                yield plain("swap_bytes", "memory.memsw.limit_in_bytes", whole_pages(both))
        if limits.memory_low_bytes is not None:
            yield plain("memory_low_bytes", "memory.soft_limit_in_bytes", whole_pages(limits.memory_low_bytes))
        if limits.pids is not None:
            yield plain("pids", "pids.max", str(limits.pids))
        yield from self._io_controls(limits)

    def _io_controls(self, limits: Limits) -> Iterator[tuple[str, Path, str, str]]:
        for name, file in (("io_read_bps", "read_bps_device"), ("io_write_bps", "write_bps_device")):
            value = getattr(limits, name)
            if value is not None:
                line = f"{need_device(name, self.io_device)} {value}"
                yield name, self._file(name, f"blkio.throttle.{file}"), line, str(value)
        if limits.io_weight is not None:
            device = need_device("io_weight", self.io_device)
            if (found := scheduler(device)) != "bfq":
                raise refuse_weight(device, found)
            weight = str(bfq_weight(limits.io_weight))
            yield "io_weight", self._file("io_weight", "blkio.bfq.weight"), weight, weight

    def usage(self) -> Usage:
        """From cpuacct, memory, pids and blkio (which on v1 sees reads and direct writes only)."""
        read, written = self._io_bytes()
        return Usage(
            method=self.method,
            cpu_ns=self._number("cpuacct.usage"),
            memory_bytes=self._number("memory.usage_in_bytes"),
            memory_peak_bytes=self._number("memory.max_usage_in_bytes"),
            pids=self._number("pids.current"),
            io_read_bytes=read,
            io_write_bytes=written,
        )

    def _number(self, name: str) -> int | None:
        directory = self._paths.get(name.partition(".")[0])
        return None if directory is None else number(directory / name)

    def _io_bytes(self) -> tuple[int | None, int | None]:
        if "blkio" not in self._paths:
            return None, None
        try:
            text = (self._paths["blkio"] / "blkio.throttle.io_service_bytes_recursive").read_text()
        except OSError:
            return None, None
        rows = [line.split() for line in text.splitlines()]
        read, written = (
            sum(int(row[2]) for row in rows if len(row) == 3 and row[1] == way) for way in ("Read", "Write")
        )
        return read, written

    def set_frozen(self, frozen: bool, timeout_s: float = 5.0) -> None:
        """Through the freezer; v1 tells nobody when FREEZING has become FROZEN, so the state is read until it has."""
        if "freezer" not in self._paths:
            raise TareError(f"pause {self.id}", "this host has no v1 controller freezer")
        state, wanted = self._paths["freezer"] / "freezer.state", "FROZEN" if frozen else "THAWED"
        write(state, wanted)
        for _ in pauses(monotonic() + timeout_s):
            if state.read_text().strip() == wanted:
                return
            # A task caught in an uninterruptible sleep is only tried again when the state is written again.
            write(state, wanted)
        raise TareError(f"pause {self.id}", f"not {wanted} after {timeout_s:g} s", f"look at {state}")


def _feed(parent: Path) -> None:
    """Let cpusets below `parent` be born with its CPUs and memory nodes: no task may join one without."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        write(parent / name, (parent.parent / name).read_text().strip())
    write(parent / "cgroup.clone_children", "1")


def _guard(parent: Path) -> None:
    """Confine `parent`, and by inheritance every group below it, to the usual device nodes."""
    write(parent / "devices.deny", "a")
    for rule in DEVICES.split(","):
        write(parent / "devices.allow", rule)
