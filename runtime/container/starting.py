"""What a start needs of the host, made and noted in the ledger first, and what the keeper is asked for then.

Also how it is all given back (`settle`), whoever ended first. Not when it is done (`lifecycle`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import Hierarchies, detect, open_cgroup
from runtime.container import storage
from runtime.container.config import Config, Process
from runtime.container.plan import HostFacts, Place, Plan, Rootfs, container_plan, exec_plan
from runtime.container.state import Record, Run
from runtime.container.wanted import GATEWAY
from runtime.driver import Host
from runtime.errors import TareError, UsageError
from runtime.ledger import Entry, Ledger
from runtime.linux import seccomp

DRIVER = "lifecycle"
STREAMS = ((0, 0), (1, 1), (2, 2))
_SOURCE = str(Path(__file__).resolve().parents[2])
_PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from runtime.container.afterwards import {0}; {0}(*sys.argv[2:])"
)
_OOM_FILES = ("memory.oom_control", "memory.events")


@dataclass(slots=True)
class Equipped:
    """What was made for one start: give it back with `Ground.give_back` unless the keeper took it over."""

    entry: Entry
    group: Cgroup
    plan: Plan | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Ground:
    """The host as starts and ends find it. Construction touches nothing."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.ledger = Ledger(host.run)

    @cached_property
    def hierarchies(self) -> Hierarchies:
        """Where control groups lie."""
        return detect()

    @cached_property
    def facts(self) -> HostFacts:
        """What a plan must know of the host."""
        return HostFacts.gather()

    @cached_property
    def skeleton(self) -> Path:
        """The lowest layer of every container."""
        self.host.root.mkdir(parents=True, exist_ok=True, mode=0o711)
        return Path(storage.skeleton(str(self.host.root)))

    @cached_property
    def networks(self) -> Any:
        """The networks; imported by those alone who use one."""
        from runtime.network.network import Networks

        return Networks(self.host.root, self.host.run)

    def close(self) -> None:
        """Give the networks' descriptors back."""
        if "networks" in vars(self):
            self.networks.close()
            del self.networks

    def group(self, record_id: str, config: Config | None = None) -> Cgroup:
        """The control group of a container, made or not."""
        resources = None if config is None else config.linux.resources
        return open_cgroup(record_id, resources, guard_devices=True, hierarchies=self.hierarchies)

    def equip(self, record: Record, config: Config, keeper_pid: int, others: Sequence[Record]) -> Equipped:
        """Note, then make: control group, address, plan. Leaves nothing when it raises."""
        entry = self.ledger.open(record.id, DRIVER, owner=keeper_pid)
        equipped = Equipped(entry, self.group(record.id, config))
        try:
            entry.note("cgroup", record.id)
            equipped.group.create()
            equipped.group.apply(config.linux.resources)
            self._plan(record, config, equipped, others)
        except BaseException:
            self.give_back(record, equipped)
            raise
        return equipped

    def _plan(self, record: Record, config: Config, equipped: Equipped, others: Sequence[Record]) -> None:
        group, attachment = equipped.group, None
        if self.needs_network(record):
            attachment = self._connect(record, equipped)
        place = Place(
            rootfs=Rootfs((self.skeleton, *map(Path, record.layers)), record.directory),
            join_files=group.join_files(),
            cgroup=group.clone_into(),
            cgroup_mounts=group.mounts_inside(),
            devices_guarded=group.guards_devices,
            files=tuple(self._files(record, config, equipped, others)),
            die_with_launcher=True,
        )
        program, flags = self._filter(config)
        equipped.plan = container_plan(
            config,
            place,
            self.facts,
            seccomp=program,
            seccomp_flags=flags,
            streams=() if _terminal(config) else STREAMS,
        )
        if attachment is not None:
            from runtime.container.connecting import connected

            equipped.plan = connected(equipped.plan, attachment)

    @staticmethod
    def needs_network(record: Record) -> bool:
        """Whether it has an address of its own on a bridge."""
        network = record.settings.network
        return network not in ("none", "host") and not network.startswith("container:")

    def _connect(self, record: Record, equipped: Equipped) -> Any:
        from runtime.network.ports import Port

        ports = [
            Port(host_port=host_port, port=port, protocol=protocol, host=host)
            for host, host_port, port, protocol in record.settings.ports
        ]
        attachment = self.networks.connect(record.id, equipped.entry.note, network=record.settings.network, ports=ports)
        equipped.facts = {
            "network": attachment.network,
            "address": attachment.address,
            "gateway": attachment.gateway,
            "prefix_bits": attachment.prefix_bits,
            "mac_address": attachment.mac_address,
            "bridge": attachment.bridge,
            "interface": attachment.interface,
            "ports": [[port.host, port.host_port, port.port, port.protocol] for port in attachment.ports],
        }
        return attachment

    def _files(
        self, record: Record, config: Config, equipped: Equipped, others: Sequence[Record]
    ) -> Sequence[tuple[str, str]]:
        """/etc/hostname, /etc/hosts and /etc/resolv.conf, but for those that a mount of the user's brings."""
        from runtime.network.names import host_resolv_conf, hosts_file, resolv_conf

        mounted = {mount.destination for mount in config.mounts}
        hostname, network = config.hostname or os.uname().nodename, record.settings.network
        known = {GATEWAY: str(equipped.facts.get("gateway", ""))}
        pairs = (text.partition(":") for text in record.settings.extra_hosts)
        extra = [(name, known.get(where, where)) for name, _, where in pairs]
        found = {"/etc/hostname": f"{hostname}\n"}
        if network == "host":
            found["/etc/hosts"] = _text("/etc/hosts") + "".join(f"{where}\t{name}\n" for name, where in extra)
            found["/etc/resolv.conf"] = _text("/etc/resolv.conf")
        else:
            address = equipped.facts.get("address")
            for other in others:
                address = address or (other.run.facts.get("address") if other.run is not None else None)
            found["/etc/hosts"] = hosts_file(hostname, address, extra)
            said = (record.settings.dns, record.settings.dns_search, record.settings.dns_options)
            if network != "none" or any(said):
                found["/etc/resolv.conf"] = resolv_conf(host_resolv_conf(), *said)
        return [(path, text) for path, text in found.items() if path not in mounted]

    def _filter(self, config: Config) -> tuple[bytes | None, int]:
        """The filter's program and the flags to install it with."""
        profile = config.linux.seccomp
        if profile is None:
            return None, 0
        return seccomp.cached(profile, self.host.root / "seccomp"), seccomp.flags(profile)

    def request(self, record: Record, equipped: Equipped, *, again: bool = False, **session: Any) -> dict[str, Any]:
        """What the keeper is asked for: see `keeping.Container`."""
        assert equipped.plan is not None
        settings, group = record.settings, equipped.group
        more = self.needs_network(record) or settings.auto_remove
        before = record.run or Run()
        return {
            "id": record.id,
            "plan": equipped.plan.encode(0),
            "steps": len(equipped.plan.steps),
            "terminal": settings.terminal,
            "input": settings.stdin_open,
            "directory": str(record.directory),
            "log": (settings.log_bytes, settings.log_files),
            "run": {
                "facts": equipped.facts,
                "restarts": before.restarts + 1 if again else 0,
                "started_at": before.started_at,  # if this start fails, it is one that has run all the same
            },
            "groups": tuple(str(directory) for directory in group.directories()),
            "oom_file": _oom_file(group),
            "durable": not settings.auto_remove,
            "page": str(self.ledger.page(record.id)),
            "after": self._program("settle_by_id", record) if more else (),
            "again": again,
            "restart": (settings.restart, settings.restart_most),
            "environment": dict(os.environ) if more else {},
            "events": str(self.host.root),
            "attributes": {"image": record.image, "name": record.name},
            "restarter": (),
            **(self.restarter(record) if settings.restart != "no" else {}),
            **session,
        }

    def restarter(self, record: Record) -> dict[str, Any]:
        """What the keeper needs to start it again: a program, and its variables."""
        return {"restarter": self._program("start_again_by_id", record), "environment": dict(os.environ)}

    def _program(self, name: str, record: Record) -> tuple[str, ...]:
        """A process of its own that does `afterwards.<name>` for a container."""
        code = _PROGRAM.format(name)
        return sys.executable, "-c", code, _SOURCE, str(self.host.root), str(self.host.run), record.id

    def exec_request(
        self, record: Record, config: Config, process: Process, **session: Any
    ) -> tuple[dict[str, Any], Plan]:
        """What the keeper is asked for a command run in a container that runs, and its plan."""
        assert record.run is not None
        group = self.group(record.id, config)
        place = Place(join_files=group.join_files(), cgroup=group.clone_into(), devices_guarded=group.guards_devices)
        program, flags = self._filter(config)
        plan = exec_plan(
            config,
            process,
            record.run.pid,
            place,
            self.facts,
            seccomp=program,
            seccomp_flags=flags,
            streams=() if process.terminal else STREAMS,
            start=record.run.start,
        )
        request = {
            "plan": plan.encode(0),
            "steps": len(plan.steps),
            "terminal": process.terminal,
            "input_once": True,
            **session,
        }
        return request, plan

    def give_back(self, record: Record, equipped: Equipped) -> None:
        """Undo `equip`."""
        with suppress(TareError, OSError):
            equipped.group.remove()
            self._sweep_network(record.id)
            equipped.entry.close(gone=True)
        equipped.entry.close(gone=False)

    def settle(self, record_id: str) -> None:
        """Give back everything that the ledger notes of a container that does not run. Raises TareError, OSError."""
        self.group(record_id).remove()
        self._sweep_network(record_id)
        self.ledger.strike(record_id)

    def _sweep_network(self, record_id: str) -> None:
        resources = self.ledger.resources(record_id) or ()
        noted = [(item.kind, item.value) for item in resources if item.kind in ("lease", "link", "port")]
        if noted:
            self.networks.sweep(record_id, noted)


def explained(plan: Plan, index: int, number: int, text: str) -> TareError:
    """The failure of step `index` of a plan as a sentence; `exit_code` is 127, 126 or 125 as Docker's."""
    from runtime.container.keeping import failure_code

    steps = plan.steps
    if index == len(steps) - 1:
        words = getattr(steps[index], "argv", (b"?",))
        error = TareError(f"command {os.fsdecode(words[0])!r}", os.strerror(number), "name one that the image holds")
    elif 0 <= index < len(steps):
        error = TareError(f"start: {steps[index].describe()[:300]}", text)
    else:
        error = TareError("start", text)
    error.exit_code = failure_code((index, number, text), len(steps))
    return error


def check(config: Config, group: Cgroup) -> None:
    """Raise what this host cannot enforce, before anything is made."""
    group.check(config.linux.resources)
    if config.process is None:
        raise UsageError("container", "no command", "name one")


def _terminal(config: Config) -> bool:
    return config.process is not None and config.process.terminal


def _oom_file(group: Cgroup) -> str:
    paths = (directory / name for directory in group.directories() for name in _OOM_FILES)
    return next((str(path) for path in paths if path.exists()), "")


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
