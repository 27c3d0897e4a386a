"""From what an instance should be to the list of steps that makes it: pure, printable, the same without root.

What Docker's default container has, this one has: its mounts, devices, masked paths and capabilities
(https://github.com/moby/moby, `oci/defaults.go`, and docs.docker.com are what the lists follow).
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from runtime.container.config import Config, Process
from runtime.container.spawning import Flat
from runtime.container.steps import (
    CharacterDevice,
    Confine,
    DieWithParent,
    Directory,
    Execute,
    Hostname,
    LeaveHost,
    Link,
    LoopbackUp,
    Mount,
    NewFile,
    PivotRoot,
    ReadOnly,
    Step,
    Unshare,
    Write,
    to_row,
)
from runtime.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_RELATIME,
    MS_REMOUNT,
    MS_SLAVE,
    MS_STRICTATIME,
    capability_mask,
)

CAPABILITIES = {
    # linux/capability.h: Docker's default set
    "CAP_CHOWN": 0,
    "CAP_DAC_OVERRIDE": 1,
    "CAP_FOWNER": 3,
    "CAP_FSETID": 4,
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_RAW": 13,
    "CAP_SYS_CHROOT": 18,
    "CAP_MKNOD": 27,
    "CAP_AUDIT_WRITE": 29,
    "CAP_SETFCAP": 31,
}
MASKED = (
    "/proc/acpi",
    "/proc/asound",
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
DEVICES = (("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0))
DEVICE_LINKS = (
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("/proc/kcore", "core"),
    ("pts/ptmx", "ptmx"),
)
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_ENV = {"PATH": PATH, "HOME": "/root"}
SHM_BYTES = 64 << 20
NAMESPACES = CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID


class Part:
    """Steps that many plans share. They travel as the same bytes each time, which the launcher decodes once."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = tuple(steps)

    @cached_property
    def encoded(self) -> bytes:
        """The steps' rows."""
        return marshal.dumps(tuple(to_row(step) for step in self.steps))


@dataclass(frozen=True, slots=True)
class Plan:
    """One launch: the namespaces of clone3, the v2 cgroup to be born in, the steps, and the descriptors.

    `parts` are the steps, single ones and shared runs of them. `streams` says which descriptor sent
    along (by its position) becomes which one of the program.
    """

    namespaces: int
    parts: tuple[Step | Part, ...]
    streams: tuple[tuple[int, int], ...] = ()
    cgroup: str | None = None
    enter: tuple[tuple[str, int], ...] = ()
    maps: tuple[bytes, bytes] | None = None
    target: int = 0
    links: tuple[bytes, ...] = ()

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step, in order."""
        return tuple(step for part in self.parts for step in (part.steps if isinstance(part, Part) else (part,)))

    def describe(self) -> str:
        """The plan, a line a step."""
        head = f"clone3 {self.namespaces:#x}" + (f" into {self.cgroup}" if self.cgroup else "")
        return "\n".join([head, *(step.describe() for step in self.steps)])

    def encode(self, token: int) -> bytes:
        """One message for the launcher, answered under `token`."""
        parts = tuple(part.encoded if isinstance(part, Part) else (to_row(part),) for part in self.parts)
        return marshal.dumps((token, *self._head(), parts))

    def flat(self) -> Flat:
        """The plan for `spawning.spawn`, which carries it out."""
        return Flat(*self._head(), self.steps)

    def _head(self) -> tuple[Any, ...]:
        return self.namespaces, self.cgroup, self.streams, self.enter, self.maps, self.target, self.links


@dataclass(frozen=True, slots=True)
class Program:
    """What to execute: `env` over Docker's defaults; a name without a slash is looked for along its PATH."""

    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    directory: str = "/"

    def step(self) -> Execute:
        """The last step."""
        env = DEFAULT_ENV | dict(self.env)
        name = self.argv[0]
        paths = (name,) if "/" in name else tuple(f"{part or '.'}/{name}" for part in env["PATH"].split(":"))
        return Execute(
            paths=tuple(os.fsencode(path) for path in paths),
            argv=tuple(os.fsencode(word) for word in self.argv),
            env=tuple((os.fsencode(key), os.fsencode(value)) for key, value in env.items()),
        )


@dataclass(frozen=True, slots=True)
class Rootfs:
    """An image's layers, topmost last, and the instance's own directory with `upper` and `work` in it."""

    layers: tuple[Path, ...]
    instance: Path

    @property
    def root(self) -> bytes:
        """Where the root file system is mounted before it becomes the root."""
        return os.fsencode(self.instance / "upper")

    def overlay(self, flags: int = 0) -> Mount:
        """The layers under one writable one, mounted over that one's own directory: one less to make and remove."""
        lower = ":".join(_escaped(layer) for layer in reversed(self.layers))
        upper, work = _escaped(self.instance / "upper"), _escaped(self.instance / "work")
        data = f"lowerdir={lower},upperdir={upper},workdir={work}"
        return Mount(b"overlay", self.root, b"overlay", flags, os.fsencode(data))


@dataclass(frozen=True, slots=True)
class Bind:
    """A host path put at `target`. `file` says what to make where the image lacks it."""

    source: Path
    target: str
    read_only: bool = False
    file: bool = False

    def steps(self) -> Iterator[Step]:
        """After `PivotRoot`: the source is relative, so that it is looked up on the host."""
        target = os.fsencode(self.target)
        yield Mount(os.fsencode(self.source)[1:], target, None, MS_BIND | MS_REC, file=self.file)
        if self.read_only:
            yield Mount(None, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What the plan must know of the host, gathered once: which of its paths exist, which capabilities it has."""

    masked_files: tuple[str, ...]
    masked_directories: tuple[str, ...]
    read_only: tuple[str, ...]
    last_capability: int

    @classmethod
    def gather(cls, root: Path = Path("/")) -> HostFacts:
        """Look at the /proc and /sys below `root`."""

        def real(path: str) -> Path:
            return root / path.lstrip("/")

        return cls(
            masked_files=tuple(path for path in MASKED if real(path).exists() and not real(path).is_dir()),
            masked_directories=tuple(path for path in MASKED if real(path).is_dir()),
            read_only=tuple(path for path in READ_ONLY if real(path).exists()),
            last_capability=int(real("/proc/sys/kernel/cap_last_cap").read_text()),
        )


def image_plan(
    rootfs: Rootfs,
    program: Program,
    facts: HostFacts,
    *,
    hostname: str,
    join_files: Sequence[Path] = (),
    cgroup: Path | None = None,
    cgroup_mounts: Sequence[tuple[str, str]] = (),
    binds: Sequence[Bind] = (),
    tmpfs: Sequence[str] = (),
    files: Sequence[tuple[str, str]] = (),
    own_network: bool = True,
    devices_guarded: bool = True,
    seccomp: bytes | None = None,
    die_with_launcher: bool = True,
    streams: Sequence[tuple[int, int]] = (),
) -> Plan:
    """The launch of a container.

    It enters its cgroup first: by the v1 `join_files` or born in the v2 `cgroup`. `cgroup_mounts` are
    (v1 controllers, directory name) to show under /sys/fs/cgroup, one empty pair for v2. `files` are
    put over the image's: path and content. Where no cgroup guards the devices (`devices_guarded`),
    none can be made and those in the image cannot be opened.
    """
    parts: list[Step | Part] = [
        *(Write(os.fsencode(path), b"0") for path in join_files),
        # A slave sees what the host mounts later and tells it nothing; private would pin what the host unmounts.
        _ISOLATE,
        rootfs.overlay(0 if devices_guarded else MS_NODEV),
        PivotRoot(rootfs.root),
        *_files(files),
        _interior(tuple(cgroup_mounts), facts),
        *(step for bind in binds for step in bind.steps()),
        *(_tmpfs(target, MS_NOSUID | MS_NODEV) for target in tmpfs),
        Hostname(hostname.encode()),
    ]
    if own_network:
        parts.append(LoopbackUp())
    parts += [LeaveHost(os.fsencode(program.directory)), _confinement(facts, seccomp, devices_guarded)]
    if die_with_launcher:
        parts.append(DieWithParent())
    return Plan(
        namespaces=NAMESPACES | (CLONE_NEWNET if own_network else 0),
        parts=(*parts, program.step()),
        streams=tuple(streams),
        cgroup=None if cgroup is None else str(cgroup),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a container is put on this host.

    With `rootfs` an overlay is mounted; without, `config.root.path`, relative to `bundle`, is ready. It enters
    its cgroup by the v1 `join_files` or is born in the v2 `cgroup`; `cgroup_mounts` are what a mount of type
    cgroup shows: (v1 controllers, directory name), one empty pair for v2. Where no cgroup guards the devices,
    none can be made and those in the image cannot be opened. `files` are put over the image's: path and content.

    With `waits` the child stops before its root is pivoted and says `hooks` to its parent, which may then find
    its namespaces by its pid (hooks of the runtime, a network). `hold` is a FIFO at which it stops just before
    execve until somebody writes to it; it says `start` then.
    """

    rootfs: Rootfs | None = None
    bundle: Path = Path("/")
    join_files: tuple[Path, ...] = ()
    cgroup: Path | None = None
    cgroup_mounts: tuple[tuple[str, str], ...] = ()
    devices_guarded: bool = True
    files: tuple[tuple[str, str], ...] = ()
    waits: bool = False
    hold: Path | None = None
    die_with_launcher: bool = False


def container_plan(
    config: Config,
    place: Place,
    facts: HostFacts,
    *,
    seccomp: bytes | None,
    streams: Sequence[tuple[int, int]] = (),
    state: bytes = b"",
) -> Plan:
    """The launch of the container that `config` describes, at `place`.

    `seccomp` is the compiled program of `config.linux.seccomp`; `state` what hooks in the container get on their
    standard input. Raises UsageError naming the field that this host or runtime cannot do.
    """
    raise NotImplementedError


def exec_plan(
    config: Config,
    process: Process,
    pid: int,
    place: Place,
    facts: HostFacts,
    *,
    seccomp: bytes | None,
    streams: Sequence[tuple[int, int]] = (),
) -> Plan:
    """The launch of a further `process` in the container whose init is `pid`: its namespaces, cgroup, confinement."""
    raise NotImplementedError


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


_ISOLATE = Part((Unshare(CLONE_NEWCGROUP), Mount(None, b"/", None, MS_REC | MS_SLAVE)))
_BIND_READ_ONLY = MS_BIND | MS_REMOUNT | MS_RDONLY
_QUIET = MS_NOSUID | MS_NODEV | MS_NOEXEC


@lru_cache(maxsize=8)
def _interior(cgroup_mounts: tuple[tuple[str, str], ...], facts: HostFacts) -> Part:
    """What is the same in every container of this host."""
    return Part((*_system_mounts(cgroup_mounts), *_devices(), *_masks(facts)))


@lru_cache(maxsize=8)
def _confinement(facts: HostFacts, seccomp: bytes | None, devices_guarded: bool) -> Part:
    """Root with Docker's default capabilities, no way to more, and the filter."""
    kept = set(CAPABILITIES.values()) - (set() if devices_guarded else {CAPABILITIES["CAP_MKNOD"]})
    return Part(
        (
            Confine(
                uid=0,
                gid=0,
                groups=(),
                dropped=tuple(number for number in range(facts.last_capability + 1) if number not in kept),
                kept=capability_mask(kept),
                no_new_privileges=True,
                seccomp=seccomp,
            ),
        )
    )


def _files(files: Sequence[tuple[str, str]]) -> Iterator[Step]:
    """Small files bound over the image's, in a memory file system that /dev will hide."""
    if files:
        yield Mount(b"tmpfs", b"/dev", b"tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, b"mode=755,size=1024k")
    for number, (path, text) in enumerate(files):
        staged = b"/dev/%d" % number
        yield NewFile(staged, text.encode())
        yield Mount(staged, os.fsencode(path), None, MS_BIND, file=True)


def _system_mounts(cgroup_mounts: Sequence[tuple[str, str]]) -> Iterator[Step]:
    yield Mount(b"proc", b"/proc", b"proc", _QUIET)
    yield Mount(b"sysfs", b"/sys", b"sysfs", _QUIET | MS_RDONLY)
    if [name for _, name in cgroup_mounts] == [""]:
        yield Mount(b"cgroup", b"/sys/fs/cgroup", b"cgroup2", _QUIET | MS_RDONLY | MS_RELATIME)
    elif cgroup_mounts:
        yield Mount(b"tmpfs", b"/sys/fs/cgroup", b"tmpfs", _QUIET, b"mode=755")
        for controllers, name in cgroup_mounts:
            target = os.fsencode(f"/sys/fs/cgroup/{name}")
            yield Directory(target)
            yield Mount(b"cgroup", target, b"cgroup", _QUIET | MS_RDONLY | MS_RELATIME, controllers.encode())
        yield Mount(None, b"/sys/fs/cgroup", None, _BIND_READ_ONLY | _QUIET)


def _devices() -> Iterator[Step]:
    yield Mount(b"tmpfs", b"/dev", b"tmpfs", MS_NOSUID | MS_STRICTATIME, b"mode=755,size=65536k")
    for name, major, minor in DEVICES:
        yield CharacterDevice(os.fsencode(f"/dev/{name}"), major, minor)
    for target, name in DEVICE_LINKS:
        yield Link(os.fsencode(target), os.fsencode(f"/dev/{name}"))
    for name in ("pts", "shm", "mqueue"):
        yield Directory(os.fsencode(f"/dev/{name}"))
    yield Mount(b"devpts", b"/dev/pts", b"devpts", MS_NOSUID | MS_NOEXEC, b"newinstance,ptmxmode=0666,mode=0620,gid=5")
    yield _tmpfs("/dev/shm", _QUIET, f"mode=1777,size={SHM_BYTES}")  # noqa: S108
    yield Mount(b"mqueue", b"/dev/mqueue", b"mqueue", _QUIET)


def _masks(facts: HostFacts) -> Iterator[Step]:
    """Hidden behind the *host's* null device, which nothing in an image can replace."""
    for path in facts.masked_files:
        yield Mount(b"dev/null", os.fsencode(path), None, MS_BIND)
    for path in facts.masked_directories:
        yield _tmpfs(path, _QUIET | MS_RDONLY, "size=0k")
    for path in facts.read_only:
        yield ReadOnly(os.fsencode(path))


def _tmpfs(target: str, flags: int, data: str = "mode=1777") -> Mount:
    return Mount(b"tmpfs", os.fsencode(target), b"tmpfs", flags, data.encode())


def _escaped(path: Path) -> str:
    """A path inside overlay's options, where colon and comma separate and the backslash escapes."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")
