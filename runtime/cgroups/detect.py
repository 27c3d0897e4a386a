"""Which controller of this host is where, and the right kind of `Cgroup` for it.

A host is unified (all on v2), legacy (all on v1) or hybrid: v1 hierarchies with a v2 mount beside
them that carries few controllers or none. What decides is where cpu, memory and pids really are.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

from runtime.cgroups.cgroup import Cgroup, Wanted
from runtime.cgroups.paths import PARENT, inside
from runtime.cgroups.v1 import V1Cgroup
from runtime.cgroups.v2 import V2Cgroup
from runtime.errors import TareError
from runtime.record import field, ordered_record

NEEDED = ("cpu", "memory", "pids")


@ordered_record
class Hierarchies:
    """Mount points: of each v1 controller, of the v2 hierarchy (if mounted), and the controllers v2 offers."""

    v1: Mapping[str, Path] = field(default_factory=dict)
    v2: Path | None = None
    v2_controllers: frozenset[str] = frozenset()

    @property
    def mode(self) -> str:
        """`v2`, `v1`, `hybrid` or `none`."""
        if self.v2 is not None and self.v1:
            return "hybrid"
        return "v2" if self.v2 is not None else "v1" if self.v1 else "none"


def detect(mountinfo: Path = Path("/proc/self/mountinfo")) -> Hierarchies:
    """Read the hierarchies from `mountinfo` (proc_pid_mountinfo(5)); the first mount of each counts."""
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        point = Path(left.split()[4].replace("\\040", " "))
        if kind == "cgroup2" and v2 is None:
            v2 = point
        elif kind == "cgroup":
            for word in options.split(","):
                v1.setdefault(word, point)
    offered: frozenset[str] = frozenset()
    if v2 is not None and (v2 / "cgroup.controllers").exists():
        offered = frozenset((v2 / "cgroup.controllers").read_text().split())
    return Hierarchies(v1, v2, offered)


def open_cgroup(
    instance_id: str,
    wanted: Wanted | None = None,
    *,
    io_path: Path | None = None,
    guard_devices: bool = False,
    hierarchies: Hierarchies | None = None,
    parent: str = PARENT,
) -> Cgroup:
    """The group `<hierarchy>/<parent>/<instance_id>`, not yet made. `parent` may be nested: `user.slice/x`.

    `wanted` tells which optional controllers it needs; `io_path` lies on the device that I/O limits
    are for; `guard_devices` confines device nodes to the usual ones (for containers), unless `wanted` has rules
    of its own. Typical use, by any driver: `create()`, `apply(wanted)`, `add_pid(pid)` (or be born inside),
    `usage()`, `readings(wanted)`, `remove()`. Raises TareError when the host has no usable hierarchy, UsageError
    for a parent outside it.
    """
    found = hierarchies or detect()
    device = None if io_path is None else io_device(io_path)
    place = "" if parent in ("", ".") else str(inside(PurePosixPath(parent.lstrip("/")), parent, "cgroup parent"))
    if found.v2 is not None and found.v2_controllers.issuperset(NEEDED):
        return V2Cgroup(
            instance_id, found.v2, parent=place, io_device=device, guard_devices=guard_devices, wanted=wanted
        )
    missing = [name for name in NEEDED if name not in found.v1]
    if missing:
        raise TareError("cgroups", f"no hierarchy offers {', '.join(missing)}", "mount cgroup2 at /sys/fs/cgroup")
    return V1Cgroup(
        instance_id,
        found.v1,
        parent=place,
        io_device=device,
        guard_devices=guard_devices,
        wanted=wanted,
        unified=None if found.v2 is None else (found.v2, found.v2_controllers),
    )


def io_device(path: Path, *, mountinfo: Path = Path("/proc/self/mountinfo"), sys: Path = Path("/sys")) -> str | None:
    """`MAJOR:MINOR` of the whole disk below the file system of `path`; None when that is on no disk.

    A partition counts as its disk, the only thing that block I/O controllers know. A file system
    with a device number of its own making (btrfs) is looked up by its mount's source.
    """
    number = path.stat().st_dev
    major, minor = os.major(number), os.minor(number)
    node = sys / f"dev/block/{major}:{minor}"
    if not node.exists():
        source = _mount_source(f"{major}:{minor}", mountinfo)
        if source is None or not source.is_block_device():
            return None
        number = source.stat().st_rdev
        node = sys / f"dev/block/{os.major(number)}:{os.minor(number)}"
    node = node.resolve()
    if (node / "partition").exists():
        node = node.parent
    try:
        return (node / "dev").read_text().strip()
    except FileNotFoundError:
        return None


def _mount_source(device: str, mountinfo: Path) -> Path | None:
    for line in mountinfo.read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == device:
            return Path(right.split()[1])
    return None
