"""A control group on cgroup v1: one directory per hierarchy, all of the same name.

On a hybrid host a controller may be on the v2 mount beside them (hugetlb, mostly): then the group has a
directory there too. Not what is written into the control files: that is `v1_controls`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from runtime.cgroups import filter as device_filter
from runtime.cgroups.cgroup import Cgroup, Rules, Wanted
from runtime.cgroups.controls import Batch, Names
from runtime.cgroups.devices import USUAL, v1_lists, v1_shown, v1_sorted
from runtime.cgroups.files import members, number, pauses, whole, write
from runtime.cgroups.paths import PARENT
from runtime.cgroups.resources import LIMIT_NAMES, Resources, of_limits
from runtime.cgroups.statistics import Statistics
from runtime.cgroups.threads import ThreadGroup
from runtime.cgroups.v1_controls import V1Controls, needed
from runtime.cgroups.v1_devices import GUARDED, make_guarded, set_rules
from runtime.cgroups.v1_statistics import io, statistics
from runtime.cgroups.v2 import hand_down
from runtime.cgroups.v2_controls import V2Controls
from runtime.errors import TareError
from runtime.instance import LimitReading, Usage
from runtime.spec import Limits

ACCOUNTING = ("memory", "cpu", "cpuacct", "pids", "blkio", "freezer")
"""Controllers that are always joined: without them nothing could be read, frozen or found."""


class V1Cgroup(Cgroup):
    """One instance's directories `<mount>/<parent>/<id>` below the hierarchies `mounts` (controller → mount point).

    `unified` is the v2 mount of a hybrid host, with the controllers it offers.
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
        wanted: Wanted | None = None,
        unified: tuple[Path, Collection[str]] | None = None,
    ) -> None:
        super().__init__(instance_id, io_device=io_device, wanted=wanted, guard_devices=guard_devices)
        self._mounts = mounts
        self._place = f"{parent}/{instance_id}"
        self._paths: dict[Path, Path] = {}
        self._inherits = guard_devices and self._may_inherit(parent, wanted)
        if self._inherits:
            self._paths[mounts["devices"]] = self._guarded(mounts["devices"])
        self._all: tuple[Path, ...] | None = None
        self._places: list[str] = []
        self._unified = None if unified is None else unified[0]
        self._unified_controllers: Collection[str] = () if unified is None else unified[1]
        by_filter = "devices" not in mounts and self._unified is not None
        self.guards_devices = self._rules is not None and (
            "devices" in mounts or (by_filter and device_filter.usable())
        )
        joined = [
            *ACCOUNTING,
            *(("devices",) if self._rules is not None else ()),
            *(() if wanted is None else self._needed(wanted)),
        ]
        self._joined = [name for name in dict.fromkeys(joined) if name in mounts]
        self._on_unified = (self.guards_devices and by_filter) or self._needs_unified(joined)

    def _needed(self, wanted: Wanted) -> list[str]:
        if isinstance(wanted, Limits):
            return ["cpuset"] if wanted.cpuset is not None else []
        own = ["devices"] if wanted.devices is not None else []
        return [*own, *needed(wanted), *(key.partition(".")[0] for key in wanted.unified)]

    def _needs_unified(self, names: Iterable[str]) -> bool:
        return any(name in self._unified_controllers and name not in self._mounts for name in names)

    def _directory(self, controller: str) -> Path | None:
        """The group in the controller's hierarchy, joined or not."""
        mount = self._mounts.get(controller)
        return None if mount is None else self._below(mount)

    def _below(self, mount: Path) -> Path:
        """The group below a mount point. Kept, as joining paths is a good part of making a group."""
        found = self._paths.get(mount)
        if found is None:
            found = self._paths[mount] = mount / self._place
        return found

    def _may_inherit(self, parent: str, wanted: Wanted | None) -> bool:
        """Rules that somebody asks for may be changed to wider ones, so those are the group's own."""
        asked = isinstance(wanted, Resources) and wanted.devices is not None
        places = [str(mount) for mount in self._mounts.values()]  # paths are slow to compare
        return parent == PARENT and not asked and places.count(str(self._mounts.get("devices"))) == 1

    def _guarded(self, mount: Path) -> Path:
        return mount / PARENT / GUARDED / self.id

    def _unified_directory(self) -> Path | None:
        return None if self._unified is None else self._below(self._unified)

    def directories(self) -> tuple[Path, ...]:
        """One per hierarchy; controllers mounted together share a directory."""
        if self._all is None:
            paths = dict.fromkeys(self._below(self._mounts[name]) for name in self._joined)
            self._all = (*paths, *self._beside())
        return self._all

    def _beside(self) -> tuple[Path, ...]:
        path = self._unified_directory()
        return (path,) if self._on_unified and path is not None else ()

    def possible_directories(self) -> tuple[Path, ...]:
        """One in every hierarchy of the host: another handle of this group may have joined more of them."""
        return tuple(Path(place) for place in self._removable())

    def _removable(self) -> Sequence[str]:
        """As text: to make paths of them took as long as the kernel takes to remove most."""
        if self._places:
            return self._places
        mounts = {str(mount): None for mount in self._mounts.values()}
        devices = str(self._mounts["devices"]) if "devices" in self._mounts else None
        if self._unified is not None:
            mounts[str(self._unified)] = None
        places = [f"{mount}/{self._place}" for mount in mounts]
        if devices is not None and self._place == f"{PARENT}/{self.id}":
            places.append(f"{devices}/{PARENT}/{GUARDED}/{self.id}")
        self._places = places
        return places

    def join_files(self) -> tuple[Path, ...]:
        """The `tasks` files: a thread that writes 0 there moves itself without the global lock `cgroup.procs` takes."""
        joined = self.directories()
        beside = len(self._beside())
        return tuple(
            directory / ("cgroup.procs" if at >= len(joined) - beside else "tasks")
            for at, directory in enumerate(joined)
        )

    def thread_group(self, name: str, cpus: float) -> ThreadGroup:
        """In the hierarchy of the cpu controller."""
        return ThreadGroup(self._below(self._mounts["cpu"]) / name, cpus)

    def clone_into(self) -> None:
        """Never on v1."""

    def mounts_inside(self) -> tuple[tuple[str, str], ...]:
        """Each joined v1 hierarchy, under the name of its mount point."""
        names: dict[Path, list[str]] = {}
        for controller in self._joined:
            names.setdefault(self._mounts[controller], []).append(controller)
        return tuple((",".join(controllers), mount.name) for mount, controllers in names.items())

    def _make(self) -> None:
        """All directories, and those above them where this is the first instance since boot."""
        for directory in self.directories():
            self._make_one(directory)
        # Now, while a child comes to be, and not when it has ended and somebody waits.
        self._made = {str(directory) for directory in self.directories()}
        self._removable()

    def _make_one(self, directory: Path) -> None:
        try:
            os.mkdir(directory, 0o755)  # noqa: PTH102 - one of seven for each launch
        except FileNotFoundError:
            self._make_parents(directory)
            directory.mkdir(0o755, exist_ok=True)
        if self._unified is not None and directory is self._unified_directory():
            hand_down(self._unified, directory, tuple(self._unified_controllers))
        elif directory is self._directory("cpuset"):
            _feed(directory, self._mounts["cpuset"])

    def _make_parents(self, directory: Path) -> None:
        """A cpuset is useless until it has CPUs, and must not be seen before: it gets its name last."""
        if self._inherits and directory is self._directory("devices"):
            make_guarded(directory.parent)
            return
        if directory is not self._directory("cpuset"):
            directory.parent.mkdir(0o755, parents=True, exist_ok=True)
            return
        mount = self._mounts["cpuset"]
        for parent in reversed([path for path in directory.parents if mount in path.parents]):
            if parent.is_dir():
                continue
            with whole(parent) as partial:
                _feed(partial, mount)
                write(partial / "cgroup.clone_children", "1")

    def _locate(self, name: str, file: str) -> Path:
        controller = file.partition(".")[0]
        if (directory := self._directory(controller)) is not None:
            return directory / file
        unified = self._unified_directory()
        if unified is not None and controller in self._unified_controllers:
            return unified / file.replace(".limit_in_bytes", ".max")
        raise TareError(f"limit {name}", f"this host has no v1 controller {controller}", "leave it out")

    def _batches(self, wanted: Wanted) -> Iterator[Batch]:
        if isinstance(wanted, Limits):
            controls = V1Controls(self._locate, self.io_device, Names(LIMIT_NAMES))
            yield from controls.batches(of_limits(wanted, self.io_device))
            return
        yield from V1Controls(self._locate, self.io_device, Names()).batches(wanted)
        for key, value in wanted.unified.items():
            unified, controller = self._unified, key.partition(".")[0]
            if unified is None or controller not in self._unified_controllers or controller in self._mounts:
                raise TareError(
                    f"limit {key}", "that is cgroup v2's, which this host does not use for it", "leave it out"
                )
            yield from V2Controls(self._locate, unified, None, Names()).unified(key, value)

    def _enable(self, wanted: Wanted) -> None:
        """Make the directories that are missing and bring the processes in that the others have."""
        names = self._needed(wanted)
        self._on_unified = self._on_unified or self._needs_unified(names)
        self._joined += [name for name in names if name in self._mounts and name not in self._joined]
        self._all = None
        home, *others = self.directories()
        for directory in others:
            if not directory.is_dir() and home.is_dir():
                self._make_one(directory)
                _bring(home, directory)

    def check_devices(self, rules: Rules) -> None:
        """Rules need the controller, or a v2 mount beside whose groups take a filter."""
        if "devices" in self._mounts:
            v1_lists(rules)
        elif self._unified is None or not device_filter.usable():
            raise TareError("limit devices", "this host has no v1 controller devices", "leave it out")

    def _confine(self, rules: Rules) -> None:
        directory = self._directory("devices")
        if directory is None:
            beside = self._unified_directory()
            assert beside is not None
            device_filter.attach(beside, rules)
            return
        if not (self._inherits and rules is USUAL):
            set_rules(directory, rules)

    def _devices_reading(self, rules: Rules) -> LimitReading:
        directory = self._directory("devices")
        if directory is None:
            return device_filter.reading(self._unified_directory(), rules)
        asked, path = v1_shown(rules), directory / "devices.list"
        try:
            read = v1_sorted(path.read_text())
        except OSError as error:
            read = error.strerror or str(error)
        return LimitReading(name="devices", asked=asked, read=read, source=str(path), holds=asked == read)

    def usage(self) -> Usage:
        """From cpuacct, memory, pids and blkio (which on v1 sees reads and direct writes only)."""
        devices = io(self._directory("blkio"))
        directory = self._directory("blkio")
        counted = directory is not None and (directory / "blkio.throttle.io_service_bytes_recursive").exists()
        return Usage(
            method=self.method,
            cpu_ns=self._number("cpuacct.usage"),
            memory_bytes=self._number("memory.usage_in_bytes"),
            memory_peak_bytes=self._number("memory.max_usage_in_bytes"),
            pids=self._number("pids.current"),
            io_read_bytes=sum(device.read_bytes or 0 for device in devices) if counted else None,
            io_write_bytes=sum(device.write_bytes or 0 for device in devices) if counted else None,
        )

    def _number(self, name: str) -> int | None:
        directory = self._directory(name.partition(".")[0])
        return None if directory is None else number(directory / name)

    def statistics(self) -> Statistics:
        """From every hierarchy."""
        return statistics(self.method, self._directory, self._unified_directory())

    def set_frozen(self, frozen: bool, timeout_s: float = 5.0) -> None:
        """Through the freezer; v1 tells nobody when FREEZING has become FROZEN, so the state is read until it has."""
        directory = self._directory("freezer")
        if directory is None:
            raise TareError(f"pause {self.id}", "this host has no v1 controller freezer")
        state, wanted = directory / "freezer.state", "FROZEN" if frozen else "THAWED"
        write(state, wanted)
        for _ in pauses(monotonic() + timeout_s):
            if state.read_text().strip() == wanted:
                return
            # A task caught in an uninterruptible sleep is only tried again when the state is written again.
            write(state, wanted)
        raise TareError(f"pause {self.id}", f"not {wanted} after {timeout_s:g} s", f"look at {state}")


def _feed(directory: Path, mount: Path) -> None:
    """Give a cpuset the CPUs and memory nodes of the one above: no task may join one without.

    Whoever made those above may have left them without, too.
    """
    for name in ("cpuset.cpus", "cpuset.mems"):
        path = directory / name
        if path.exists() and not path.read_text().strip():
            if directory.parent != mount:
                _feed(directory.parent, mount)
            write(path, (directory.parent / name).read_text().strip())


def _bring(home: Path, directory: Path) -> None:
    """Move every process of `home` into `directory` too; again, until none has been forked meanwhile."""
    for _ in range(1000):
        missing = set(members(home)) - set(members(directory))
        if not missing:
            return
        for pid in missing:
            with suppress(ProcessLookupError):
                try:
                    write(directory / "cgroup.procs", str(pid))
                except OSError as error:
                    if error.errno != errno.ESRCH:
                        raise
