"""An image and the words of `docker run` as one OCI configuration; what is not asked for is as in Docker.

Docker's default container is its mounts, devices, masked paths and capabilities (https://github.com/moby/moby,
`oci/defaults.go` and `daemon/oci_linux.go`, and docs.docker.com are what the lists follow). Pure but for the names of
users, which are in the image's layers. Not how the words are written on a command line: that is `runtime.commands`.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from pathlib import Path

from runtime.cgroups.devices import USUAL
from runtime.cgroups.resources import DeviceRule
from runtime.container import decode, system
from runtime.container.config import (
    Capabilities,
    Config,
    IdMapping,
    Linux,
    Namespace,
    Process,
    Root,
    Seccomp,
    User,
)
from runtime.container.options import HOST, PRIVATE
from runtime.container.options import DeviceGrant as DeviceGrant  # noqa: PLC0414 - what `build` takes
from runtime.container.options import IdRange as IdRange  # noqa: PLC0414
from runtime.container.options import Options as Options  # noqa: PLC0414
from runtime.container.users import Identity, identify
from runtime.errors import UsageError
from runtime.linux import capabilities
from runtime.linux.profile import default_profile
from runtime.record import field, record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

OCI_VERSION = "1.2.0"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_OWN_NETWORK_SYSCTLS = {"net.ipv4.ip_unprivileged_port_start": "0"}
_PING = {"net.ipv4.ping_group_range": "0 2147483647"}


@record
class ImageProcess:
    """`config` of an OCI or Docker image configuration: what to run unless told otherwise."""

    entrypoint: tuple[str, ...] = field(default=(), metadata={"name": "Entrypoint"})
    command: tuple[str, ...] = field(default=(), metadata={"name": "Cmd"})
    env: tuple[str, ...] = field(default=(), metadata={"name": "Env"})
    working_directory: str = field(default="", metadata={"name": "WorkingDir"})
    user: str = field(default="", metadata={"name": "User"})
    labels: Mapping[str, str] = field(default_factory=dict, metadata={"name": "Labels"})


def image_process(image_config: Mapping[str, Any]) -> ImageProcess:
    """What a whole image configuration, or its `config` alone, says about the process. Raises UsageError."""
    whole = "config" in image_config or "rootfs" in image_config
    inner = (image_config.get("config") or {}) if whole else image_config
    return decode.parse_as(ImageProcess, inner, "image configuration")


def build(image_config: Mapping[str, Any], options: Options, *, layers: Sequence[Path] = ()) -> Config:
    """The container that `options` ask for, of an image with these layers, topmost last.

    Raises UsageError for what contradicts itself or has no sense, naming it; TareError for a user that is not there.
    """
    image = image_process(image_config)
    _check(options)
    _check_capabilities(options)
    identity = identify(layers, image.user if options.user is None else options.user, options.groups)
    config = Config(
        oci_version=OCI_VERSION,
        root=Root(path=options.rootfs, readonly=options.read_only),
        process=_process(image, options, identity),
        hostname=options.host_name,
        domainname=options.domainname,
        mounts=system.mounts(options),
        annotations={
            key: value for key, value in {**image.labels, **options.labels, **options.annotations}.items() if key
        },
        linux=_linux(options),
    )
    checked = decode.parse(decode.document(config), "container")
    # The filter has been read before, and is longer than all the rest.
    return replace(checked, linux=replace(checked.linux, seccomp=_seccomp(options)))


def arguments(image: ImageProcess, argv: Sequence[str], entrypoint: Sequence[str] | None) -> tuple[str, ...]:
    """The program and its words by Docker's rules: another entry point drops the image's command too."""
    if entrypoint is not None:
        words = (*(word for word in entrypoint if word), *argv)
    else:
        words = (*image.entrypoint, *(argv or image.command))
    if not words:
        raise UsageError("container", "no command specified", "give one after the image")
    return words


def environment(image: ImageProcess, options: Options, identity: Identity) -> tuple[str, ...]:
    """PATH, HOSTNAME, TERM and HOME, under the image's variables, under those asked for."""
    found = {"PATH": PATH}
    if name := options.host_name or options.hostname:
        found["HOSTNAME"] = name
    if options.tty:
        found["TERM"] = "xterm"
    for word in image.env:
        key, equals, value = word.partition("=")
        if key and equals:
            found[key] = value
    for word in options.env:
        key, equals, value = word.partition("=")
        if not key:
            raise UsageError(f"environment {word!r}", "the variable has no name", "use NAME=VALUE")
        if equals:
            found[key] = value
        else:
            found.pop(key, None)
    found.setdefault("HOME", identity.home)
    return tuple(f"{key}={value}" for key, value in found.items())


def _check(options: Options) -> None:
    """What contradicts itself."""
    if options.privileged and options.id_range is not None:
        raise UsageError("--privileged", "a user namespace takes the privileges away again", "add --userns host")
    if options.id_range is not None and options.pid != PRIVATE:
        raise UsageError("--pid", "a user namespace of its own may not show the processes of another", "--userns host")
    if options.uts != PRIVATE and (options.hostname or options.domainname) and options.uts == HOST:
        raise UsageError("--hostname", "the host's names are shared", "leave out --uts host")
    if options.cwd is not None and not options.cwd.startswith("/"):
        raise UsageError(f"working directory {options.cwd!r}", "not an absolute path", "begin it with /")
    if options.shm_bytes <= 0:
        raise UsageError(f"--shm-size {options.shm_bytes}", "must be above 0", "give a size such as 64m")
    destinations = [mount.destination for mount in options.mounts]
    for destination in destinations:
        if destinations.count(destination) > 1:
            raise UsageError(f"mount {destination}", "two mounts at the same place", "leave one out")
        if posixpath.normpath(destination) == "/":
            raise UsageError(f"mount {destination}", "would hide the image", "give a directory below /")


def _check_capabilities(options: Options) -> None:
    """Those named must be had; a user namespace begins with all that the kernel knows."""
    known = capabilities.everything(options.last_capability)
    held = known if options.held_capabilities is None or options.id_range is not None else options.held_capabilities
    for name in map(capabilities.normalise, options.cap_add):
        if name != capabilities.ALL and name not in known:
            raise UsageError(f"--cap-add {name}", "the kernel here has no such capability", "leave it out")
        if name != capabilities.ALL and name not in held:
            raise UsageError(f"--cap-add {name}", "not this host's to give: it runs without it itself", "leave it out")


def _process(image: ImageProcess, options: Options, identity: Identity) -> Process:
    chosen = _capabilities(options)
    is_root = identity.uid == 0
    return Process(
        args=arguments(image, options.argv, options.entrypoint),
        cwd=posixpath.normpath(posixpath.join("/", options.cwd or image.working_directory)),
        env=environment(image, options, identity),
        terminal=options.tty,
        console_size=options.console_size if options.tty else None,
        user=User(
            uid=identity.uid,
            gid=identity.gid,
            umask=options.umask,
            # The first group is among them as in Docker: a set-group-id program cannot shed it that way.
            additional_gids=(identity.gid, *identity.groups),
        ),
        capabilities=Capabilities(
            bounding=chosen,
            effective=chosen if is_root else (),
            permitted=chosen if is_root else (),
        ),
        rlimits=options.rlimits,
        no_new_privileges=options.no_new_privileges,
        oom_score_adj=options.oom_score_adj,
    )


def _capabilities(options: Options) -> tuple[str, ...]:
    if options.privileged:
        return options.every_capability
    return capabilities.choose(options.cap_add, options.cap_drop, every=options.every_capability)


def _linux(options: Options) -> Linux:
    mappings = () if options.id_range is None else (_mapping(options.id_range),)
    granted = options.devices
    if options.privileged:
        granted = (*(DeviceGrant(device=device) for device in options.host_devices), *granted)
    return Linux(
        namespaces=_namespaces(options),
        uid_mappings=mappings,
        gid_mappings=mappings,
        time_offsets=options.time_offsets,
        devices=tuple(grant.device for grant in granted),
        cgroups_path=options.cgroups_path,
        resources=replace(options.resources, devices=_device_rules(options)),
        rootfs_propagation=options.rootfs_propagation,
        sysctl=_sysctls(options),
        masked_paths=_paths(options.masked_paths, system.MASKED, options),
        readonly_paths=_paths(options.readonly_paths, system.READ_ONLY, options),
    )


def _mapping(ids: IdRange) -> IdMapping:
    return IdMapping(container_id=0, host_id=ids.host_id, size=ids.size)


def _namespaces(options: Options) -> tuple[Namespace, ...]:
    wanted = {
        "mount": PRIVATE,
        "network": options.network,
        "uts": options.uts,
        "pid": options.pid,
        "ipc": options.ipc,
        "cgroup": options.cgroupns,
        "user": PRIVATE if options.id_range is not None else HOST,
        "time": PRIVATE if options.time_offsets else HOST,
    }
    return tuple(
        Namespace(type=kind, path=None if mode == PRIVATE else mode) for kind, mode in wanted.items() if mode != HOST
    )


def _device_rules(options: Options) -> tuple[DeviceRule, ...]:
    if options.privileged:
        return (DeviceRule(allow=True, access="rwm"),)
    granted = (
        DeviceRule(
            allow=True,
            type="b" if grant.device.type == "b" else "c",
            major=grant.device.major,
            minor=grant.device.minor,
            access=grant.access,
        )
        for grant in options.devices
        if grant.device.type != "p"
    )
    return (*USUAL, *granted, *options.device_rules)


def _seccomp(options: Options) -> Seccomp | None:
    if options.seccomp is not None:
        return options.seccomp
    if options.seccomp_unconfined or options.privileged:
        return None
    return default_profile(_capabilities(options))


def _sysctls(options: Options) -> dict[str, str]:
    """Docker's: any user may bind low ports and send pings in a network of the container's own."""
    own = options.network == PRIVATE
    defaults = (_OWN_NETWORK_SYSCTLS | ({} if options.id_range is not None else _PING)) if own else {}
    return {**defaults, **options.sysctls}


def _paths(asked: tuple[str, ...] | None, default: tuple[str, ...], options: Options) -> tuple[str, ...]:
    if asked is not None:
        return asked
    return () if options.privileged else default
