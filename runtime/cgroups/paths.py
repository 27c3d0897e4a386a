"""Where in a hierarchy a group lies: what callers write, as a path below the mount point.

Nothing here needs or asks systemd; its `slice:prefix:name` is only one more way to spell a path.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from runtime.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

PARENT: Final = "tare"
"""Where groups lie that nobody asked to have elsewhere."""

_FIELD: Final = "linux.cgroupsPath"


def path_of(cgroups_path: str | None, container_id: str, *, systemd: bool = False) -> PurePosixPath:
    """The group of a container below each mount point: `docker/ID`. Its `parent` and `name` suit `open_cgroup`.

    `cgroups_path` is the OCI `linux.cgroupsPath`: a path, which begins at the mount point whether or not it has a
    slash in front; `slice:prefix:name`, as systemd would lay it out, and nothing else where `systemd` says so;
    empty, our own parent and the container's id. Raises UsageError for what leaves the hierarchy or names its root.
    """
    if not cgroups_path:
        return PurePosixPath(PARENT, container_id)
    if systemd or (cgroups_path.count(":") == 2 and "/" not in cgroups_path):
        return _of_systemd(cgroups_path)
    path = PurePosixPath(cgroups_path)
    return inside(path.relative_to("/") if path.is_absolute() else path, cgroups_path)


def inside(path: PurePosixPath, said: str, field: str = _FIELD) -> PurePosixPath:
    """`path` if it stays below the mount point. Raises UsageError otherwise, quoting what was `said` in `field`."""
    if not path.parts or path.is_absolute() or ".." in path.parts or "\n" in said or "\0" in said:
        raise UsageError(field, f"{said!r} is not a path inside the hierarchy", "write it like /parent/name")
    return path


def _of_systemd(said: str) -> PurePosixPath:
    """`a-b.slice:docker:x` → `a.slice/a-b.slice/docker-x.scope` (systemd.slice(5), systemd.scope(5))."""
    slice_name, prefix, name = said.split(":") if said.count(":") == 2 else ("", "", "")
    if not name or "/" in said:
        raise UsageError(_FIELD, f"{said!r} is not slice:prefix:name", "write it like system.slice:docker:NAME")
    unit = name if name.endswith(".slice") else f"{prefix}-{name}.scope" if prefix else f"{name}.scope"
    return inside(_slices(slice_name or "system.slice") / unit, said)


def _slices(name: str) -> PurePosixPath:
    stem = name.removesuffix(".slice")
    parts = stem.split("-")
    if stem == "-":  # the root slice
        return PurePosixPath()
    if stem == name or not all(parts):
        raise UsageError(_FIELD, f"{name!r} is not a slice", "write it like system.slice:docker:NAME")
    return PurePosixPath(*("-".join(parts[: count + 1]) + ".slice" for count in range(len(parts))))
