"""From a configuration and a place to the list of steps that makes a container: pure, printable, the same without root.

What all launches of one configuration share is made once, as a `Template`; how files and the process come to be is
in `rootplan` and `processplan`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime.container import mountwords, namespaces, processplan
from runtime.container.becoming import BecomeRoot, DieWithParent, Find, ResourceLimit, Undumpable
from runtime.container.config import Config, Hook, IdMapping, Process
from runtime.container.furnishing import ReadOnlyRoot
from runtime.container.mounting import AttachRoot, Enter, LeaveHost, Mount, PivotRoot, PrivateParent
from runtime.container.outside import Outside, OverlayTree, Tree
from runtime.container.planned import Bind as Bind  # noqa: PLC0414 - who plans wants them from here
from runtime.container.planned import HostFacts as HostFacts  # noqa: PLC0414
from runtime.container.planned import Part as Part  # noqa: PLC0414
from runtime.container.planned import Place as Place  # noqa: PLC0414
from runtime.container.planned import Plan as Plan  # noqa: PLC0414
from runtime.container.planned import Program as Program  # noqa: PLC0414
from runtime.container.planned import Rootfs as Rootfs  # noqa: PLC0414
from runtime.container.processplan import Confinement
from runtime.container.rootplan import RootPlan, map_lines
from runtime.container.stepping import Step
from runtime.container.steps import (
    DomainName,
    EnterTime,
    Hold,
    Hostname,
    JoinNamespaces,
    LoopbackUp,
    OpenHold,
    RunHook,
    Unshare,
    WaitForParent,
    Write,
)
from runtime.errors import UsageError
from runtime.ledger import process_start
from runtime.linux.syscalls import (
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SHARED,
    MS_SLAVE,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_BIND_READ_ONLY = MS_BIND | MS_REMOUNT | MS_RDONLY


class Template:
    """All launches of one configuration: what does not depend on the place is made once.

    `seccomp` is the compiled program of `config.linux.seccomp`; relative paths are relative to `bundle`; `state` is
    what hooks in the container get on their standard input. Raises UsageError naming the field that this runtime
    cannot do.
    """

    def __init__(
        self,
        config: Config,
        facts: HostFacts,
        *,
        seccomp: bytes | None,
        seccomp_flags: int = 0,
        bundle: Path = Path("/"),
        state: bytes = b"",
    ) -> None:
        if config.process is None:
            raise UsageError("process", "missing", "say what to run")
        processplan.check(config.process)
        if config.linux.mount_label:
            raise UsageError("linux.mountLabel", "this runtime sets no such label", "leave it out")
        self._config = config
        self._known = facts.known()
        self._process = config.process
        self._facts = facts
        self._filter = (seccomp, seccomp_flags)
        self._bundle = str(bundle)
        self._state = state
        self._namespaces = namespaces.Namespaces.of(config)
        self._in_user = config.linux.has("user")
        self._begin = Part(self._beginning())
        self._execute = processplan.execute(config.process)
        self._interiors: dict[tuple[Any, ...], tuple[Part, tuple[Tree, ...]]] = {}
        self._ends: dict[tuple[bool, bool, bool], Part] = {}

    def at(self, place: Place, *, hostname: str | None = None, streams: Sequence[tuple[int, int]] = ()) -> Plan:
        """One launch. `hostname` stands for the configuration's where each has its own."""
        interior, trees = self._interior(place)
        linux = self._config.linux
        parts: list[Step | Part] = [Write(os.fsencode(path), b"0") for path in place.join_files]
        if place.hold is not None:
            parts.append(OpenHold(os.fsencode(place.hold)))
        parts += [self._begin, *self._root(place, len(trees))]
        if place.files:
            parts += self._root_plan(place).files(place.files)
        parts.append(interior)
        name = hostname or self._config.hostname
        if name is not None and linux.has("uts"):
            parts.append(Hostname(os.fsencode(name)))
        if self._namespaces.cloned & CLONE_NEWNET:
            parts.append(LoopbackUp())
        parts.append(self._end(place))
        if place.die_with_launcher:
            parts.append(DieWithParent())
        if place.hold is not None:
            parts.append(Hold())
        parts += self._hooks("startContainer", self._config.hooks.start_container)
        parts.append(self._execute)
        return Plan(
            namespaces=self._namespaces.cloned,
            parts=tuple(parts),
            streams=tuple(streams),
            cgroup=None if place.cgroup is None else str(place.cgroup),
            enter=self._namespaces.entered,
            outside=self._outside(place, trees),
            user=self._namespaces.user,
        )

    @property
    def _is_seen(self) -> bool:
        """Whether it is born among the processes of another container, who are not to look into it before it runs."""
        return any(flag == CLONE_NEWPID for _, flag in self._namespaces.entered)

    def _beginning(self) -> Iterator[Step]:
        process, namespaces = self._process, self._namespaces
        if self._is_seen:
            yield Undumpable()
        if process.oom_score_adj is not None and not self._in_user:
            yield Write(b"/proc/self/oom_score_adj", b"%d" % process.oom_score_adj)
        if namespaces.late:
            yield Unshare(namespaces.late)
        offsets = self._config.linux.time_offsets
        if namespaces.late & CLONE_NEWTIME and offsets:
            lines = (f"{clock} {offset.secs} {offset.nanosecs}\n" for clock, offset in offsets.items())
            yield Write(b"/proc/self/timens_offsets", "".join(lines).encode())
        if namespaces.late & CLONE_NEWTIME:
            yield EnterTime()
        if not self._propagation() & MS_SHARED:
            # A slave sees what the host mounts later and tells it nothing; private would pin what the host unmounts.
            yield Mount(None, b"/", None, MS_REC | MS_SLAVE)

    def _propagation(self) -> int:
        return mountwords.PROPAGATION.get(self._config.linux.rootfs_propagation or "", 0)

    def _root(self, place: Place, trees: int) -> Iterator[Step]:
        """The future root, mounted on the host's tree and then exchanged for it."""
        flags = 0 if place.devices_guarded else MS_NODEV
        if place.rootfs is not None:
            root = place.rootfs.root
        else:
            root = os.fsencode(os.path.normpath(os.path.join(self._bundle, self._config.root.path)))  # noqa: PTH118
        if self._propagation() & MS_SHARED:
            yield PrivateParent(root)
        if place.rootfs is None:
            yield Mount(root, root, None, MS_BIND | MS_REC)
            if flags:
                yield Mount(None, root, None, MS_BIND | MS_REMOUNT | flags)
        elif self._in_user:
            yield AttachRoot(trees, root)
        else:
            yield place.rootfs.overlay(flags)
        if place.waits:
            yield WaitForParent()
        yield PivotRoot(root)
        if self._in_user:
            yield BecomeRoot(dumpable=not self._is_seen)

    def _root_plan(self, place: Place) -> RootPlan:
        return RootPlan(
            config=self._config,
            bundle=self._bundle,
            known=self._known,
            cgroup_mounts=place.cgroup_mounts,
            cgroup_directories=place.cgroup_directories,
            shared=place.rootfs is None,
        )

    def _interior(self, place: Place) -> tuple[Part, tuple[Tree, ...]]:
        key = place.cgroup_mounts, place.cgroup_directories, place.rootfs is None
        found = self._interiors.get(key)
        if found is None:
            plan = self._root_plan(place)
            steps = [*plan.steps(), *self._hooks("createContainer", self._config.hooks.create_container)]
            if self._config.domainname is not None:
                steps.append(DomainName(os.fsencode(self._config.domainname)))
            found = self._interiors[key] = Part(steps), tuple(plan.trees)
        return found

    def _end(self, place: Place) -> Part:
        key = place.devices_guarded, place.keyring, place.hold is not None
        if key not in self._ends:
            self._ends[key] = Part(self._ending(*key))
        return self._ends[key]

    def _ending(self, devices_guarded: bool, keyring: bool, held: bool) -> Iterator[Step]:
        config, process = self._config, self._process
        yield from processplan.terminal(process, console=True)
        if config.root.readonly:
            yield ReadOnlyRoot()
        if self._propagation():
            yield Mount(None, b"/", None, self._propagation())
        if self._propagation() & MS_SHARED:
            # Its mounts are the host's peers still: to unmount them would unmount those.
            yield Mount(None, b".", None, MS_REC | MS_SLAVE)
        yield LeaveHost(os.fsencode(process.cwd))
        yield from processplan.before(
            process, set_limits=not self._in_user, keyring=keyring, persona=config.linux.personality
        )
        if held:
            yield Find(self._execute.paths, self._execute.argv)
        confinement = _confinement(self._filter, devices_guarded, self._facts, new_bounds=self._in_user)
        yield processplan.confine(process, confinement)

    def _hooks(self, point: str, hooks: Sequence[Hook]) -> Iterator[Step]:
        root = self._config.root.path if point == "createContainer" else ""
        for number, hook in enumerate(hooks):
            place = os.path.normpath(os.path.join(self._bundle, root)) if root else ""  # noqa: PTH118
            argv = (hook.path, *hook.args)
            yield RunHook(point, number, argv, hook.env, hook.timeout or 0, self._state_at(point), os.fsencode(place))

    def _state_at(self, point: str) -> bytes:
        """What is `creating` until it waits for its start is `created` then."""
        if point != "startContainer" or not self._state:
            return self._state
        import json

        return json.dumps(json.loads(self._state) | {"status": "created"}).encode()

    def _outside(self, place: Place, trees: tuple[Tree, ...]) -> Outside | None:
        """What the parent does: everything that the root of a user namespace may not, and mounts for it."""
        linux = self._config.linux
        if not self._in_user:
            return Outside(trees=trees) if trees else None
        joins = bool(self._namespaces.user)
        overlay = None
        if place.rootfs is not None:
            uid, gid = (_outer_root(items) for items in (linux.uid_mappings, linux.gid_mappings))
            flags = 0 if place.devices_guarded else MS_NODEV
            overlay = OverlayTree(place.rootfs.names, os.fsencode(place.rootfs.instance), flags, uid, gid)
        return Outside(
            uid_map=b"" if joins else map_lines(linux.uid_mappings),
            gid_map=b"" if joins else map_lines(linux.gid_mappings),
            limits=processplan.limits(self._process),
            oom_score_adj=self._process.oom_score_adj,
            trees=trees,
            overlay=overlay,
        )


def container_plan(
    config: Config,
    place: Place,
    facts: HostFacts,
    *,
    seccomp: bytes | None,
    seccomp_flags: int = 0,
    streams: Sequence[tuple[int, int]] = (),
    state: bytes = b"",
) -> Plan:
    """The launch of the container that `config` describes, at `place`. See `Template`, which makes more than one."""
    template = Template(config, facts, seccomp=seccomp, seccomp_flags=seccomp_flags, bundle=place.bundle, state=state)
    return template.at(place, streams=streams)


def exec_plan(
    config: Config,
    process: Process,
    pid: int,
    place: Place,
    facts: HostFacts,
    *,
    seccomp: bytes | None,
    seccomp_flags: int = 0,
    streams: Sequence[tuple[int, int]] = (),
    start: int | None = None,
) -> Plan:
    """The launch of a further `process` in the container whose init is `pid`: its namespaces, cgroup, confinement.

    `start` is when that began (`ledger.process_start`), so that it is no other by now; None takes whichever has the
    number. Raises TareError when the container does not run.
    """
    processplan.check(process)
    flags = namespaces.foreign(pid)
    begun = process_start(pid) if start is None else start
    if begun is None:
        raise namespaces.gone(pid)
    program = processplan.execute(process)
    parts: list[Step | Part] = [Write(os.fsencode(path), b"0") for path in place.join_files]
    if process.oom_score_adj is not None:
        parts.append(Write(b"/proc/self/oom_score_adj", b"%d" % process.oom_score_adj))
    parts += (ResourceLimit(*limit) for limit in processplan.limits(process))
    parts += [Undumpable(), JoinNamespaces(flags, pid, begun)]
    if flags & CLONE_NEWUSER:
        parts.append(BecomeRoot(dumpable=False))
    parts += processplan.terminal(process, console=False)
    parts.append(Enter(os.fsencode(process.cwd)))
    parts += processplan.before(process, set_limits=False, keyring=place.keyring, persona=config.linux.personality)
    confinement = _confinement(
        (seccomp, seccomp_flags), place.devices_guarded, facts, new_bounds=bool(flags & CLONE_NEWUSER)
    )
    parts.append(processplan.confine(process, confinement))
    if place.die_with_launcher:
        parts.append(DieWithParent())
    return Plan(
        namespaces=0,
        parts=(*parts, program),
        streams=tuple(streams),
        cgroup=None if place.cgroup is None else str(place.cgroup),
        target=pid,
    )


def _confinement(
    filtered: tuple[bytes | None, int], devices_guarded: bool, facts: HostFacts, *, new_bounds: bool
) -> Confinement:
    """`new_bounds` says that the bounding set is full again, as who enters a user namespace finds it."""
    return Confinement(
        seccomp=filtered[0],
        seccomp_flags=filtered[1],
        devices_guarded=devices_guarded,
        last_capability=facts.last_capability,
        lacking=frozenset() if new_bounds else facts.lacking,
        given_up=frozenset() if new_bounds else facts.given_up,
    )


def _outer_root(mappings: Sequence[IdMapping]) -> int:
    """Who on the host is the container's root. Raises UsageError when nobody is."""
    for item in mappings:
        if item.container_id <= 0 < item.container_id + item.size:
            return item.host_id
    raise UsageError("linux.uidMappings", "no id of the host is root inside", "map containerID 0")


def native_plan(
    tree: Path,
    instance: Path,
    program: Program,
    *,
    scratch: Sequence[str],
    die_with_launcher: bool = True,
    streams: Sequence[tuple[int, int]] = (),
) -> Plan:
    """The launch of the baseline: the image's files as they lie on the host, read-only, under a new root.

    `scratch` are the directories of the image that are writable: plain ones in the instance's directory.
    """
    root = os.fsencode(instance / "root")
    steps: list[Step] = [
        Mount(None, b"/", None, MS_REC | MS_SLAVE),
        Mount(os.fsencode(tree), root, None, MS_BIND),
        Mount(None, root, None, _BIND_READ_ONLY),
        PivotRoot(root),
        Mount(b"proc", b"/proc", b"proc", MS_NOSUID | MS_NODEV | MS_NOEXEC),
        Mount(b"sys", b"/sys", None, MS_BIND | MS_REC),
        Mount(b"dev", b"/dev", None, MS_BIND | MS_REC),
        *(step for target in scratch for step in Bind(instance / "scratch" / target.lstrip("/"), target).steps()),
        LeaveHost(os.fsencode(program.directory)),
    ]
    if die_with_launcher:
        steps.append(DieWithParent())
    return Plan(namespaces=CLONE_NEWNS, parts=(*steps, program.step()), streams=tuple(streams))
