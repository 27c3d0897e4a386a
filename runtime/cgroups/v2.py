"""A control group on cgroup v2, the unified hierarchy: its directory, its controllers and its processes.

Not what is written into the control files: that is `v2_controls`.
"""

from __future__ import annotations

import errno
import select
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import monotonic

from runtime.cgroups import filter as device_filter
from runtime.cgroups.cgroup import Cgroup, Rules, Wanted
from runtime.cgroups.controls import Batch, Names
from runtime.cgroups.files import absent, keyed, number, parse_keyed, write
from runtime.cgroups.resources import LIMIT_NAMES, need_device, of_limits
from runtime.cgroups.statistics import Statistics
from runtime.cgroups.threads import ThreadGroup
from runtime.cgroups.v2_controls import V2Controls, needed
from runtime.cgroups.v2_statistics import io, statistics
from runtime.errors import TareError
from runtime.instance import LimitReading, Usage
from runtime.record import replace
from runtime.spec import Limits

WANTED = ("cpuset", "io", "cpu", "memory", "pids")
"""Controllers enabled for the instances' groups, in this order, as far as the host offers them: the last it does."""


class V2Cgroup(Cgroup):
    """One instance's directory `<mount>/<parent>/<id>`."""

    method = "cgroup v2"

    def __init__(
        self,
        instance_id: str,
        mount: Path,
        *,
        parent: str = "tare",
        io_device: str | None = None,
        guard_devices: bool = False,
        wanted: Wanted | None = None,
    ) -> None:
        super().__init__(instance_id, io_device=io_device, wanted=wanted, guard_devices=guard_devices)
        self._mount = mount
        self._parent = mount / parent
        self.path = self._parent / instance_id
        self.guards_devices = self._rules is not None and device_filter.usable()

    def directories(self) -> tuple[Path, ...]:
        """The one directory."""
        return (self.path,)

    def join_files(self) -> tuple[Path, ...]:
        """None: a process is born inside, see `clone_into()`."""
        return ()

    def thread_group(self, name: str, cpus: float) -> ThreadGroup:
        """A threaded group, of which this one becomes the root."""
        return ThreadGroup(self.path / name, cpus, mount=self._mount)

    def clone_into(self) -> Path:
        """The group's directory."""
        return self.path

    def mounts_inside(self) -> tuple[tuple[str, str], ...]:
        """The hierarchy itself, at /sys/fs/cgroup."""
        return (("", ""),)

    def _make(self) -> None:
        """The directory; the first since boot makes those above and hands the controllers down to it.

        That may be half done, by a process at it right now or one that died: who sees it completes it.
        """
        try:
            self.path.mkdir(0o755)
        except FileNotFoundError:
            self._parent.mkdir(0o755, parents=True, exist_ok=True)
            self.path.mkdir(0o755, exist_ok=True)
        if not (self.path / f"{WANTED[-1]}.max").exists():
            hand_down(self._mount, self.path, WANTED)
        if self._wanted is not None:
            self._enable(self._wanted)

    def _enable(self, wanted: Wanted) -> None:
        """Hand down controllers that few ask for; enabling one more is possible while the groups are in use."""
        extra = () if isinstance(wanted, Limits) else tuple(needed(wanted))
        if extra:
            hand_down(self._mount, self.path, extra)

    def _locate(self, name: str, file: str) -> Path:
        return self.path / file

    def _batches(self, wanted: Wanted) -> Iterator[Batch]:
        names = LIMIT_NAMES if isinstance(wanted, Limits) else {}
        controls = V2Controls(self._locate, self._mount, self.io_device, Names(names))
        if not isinstance(wanted, Limits):
            yield from controls.batches(wanted)
            return
        # The weight as it stands: OCI's scale is another.
        yield from controls.batches(of_limits(replace(wanted, io_weight=None), self.io_device))
        if wanted.io_weight is not None:
            need_device("io_weight", self.io_device)
            yield from controls.limits_weight(wanted.io_weight)

    def check_devices(self, rules: Rules) -> None:
        """Rules become a program, which the kernel must take."""
        device_filter.compile_rules(rules)
        if not device_filter.usable():
            raise TareError("limit devices", "this kernel takes no eBPF program for a group from us", "leave it out")

    def _confine(self, rules: Rules) -> None:
        try:
            device_filter.attach(self.path, rules)
        except OSError as error:
            raise TareError("limit devices", f"{self.path}: {error.strerror}", "leave it out") from error

    def _devices_reading(self, rules: Rules) -> LimitReading:
        return device_filter.reading(self.path, rules)

    def usage(self) -> Usage:
        """From cpu.stat, memory.*, pids.current and io.stat."""
        cpu_us = keyed(self.path / "cpu.stat").get("usage_usec")
        counted, devices = (self.path / "io.stat").exists(), io(self.path / "io.stat")
        return Usage(
            method=self.method,
            cpu_ns=None if cpu_us is None else cpu_us * 1000,
            memory_bytes=number(self.path / "memory.current"),
            memory_peak_bytes=number(self.path / "memory.peak"),
            pids=number(self.path / "pids.current"),
            io_read_bytes=sum(device.read_bytes or 0 for device in devices) if counted else None,
            io_write_bytes=sum(device.write_bytes or 0 for device in devices) if counted else None,
        )

    def statistics(self) -> Statistics:
        """From every control file that counts."""
        return statistics(self.method, self.path)

    def set_frozen(self, frozen: bool, timeout_s: float = 5.0) -> None:
        """Write cgroup.freeze and wait for cgroup.events to say so; the kernel wakes pollers of that file."""
        wanted, deadline = int(frozen), monotonic() + timeout_s
        write(self.path / "cgroup.freeze", str(wanted))
        with (self.path / "cgroup.events").open() as events:
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            while parse_keyed(events.read()).get("frozen") != wanted:
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
            while parse_keyed(events.read()).get("populated") == 1 and monotonic() < deadline:
                self.kill()
                poller.poll(max(0.0, deadline - monotonic()) * 1000)
                events.seek(0)


def hand_down(mount: Path, group: Path, controllers: Sequence[str]) -> None:
    """Enable `controllers`, as far as each level has them, from the mount point down to the parent of `group`.

    They are in use when this returns. Raises TareError where a group on the way holds processes, which then may not
    have limited groups below it.
    """
    for directory in reversed([path for path in group.parents if path == mount or mount in path.parents]):
        offered = (directory / "cgroup.controllers").read_text().split()
        enabled = (directory / "cgroup.subtree_control").read_text().split()
        for name in controllers:
            # The kernel says so while it still makes the files, if somebody else asked; only a write waits for that.
            if name not in offered or (name in enabled and directory != group.parent):
                continue
            try:
                write(directory / "cgroup.subtree_control", f"+{name}")
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                raise TareError(
                    f"cgroup {group}", f"{directory} holds processes of its own", "choose another parent"
                ) from error
