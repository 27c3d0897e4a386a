"""The OCI runtime configuration, the one form in which a container is described: images, flags and bundles become it.

Frozen values with the specification's names in snake case (runtime-spec 1.2, config.md and config-linux.md); a field
whose JSON name is not simply its camel case carries it in its metadata. Not what to do with it: that is `plan`.
"""

from __future__ import annotations

from collections.abc import Mapping

from runtime.cgroups.resources import Resources
from runtime.linux.profile import Seccomp as Seccomp  # noqa: PLC0414 - a part of Config, to be had from here
from runtime.linux.profile import SyscallArgument as SyscallArgument  # noqa: PLC0414
from runtime.linux.profile import SyscallRule as SyscallRule  # noqa: PLC0414
from runtime.record import field, record


@record
class ConsoleSize:
    """In characters."""

    height: int
    width: int


@record
class User:
    """Numbers inside the container. `umask` None is 022."""

    uid: int = 0
    gid: int = 0
    umask: int | None = None
    additional_gids: tuple[int, ...] = ()


@record
class Capabilities:
    """Names as in the kernel's headers, `CAP_…`."""

    bounding: tuple[str, ...] = ()
    effective: tuple[str, ...] = ()
    inheritable: tuple[str, ...] = ()
    permitted: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()


@record
class Rlimit:
    """`type` is a name such as RLIMIT_NOFILE."""

    type: str
    soft: int
    hard: int


@record
class IoPriority:
    """As in ioprio_set(2); `cls` is IOPRIO_CLASS_RT, IOPRIO_CLASS_BE or IOPRIO_CLASS_IDLE."""

    cls: str = field(metadata={"name": "class"})
    priority: int = 0


@record
class Process:
    """What runs: `cwd` is absolute, `env` are NAME=VALUE words. `capabilities` None leaves the runtime's own."""

    args: tuple[str, ...] = ()
    cwd: str = "/"
    env: tuple[str, ...] = ()
    terminal: bool = False
    console_size: ConsoleSize | None = None
    user: User = field(default_factory=User)
    capabilities: Capabilities | None = None
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    io_priority: IoPriority | None = None
    apparmor_profile: str | None = None
    selinux_label: str | None = None


@record
class Root:
    """The root file system: a directory, absolute or relative to the bundle."""

    path: str
    readonly: bool = False


@record
class IdMapping:
    """`size` ids from `container_id` inside are those from `host_id` outside."""

    container_id: int = field(metadata={"name": "containerID"})
    host_id: int = field(metadata={"name": "hostID"})
    size: int


@record
class MountPoint:
    """One mount, as in fstab(5): options are the words of mount(8): `bind`, `ro`, `rprivate`, `size=64m` and so on."""

    destination: str
    type: str | None = None
    source: str | None = None
    options: tuple[str, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


@record
class Hook:
    """A program to run at a point of the life cycle, with the container's state on its standard input."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None


@record
class Hooks:
    """By point of the life cycle, in order of their turn."""

    prestart: tuple[Hook, ...] = ()
    create_runtime: tuple[Hook, ...] = ()
    create_container: tuple[Hook, ...] = ()
    start_container: tuple[Hook, ...] = ()
    poststart: tuple[Hook, ...] = ()
    poststop: tuple[Hook, ...] = ()


@record
class Namespace:
    """`type` is pid, network, mount, ipc, uts, user, cgroup or time; with `path` an existing one is joined."""

    type: str
    path: str | None = None


@record
class TimeOffset:
    """What the clock inside is ahead of the host's."""

    secs: int = 0
    nanosecs: int = 0


@record
class Device:
    """A device node to make: `type` is c, b, u or p."""

    type: str
    path: str
    major: int | None = None
    minor: int | None = None
    file_mode: int | None = None
    uid: int = 0
    gid: int = 0


@record
class Personality:
    """An execution domain of personality(2): LINUX or LINUX32."""

    domain: str
    flags: tuple[str, ...] = ()


@record
class Linux:
    """What is Linux's own."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    time_offsets: Mapping[str, TimeOffset] = field(default_factory=dict)
    devices: tuple[Device, ...] = ()
    cgroups_path: str | None = None
    resources: Resources = field(default_factory=Resources)
    rootfs_propagation: str | None = None
    seccomp: Seccomp | None = None
    sysctl: Mapping[str, str] = field(default_factory=dict)
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    mount_label: str | None = None
    personality: Personality | None = None

    def has(self, kind: str) -> bool:
        """Whether the container gets or joins a namespace of this type."""
        return any(namespace.type == kind for namespace in self.namespaces)


@record
class Config:
    """A whole config.json."""

    oci_version: str
    root: Root
    process: Process | None = None
    hostname: str | None = None
    domainname: str | None = None
    mounts: tuple[MountPoint, ...] = ()
    hooks: Hooks = field(default_factory=Hooks)
    annotations: Mapping[str, str] = field(default_factory=dict)
    linux: Linux = field(default_factory=Linux)
