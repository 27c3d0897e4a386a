"""The control group that a bundle's configuration asks for: its place, its limits, how the container sees it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import detect
from runtime.cgroups.devices import USUAL
from runtime.cgroups.paths import path_of
from runtime.cgroups.resources import Resources
from runtime.container.config import Config
from runtime.errors import TareError


def cgroup_path(path: str | None, container_id: str, *, systemd: bool) -> tuple[str, str]:
    """(name, parent) of the control group that `linux.cgroupsPath` asks for. Raises UsageError."""
    place = path_of(path, container_id, systemd=systemd)
    return place.name, "" if place.parent == PurePosixPath() else str(place.parent)


def limits(config: Config) -> Resources:
    """What the group is asked for: every container may use the devices that the runtime itself puts into it."""
    resources = config.linux.resources
    if resources.devices is None:
        return resources
    return dataclasses.replace(resources, devices=(*resources.devices, *USUAL[1:]))


def make_cgroup(group: Cgroup, resources: Resources) -> None:
    """Make and limit the container's group. Raises TareError when somebody lives in it already."""
    if group.exists() and group.pids():
        raise TareError("cgroup", f"{group.id} is in use: {len(group.pids())} processes are in it", "choose another")
    group.create()
    group.apply(resources)


def join_files(group: Cgroup, directories: Sequence[str]) -> tuple[Path, ...]:
    """What a further process of the container writes to: in `directories`, a group may have joined more since."""
    files = group.join_files()
    others = (Path(directory) / "tasks" for directory in directories)
    return (*files, *(path for path in others if path not in files and path.exists()))


def own_directories(group: Cgroup) -> tuple[tuple[str, str], ...]:
    """The group's directory in each v1 hierarchy, and the name of that hierarchy's mount point."""
    mounts = set(detect().v1.values())
    return tuple(
        (str(directory), mount.name)
        for directory in group.directories()
        for mount in mounts
        if directory.is_relative_to(mount)
    )


def freezer_file(group: Cgroup) -> str | None:
    """The control file that tells whether the group is frozen."""
    paths = (directory / name for directory in group.directories() for name in ("freezer.state", "cgroup.freeze"))
    return next((str(path) for path in paths if path.exists()), None)
