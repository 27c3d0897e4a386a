"""A further process in a container that runs: `tare oci exec`.

It joins every namespace of the container's first process, enters its control group, and gets the same confinement.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from runtime.cgroups.detect import open_cgroup
from runtime.container import bundles, decode, oci, oci_cgroup, oci_create, spawning
from runtime.container.config import Config, Process
from runtime.container.oci_create import Making
from runtime.container.plan import HostFacts, exec_plan
from runtime.container.plan import Place as Placement
from runtime.container.spawning import Spawned
from runtime.errors import TareError, UsageError


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What `exec` is asked to run: a whole process.json, or words and flags over the container's own process."""

    process: Process | None = None
    args: tuple[str, ...] = ()
    cwd: str | None = None
    env: tuple[str, ...] = ()
    terminal: bool = False
    user: str | None = None
    groups: tuple[int, ...] = ()
    capabilities: tuple[str, ...] = ()
    no_new_privileges: bool = False
    ignore_paused: bool = False

    def over(self, config: Config) -> Process:
        """The process to run."""
        if self.process is not None:
            return self.process
        base = config.process or Process()
        return dataclasses.replace(
            base,
            args=self.args,
            cwd=self.cwd or base.cwd,
            env=(*base.env, *self.env),
            terminal=self.terminal,
            console_size=None,
            user=self._user(base),
            capabilities=self._capabilities(base),
            no_new_privileges=base.no_new_privileges or self.no_new_privileges,
        )

    def _user(self, base: Process) -> Any:
        user = base.user
        if self.user is not None:
            uid, _, gid = self.user.partition(":")
            if not uid.isdigit() or (gid and not gid.isdigit()):
                raise UsageError(f"user {self.user!r}", "not UID or UID:GID", "give numbers")
            user = dataclasses.replace(user, uid=int(uid), gid=int(gid or user.gid))
        return dataclasses.replace(user, additional_gids=(*user.additional_gids, *self.groups))

    def _capabilities(self, base: Process) -> Any:
        if not self.capabilities or base.capabilities is None:
            return base.capabilities
        names = ("bounding", "effective", "permitted")
        more = {name: (*getattr(base.capabilities, name), *self.capabilities) for name in names}
        return dataclasses.replace(base.capabilities, **more)


def spawn(runtime: oci.Runtime, container_id: str, what: Asked, making: Making) -> tuple[Spawned, int]:
    """Start it in the container: its handle and the terminal's master end, -1 without one or once it is sent away.

    Raises TareError when the container does not run or the program cannot be executed.
    """
    place = runtime.find(container_id)
    wanted = ("running", "created", *(("paused",) if what.ignore_paused else ()))
    record = oci.need(place, "exec", *wanted)
    config = decode.parse(place.config())
    process = oci_create.grantable(what.over(config), runtime.warn, new_user=config.linux.has("user"))
    oci_create.check_console(process, making)
    process = oci_create.with_home(process, Path(record.rootfs))
    group = open_cgroup(record.cgroup_name, oci_cgroup.limits(config), guard_devices=True, parent=record.cgroup_parent)
    placement = Placement(
        bundle=Path(record.bundle),
        join_files=oci_cgroup.join_files(group, record.groups),
        cgroup=group.clone_into(),
        devices_guarded=group.guards_devices,
        keyring=making.keyring,
    )
    program, flags = oci_create.filter_of(config)
    plan = exec_plan(
        config,
        process,
        record.pid,
        placement,
        HostFacts.gather(),
        seccomp=program,
        seccomp_flags=flags,
        streams=oci_create.streams(making),
        start=record.start,
    )
    if bundles.status(place, record) == "stopped":
        raise TareError(f"exec {container_id}", "container not running")
    spawned = oci_create.clone(plan, making)
    said = spawning.outcome(spawned)
    if said.failure is not None:
        os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
        raise oci_create.explained(plan, *said.failure)
    if said.root >= 0:
        os.close(said.root)
    return spawned, oci_create.finish(making, spawned.pid, said.console)
