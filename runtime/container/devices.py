"""Device nodes of the host, for `--device` and `--privileged`: which there are and what they are.

Not which of them may be opened: that is the control group's filter, from `Resources.devices`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from runtime.container.config import Device
from runtime.container.options import DeviceGrant
from runtime.errors import UsageError

_NOT_DEVICES = frozenset({"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev", "console"})
_KINDS = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}


def grants(text: str) -> tuple[DeviceGrant, ...]:
    """What `--device PATH[:PATH_INSIDE][:rwm]` gives: a node, or all below a directory. Raises UsageError."""
    host, inside, access = _words(text)
    path = Path(host)
    try:
        is_directory = path.is_dir()
        found = tuple(_below(path, inside)) if is_directory else (_device(inside, path.stat()),)
    except OSError as error:
        raise UsageError(f"--device {text}", error.strerror or str(error), "give a device of the host") from error
    devices = tuple(device for device in found if device is not None)
    if not devices:
        raise UsageError(f"--device {text}", "not a device node", "give one, such as /dev/fuse")
    return tuple(DeviceGrant(device=device, access=access) for device in devices)


def host_devices(root: Path = Path("/dev")) -> tuple[Device, ...]:
    """Every node below /dev that a privileged container has too."""
    return tuple(_below(root, "/dev", _NOT_DEVICES))


def _words(text: str) -> tuple[str, str, str]:
    """The path, the path inside, the access. Two words are a path and either of the others, as in Docker."""
    host, *rest = text.split(":")
    access = rest.pop() if rest and rest[-1] and set(rest[-1]) <= set("rwm") else "rwm"
    inside = rest.pop() if rest else host
    if rest or not (host.startswith("/") and inside.startswith("/")):
        raise UsageError(f"--device {text}", "not a device", "use PATH[:PATH_INSIDE][:rwm] with absolute paths")
    return host, inside, access


def _below(directory: Path, inside: str, without: frozenset[str] = frozenset()) -> Iterator[Device]:
    with os.scandir(directory) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            target = f"{inside}/{entry.name}"
            if entry.name in without or entry.is_symlink():
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), target)
            elif device := _device(target, entry.stat(follow_symlinks=False)):
                yield device


def _device(inside: str, info: os.stat_result) -> Device | None:
    kind = _KINDS.get(stat.S_IFMT(info.st_mode))
    if kind is None:
        return None
    return Device(
        type=kind,
        path=inside,
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        file_mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
    )
