"""An `InstanceSpec` in a container's own terms: what every driver of containers makes of it, so that all run the same.

Not what a driver cannot do: it refuses that itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runtime.container.config import MountPoint
from runtime.container.options import HOST, PRIVATE, Options
from runtime.errors import TareError
from runtime.network import names
from runtime.spec import InstanceSpec, Mount, MountKind, NetworkMode


def check_mounts(spec: InstanceSpec) -> None:
    """Named volumes belong to `tare run`; what else is asked for must exist. Raises TareError."""
    for mount in spec.mounts:
        if mount.kind is MountKind.VOLUME:
            raise TareError(f"volume {mount.source}", "this driver binds host paths only", "use -v /PATH:/DST")
        if mount.kind is MountKind.BIND and not Path(mount.source).exists():
            raise TareError(f"mount {mount.source}", "no such path on the host", "create it first")


def options_for(spec: InstanceSpec, argv: Sequence[str]) -> Options:
    """The container of `spec` that runs `argv`, its limits left out."""
    return Options(
        argv=tuple(argv),
        entrypoint=(),
        env=tuple(f"{key}={value}" for key, value in spec.env),
        network=HOST if spec.network.mode is NetworkMode.HOST else PRIVATE,
        mounts=tuple(_mount(mount) for mount in spec.mounts),
        no_new_privileges=True,
    )


def files_for(spec: InstanceSpec, hostname: str, address: str | None = None) -> list[tuple[str, str]]:
    """Names: the instance's own without a network, the host's with the host's."""
    mode = spec.network.mode
    files = [("/etc/hostname", f"{hostname}\n")]
    if mode is NetworkMode.HOST:
        found = (Path("/etc") / name for name in ("hosts", "resolv.conf"))
        return files + [(str(path), path.read_text()) for path in found if path.exists()]
    files.append(("/etc/hosts", names.hosts_file(hostname, address)))
    if mode is not NetworkMode.NONE:
        files.append(("/etc/resolv.conf", names.resolv_conf(names.host_resolv_conf())))
    return files


def _mount(mount: Mount) -> MountPoint:
    access = "ro" if mount.read_only else "rw"
    if mount.kind is MountKind.TMPFS:
        return MountPoint(
            destination=mount.target, type="tmpfs", source="tmpfs", options=("nosuid", "nodev", "mode=1777", access)
        )
    source = str(Path(mount.source).resolve())
    return MountPoint(destination=mount.target, type="bind", source=source, options=("rbind", access))
