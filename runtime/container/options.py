"""What a user may say about a container, as values: the words of `docker run`, names and paths of the host resolved.

Not what becomes of it (`defaults`), nor how it is written on a command line (`runtime.commands`).
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.cgroups.resources import DeviceRule, Resources
from runtime.container.config import ConsoleSize, Device, MountPoint, Rlimit, Seccomp, TimeOffset
from runtime.linux import capabilities
from runtime.record import field, record

SHM_BYTES = 64 << 20
PRIVATE = "private"
HOST = "host"


@record
class DeviceGrant:
    """A device node of the host to have inside, and what may be done with it: letters of rwm."""

    device: Device
    access: str = "rwm"


@record
class IdRange:
    """The ids of a user namespace: `size` from 0 inside are those from `host_id` outside."""

    host_id: int
    size: int = 65536


@record
class Options:
    """Everything that `docker run` can say about a container. Empty and None are "not said".

    Namespaces (`network`, `pid`, `ipc`, `uts`, `cgroupns`) are PRIVATE, HOST or the path of one to join. `env` words
    without "=" take a variable of the image away. `entrypoint` ("",) takes the image's away. "All" capabilities are
    those up to `last_capability`, the kernel's, or `held_capabilities`, the runtime's own.
    """

    argv: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str | None = None
    user: str | None = None
    groups: tuple[str, ...] = ()
    umask: int | None = None
    tty: bool = False
    console_size: ConsoleSize | None = None

    container_id: str = ""
    hostname: str | None = None
    domainname: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    privileged: bool = False
    seccomp: Seccomp | None = None
    seccomp_unconfined: bool = False
    no_new_privileges: bool = False
    rlimits: tuple[Rlimit, ...] = ()
    oom_score_adj: int | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None

    rootfs: str = "rootfs"
    read_only: bool = False
    mounts: tuple[MountPoint, ...] = ()
    shm_bytes: int = SHM_BYTES
    shm_source: str | None = None
    rootfs_propagation: str | None = None

    devices: tuple[DeviceGrant, ...] = ()
    device_rules: tuple[DeviceRule, ...] = ()
    host_devices: tuple[Device, ...] = ()
    resources: Resources = field(default_factory=Resources)
    cgroups_path: str | None = None

    network: str = PRIVATE
    pid: str = PRIVATE
    ipc: str = PRIVATE
    uts: str = PRIVATE
    cgroupns: str = PRIVATE
    id_range: IdRange | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict)
    time_offsets: Mapping[str, TimeOffset] = field(default_factory=dict)

    last_capability: int = len(capabilities.NUMBERS) - 1
    held_capabilities: tuple[str, ...] | None = None

    @property
    def every_capability(self) -> tuple[str, ...]:
        """What `--privileged` and `--cap-add ALL` give."""
        everything = capabilities.everything(self.last_capability)
        if self.held_capabilities is None:
            return everything
        return tuple(name for name in everything if name in self.held_capabilities)

    @property
    def host_name(self) -> str | None:
        """The name inside; Docker's default is the head of the container's id. None where the host's stays."""
        return None if self.uts != PRIVATE else self.hostname or self.container_id[:12] or None
