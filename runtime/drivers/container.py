"""The `container` driver: our own runtime, confined as Docker's default container is.

All namespaces but the user's, cgroup limits on whatever hierarchy the host has, the image's layers
under an overlay with a writable layer of the instance's own, Docker's default capabilities, a
seccomp filter, no_new_privs. The network is none (its own, with lo), a bridge's, another instance's or the host's.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import Hierarchies, detect, open_cgroup
from runtime.container import defaults, storage
from runtime.container.client import LauncherClient
from runtime.container.connecting import connected, joined
from runtime.container.instance import Holdings, LaunchedInstance
from runtime.container.launching import LauncherDriver, PreparedImage
from runtime.container.options import Options
from runtime.container.plan import HostFacts, Place, Plan, Rootfs, Template
from runtime.container.specified import check_mounts, files_for, options_for
from runtime.driver import Host, Kind
from runtime.errors import TareError, UsageError
from runtime.images import layers
from runtime.images.pack import pack
from runtime.instance import Availability, Instance, Timeline, Usage
from runtime.ledger import Ledger, process_start
from runtime.linux import capabilities, procfs
from runtime.linux.seccomp import default_program
from runtime.network.attachment import Attachment
from runtime.network.ports import Port
from runtime.spec import InstanceSpec, Limits, NetworkMode


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
    ways = ("layer",)

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        # No specification asks for more than the default: the launcher drops the others once for all instances.
        self.launcher = LauncherClient(given_up=capabilities.BEYOND_DEFAULT)

    @cached_property
    def _hierarchies(self) -> Hierarchies:
        return detect()

    @cached_property
    def _facts(self) -> HostFacts:
        return HostFacts.gather(given_up=capabilities.BEYOND_DEFAULT)

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
        """Named volumes belong to `tare run`; what else is asked for must exist."""
        if spec.network.container is not None:
            self._network_of(spec.network.container)
        check_mounts(spec)

    def prepare(self, spec: InstanceSpec) -> PreparedContainer:
        """As every driver on the launcher; makes what the plans of all launches share."""
        image = super().prepare(spec)
        template = self._template(image.config, options_for(spec, image.program.argv), image.layers)
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
        attachment = self._connect(spec, holdings) if spec.network.mode is NetworkMode.BRIDGE else None
        files = files_for(spec, hostname, attachment.address if attachment else None)
        place = self._place(prepared.layers, holdings, group, files)
        plan = prepared.template.at(place, hostname=hostname, streams=prepared.streams)
        if attachment is not None:
            return connected(plan, attachment)
        return plan if spec.network.container is None else joined(plan, self._network_of(spec.network.container))

    def _connect(self, spec: InstanceSpec, holdings: Holdings) -> Attachment:
        """A place on the default network; given back with the rest."""
        ports = [Port(*words) for words in spec.network.ports]
        place = self.networks.connect(holdings.entry.id, holdings.entry.note, ports=ports)
        holdings.disconnect = lambda: self.networks.disconnect(place.owner, place.network, place.address, place.ports)
        return place

    def _network_of(self, instance_id: str) -> Path:
        """The network namespace of another instance, whatever process launched it."""
        for resource in Ledger(self.host.run).resources(instance_id) or ():
            pid, _, start = resource.value.partition(":")
            if resource.kind == "pid" and str(process_start(int(pid))) == start:
                return Path(f"/proc/{pid}/ns/net")
        raise UsageError(f"network container:{instance_id}", "no such instance runs", "launch it first")

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

    def pack(self, instance: Instance, way: str, parcel: Path) -> None:
        """The writable layer as an image's layer, as `tare commit` makes it."""
        (directory,) = instance.disk_paths().exclusive
        with parcel.open("wb") as file:
            pack(directory / "upper", file, epoch_s=int(time.time()), upper=True)

    def unpack(self, way: str, parcel: Path, target: Path) -> None:
        """The layer's directory."""
        target.mkdir(mode=0o700)
        with parcel.open("rb") as file:
            layers.unpack(file, target)

    def instance(self, prepared: PreparedImage, timeline: Timeline, holdings: Holdings) -> ContainerInstance:
        """The handle."""
        assert holdings.cgroup is not None
        return ContainerInstance(prepared.spec, timeline, holdings, prepared.layers, holdings.cgroup)
