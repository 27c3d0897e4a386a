"""The `container` driver: our own runtime, confined as Docker's default container is.

All namespaces but the user's, cgroup limits on whatever hierarchy the host has, the image's layers
under an overlay with a writable layer of the instance's own, Docker's default capabilities, a
seccomp filter, no_new_privs. No bridge yet: the network is none (its own, with lo) or the host's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import Hierarchies, detect, open_cgroup
from runtime.container import defaults, storage
from runtime.container.config import MountPoint
from runtime.container.instance import Holdings, LaunchedInstance
from runtime.container.launching import LauncherDriver, PreparedImage
from runtime.container.options import HOST, PRIVATE, Options
from runtime.container.plan import HostFacts, Place, Plan, Rootfs, Template
from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import Availability, Timeline, Usage
from runtime.linux import procfs
from runtime.linux.seccomp import default_program
from runtime.spec import InstanceSpec, Limits, Mount, MountKind, NetworkMode

_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{}\n"


@dataclass(frozen=True, slots=True)
class PreparedContainer(PreparedImage):
    """What all launches of the specification share."""

    template: Template


class ContainerInstance(LaunchedInstance):
    """One container."""

    def __init__(
        self, spec: InstanceSpec, timeline: Timeline, holdings: Holdings, layers: Sequence[Path], cgroup: Cgroup
    ) -> None:
        super().__init__(spec, timeline, holdings, layers)
        self._cgroup = cgroup

    def host_pids(self) -> tuple[int, ...]:
        """What the cgroup holds."""
        return self._cgroup.pids()

    def usage(self) -> Usage:
        """The cgroup's accounting, and the processes' proportional set size."""
        return dataclasses.replace(self._cgroup.usage(), pss_bytes=procfs.pss_bytes(self.host_pids()))

    def _freeze(self, frozen: bool) -> None:
        self._cgroup.set_frozen(frozen)


class ContainerDriver(LauncherDriver):
    """Launches containers."""

    name = "container"
    kind = Kind.CONTAINER

    @cached_property
    def _hierarchies(self) -> Hierarchies:
        return detect()

    @cached_property
    def _facts(self) -> HostFacts:
        return HostFacts.gather()

    @cached_property
    def _skeleton(self) -> Path:
        return Path(storage.skeleton(str(self.host.root)))

    def probe(self) -> Availability:
        """Launch a container of nothing on an empty image: every step of a real one but the program."""
        if os.geteuid() != 0:
            return Availability(False, "containers need root", "run it as root")
        try:
            program = default_program()
            reason = self.rehearse(self._equip_rehearsal)
        except (TareError, OSError) as error:
            return Availability(False, str(error), "see: tare doctor")
        if reason:
            return Availability(False, reason, "see: tare doctor")
        group = self._open_cgroup("", Limits(), self.host.root)
        facts = {
            "kernel": platform.release(),
            "cgroups": f"{group.method} ({self._hierarchies.mode} host)",
            "namespaces": "mount uts ipc pid net cgroup",
            "seccomp": f"{len(program) // 8} instructions, sha256 {hashlib.sha256(program).hexdigest()[:12]}",
            "devices": "cgroup" if group.guards_devices else "none can be made or opened",
            "root file system": "overlay",
            "launcher": f"Python {sys.version.split()[0]}",
        }
        return Availability(True, facts=facts)

    def _equip_rehearsal(self, holdings: Holdings) -> Plan:
        group = self._make_cgroup(holdings, Limits())
        template = self._template({}, Options(argv=("true",)), ())
        return template.at(self._place((), holdings, group, ()), hostname=holdings.entry.id)

    def _make_cgroup(self, holdings: Holdings, limits: Limits) -> Cgroup:
        """Make the instance's directory and cgroup."""
        storage.make(str(holdings.directory))
        group = holdings.cgroup = self._open_cgroup(holdings.entry.id, limits, holdings.directory)
        holdings.entry.note("cgroup", holdings.entry.id)
        group.create()
        group.apply(limits)
        return group

    def check(self, spec: InstanceSpec) -> None:
        """Bridges, other containers' networks and named volumes are not there yet."""
        if spec.network.mode not in (NetworkMode.NONE, NetworkMode.HOST):
            raise TareError(f"network {spec.network.mode}", "this driver has none and host", "use --network none")
        for mount in spec.mounts:
            if mount.kind is MountKind.VOLUME:
                raise TareError(f"volume {mount.source}", "this driver binds host paths only", "use -v /PATH:/DST")
            if mount.kind is MountKind.BIND and not Path(mount.source).exists():
                raise TareError(f"mount {mount.source}", "no such path on the host", "create it first")

    def prepare(self, spec: InstanceSpec) -> PreparedContainer:
        """As every driver on the launcher; makes what the plans of all launches share."""
        image = super().prepare(spec)
        options = Options(
            argv=image.program.argv,
            entrypoint=(),
            env=tuple(f"{key}={value}" for key, value in spec.env),
            network=HOST if spec.network.mode is NetworkMode.HOST else PRIVATE,
            mounts=tuple(_mount(mount) for mount in spec.mounts),
            no_new_privileges=True,
        )
        template = self._template(image.config, options, image.layers)
        fields = {field.name: getattr(image, field.name) for field in dataclasses.fields(image)}
        return PreparedContainer(**fields, template=template)

    def _template(self, image_config: Mapping[str, Any], options: Options, layers: Sequence[Path]) -> Template:
        config = defaults.build(image_config, options, layers=layers)
        return Template(config, self._facts, seccomp=default_program())

    def equip(self, prepared: PreparedImage, holdings: Holdings) -> Plan:
        """The cgroup with its limits, the writable layer, /etc/hosts and the like."""
        assert isinstance(prepared, PreparedContainer)
        spec, hostname = prepared.spec, prepared.spec.hostname or holdings.entry.id
        group = self._make_cgroup(holdings, spec.limits)
        place = self._place(prepared.layers, holdings, group, _files(spec, hostname))
        return prepared.template.at(place, hostname=hostname, streams=prepared.streams)

    def _place(
        self, layers: Sequence[Path], holdings: Holdings, group: Cgroup, files: Sequence[tuple[str, str]]
    ) -> Place:
        return Place(
            rootfs=Rootfs((self._skeleton, *layers), holdings.directory),
            join_files=group.join_files(),
            cgroup=group.clone_into(),
            cgroup_mounts=group.mounts_inside(),
            devices_guarded=group.guards_devices,
            files=tuple(files),
            die_with_launcher=True,
        )

    def _open_cgroup(self, instance_id: str, limits: Limits, directory: Path) -> Cgroup:
        wants_io = any(limit is not None for limit in (limits.io_read_bps, limits.io_write_bps, limits.io_weight))
        return open_cgroup(
            instance_id,
            limits,
            io_path=directory if wants_io else None,
            guard_devices=True,
            hierarchies=self._hierarchies,
        )

    def instance(self, prepared: PreparedImage, timeline: Timeline, holdings: Holdings) -> ContainerInstance:
        """The handle."""
        assert holdings.cgroup is not None
        return ContainerInstance(prepared.spec, timeline, holdings, prepared.layers, holdings.cgroup)


def _files(spec: InstanceSpec, hostname: str) -> list[tuple[str, str]]:
    """Names: the instance's own without a network, the host's with the host's."""
    hosts = _HOSTS.format(hostname)
    files = [("/etc/hostname", f"{hostname}\n")]
    if spec.network.mode is not NetworkMode.HOST:
        return [*files, ("/etc/hosts", hosts)]
    found = (Path("/etc") / name for name in ("hosts", "resolv.conf"))
    return files + [(str(path), path.read_text()) for path in found if path.exists()]


def _mount(mount: Mount) -> MountPoint:
    access = "ro" if mount.read_only else "rw"
    if mount.kind is MountKind.TMPFS:
        return MountPoint(
            destination=mount.target, type="tmpfs", source="tmpfs", options=("nosuid", "nodev", "mode=1777", access)
        )
    source = str(Path(mount.source).resolve())
    return MountPoint(destination=mount.target, type="bind", source=source, options=("rbind", access))
