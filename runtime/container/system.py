"""The mounts and the hidden paths of Docker's default container, and how a user's mounts stand among them."""

from __future__ import annotations

import posixpath

from runtime.container.config import MountPoint
from runtime.container.options import HOST, PRIVATE, Options
from runtime.record import replace

MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
_QUIET = ("nosuid", "noexec", "nodev")


def mounts(options: Options) -> tuple[MountPoint, ...]:
    """The system's own, but for what is replaced, then what is asked for, outer places first."""
    asked = {posixpath.normpath(mount.destination): mount for mount in options.mounts}
    system = [
        _with_read_only(mount, options)
        for mount in _system_mounts(options)
        if mount.destination not in asked and asked.keys().isdisjoint(_above(mount.destination))
    ]
    return (*system, *(asked[place] for place in sorted(asked, key=lambda place: (place.count("/"), place))))


def _above(place: str) -> tuple[str, ...]:
    """The directories that a place lies in: what is asked for there brings its own below, or nothing."""
    words = place.split("/")[1:-1]
    return tuple("/" + "/".join(words[:count]) for count in range(1, len(words) + 1))


def _with_read_only(mount: MountPoint, options: Options) -> MountPoint:
    """A privileged container may change /sys; its control groups too."""
    if options.privileged and mount.destination in ("/sys", "/sys/fs/cgroup"):
        return replace(mount, options=tuple(option for option in mount.options if option != "ro"))
    return mount


def _system_mounts(options: Options) -> list[MountPoint]:
    return [
        MountPoint(destination="/proc", type="proc", source="proc", options=_QUIET),
        MountPoint(
            destination="/dev",
            type="tmpfs",
            source="tmpfs",
            options=("nosuid", "strictatime", "mode=755", "size=65536k"),
        ),
        MountPoint(
            destination="/dev/pts",
            type="devpts",
            source="devpts",
            options=("nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
        ),
        _sys(options),
        MountPoint(destination="/sys/fs/cgroup", type="cgroup", source="cgroup", options=("ro", *_QUIET, "relatime")),
        # A shared namespace's queues are the same ones, mounted again; where that is not allowed, the host's mount.
        _bound("/dev/mqueue")
        if options.ipc == HOST and options.id_range is not None
        else MountPoint(destination="/dev/mqueue", type="mqueue", source="mqueue", options=_QUIET),
        _shm(options),
    ]


def _sys(options: Options) -> MountPoint:
    if options.id_range is not None and options.network != PRIVATE:
        # sysfs shows a network namespace, and a user namespace may not mount one that is not its own.
        return MountPoint(destination="/sys", type="bind", source="/sys", options=("rbind", "ro", *_QUIET))
    return MountPoint(destination="/sys", type="sysfs", source="sysfs", options=(*_QUIET, "ro"))


def _shm(options: Options) -> MountPoint:
    if options.ipc == HOST or options.shm_source is not None:
        return _bound("/dev/shm", options.shm_source)  # noqa: S108
    size = f"size={options.shm_bytes}"
    return MountPoint(destination="/dev/shm", type="tmpfs", source="shm", options=(*_QUIET, "mode=1777", size))  # noqa: S108


def _bound(destination: str, source: str | None = None) -> MountPoint:
    return MountPoint(
        destination=destination,
        type="bind",
        source=source or destination,
        options=("rbind", "nosuid", "noexec", "nodev", "rprivate"),
    )
