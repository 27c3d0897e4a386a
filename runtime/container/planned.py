"""What a launch is made of, as values: plans and their shared parts, programs, root file systems, places, the host.

How a plan comes out of a configuration is `plan`.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Iterable, Iterator
from functools import cached_property, lru_cache
from pathlib import Path

from runtime.container.becoming import Execute
from runtime.container.mounting import Mount, Overlay
from runtime.container.outside import Outside
from runtime.container.processplan import PATH
from runtime.container.program import Entry, entries_of, program
from runtime.container.rootplan import KnownPaths
from runtime.container.spawning import Flat
from runtime.container.stepping import Step
from runtime.container.steps import to_row
from runtime.container.system import MASKED, READ_ONLY
from runtime.linux.syscalls import MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT
from runtime.record import ordered_record, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

DEFAULT_ENV = {"PATH": PATH, "HOME": "/root"}


class Part:
    """Steps that many plans share. They travel as the same bytes each time, which the launcher decodes once."""

    def __init__(self, steps: Iterable[Step]) -> None:
        self.steps = tuple(steps)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """The steps as a child carries them out."""
        return program(self.steps)

    @cached_property
    def encoded(self) -> bytes:
        """The steps' rows."""
        return marshal.dumps(tuple(to_row(step) for step in self.steps))


@ordered_record
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
    outside: Outside | None = None
    target: int = 0
    links: tuple[bytes, ...] = ()
    user: str = ""

    @property
    def steps(self) -> tuple[Step, ...]:
        """Every step, in order."""
        return tuple(step for part in self.parts for step in (part.steps if isinstance(part, Part) else (part,)))

    def describe(self) -> str:
        """The plan, a line a step."""
        lines = [f"be born in {path}" for path, _ in (*self.enter, (self.user, 0)) if path]
        lines.append(f"clone3 {self.namespaces:#x}" + (f" into {self.cgroup}" if self.cgroup else ""))
        if self.outside is not None:
            lines.append(f"outside: {self.outside}")
        return "\n".join([*lines, *(step.describe() for step in self.steps)])

    def encode(self, token: int) -> bytes:
        """One message for the launcher, answered under `token`."""
        parts = tuple(part.encoded if isinstance(part, Part) else (to_row(part),) for part in self.parts)
        return marshal.dumps((token, *self._head(), parts))

    def flat(self) -> Flat:
        """The plan for `spawning.spawn`, which carries it out."""
        entries: list[Entry] = []
        for part in self.parts:
            entries += part.entries if isinstance(part, Part) else entries_of(part)
        return Flat(self.steps, tuple(entries), *self._head())

    def _head(self) -> tuple[Any, ...]:
        outside = None if self.outside is None else self.outside.to_row()
        return self.namespaces, self.cgroup, self.streams, self.enter, outside, self.target, self.links, self.user


@ordered_record
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


@lru_cache(maxsize=64)
def _encoded(layers: tuple[Path, ...]) -> tuple[bytes, ...]:
    return tuple(os.fsencode(layer) for layer in reversed(layers))


@ordered_record
class Rootfs:
    """An image's layers, topmost last, and the instance's own directory with `upper` and `work` in it."""

    layers: tuple[Path, ...]
    instance: Path

    @property
    def root(self) -> bytes:
        """Where the root file system is mounted before it becomes the root."""
        return os.fsencode(self.instance / "upper")

    @property
    def names(self) -> tuple[bytes, ...]:
        """The layers as an overlay takes them, topmost first."""
        return _encoded(self.layers)

    def overlay(self, flags: int = 0) -> Mount | Overlay:
        """The layers under one writable one, mounted over that one's own directory: one less to make and remove."""
        wanted = Overlay(self.names, os.fsencode(self.instance), flags)
        options = wanted.options()
        return wanted if options is None else Mount(b"overlay", wanted.root, b"overlay", flags, options)


@ordered_record
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


@record
class HostFacts:
    """What the plan must know of the host, gathered once: which of its paths exist, which capabilities it has.

    `lacking` are those that the kernel knows but this process does not have: a container inside a container.
    `given_up` is not the host's doing: those that whoever will clone drops first, by `spawning.get_ready`.
    """

    masked_files: tuple[str, ...]
    masked_directories: tuple[str, ...]
    read_only: tuple[str, ...]
    last_capability: int
    lacking: frozenset[int] = frozenset()
    given_up: frozenset[int] = frozenset()

    @classmethod
    def gather(cls, root: Path = Path("/"), *, given_up: Iterable[int] = ()) -> HostFacts:
        """Look at the /proc and /sys below `root`."""

        def real(path: str) -> Path:
            return root / path.lstrip("/")

        last = int(real("/proc/sys/kernel/cap_last_cap").read_text())
        return cls(
            masked_files=tuple(path for path in MASKED if real(path).exists() and not real(path).is_dir()),
            masked_directories=tuple(path for path in MASKED if real(path).is_dir()),
            read_only=tuple(path for path in READ_ONLY if real(path).exists()),
            last_capability=last,
            lacking=_lacking(real("/proc/self/status"), last),
            given_up=frozenset(given_up),
        )

    def known(self) -> KnownPaths:
        """The same for `rootplan`."""
        return KnownPaths(
            files=frozenset(self.masked_files) | {path for path in self.read_only if path == "/proc/sysrq-trigger"},
            directories=frozenset(self.masked_directories) | frozenset(self.read_only) - {"/proc/sysrq-trigger"},
            all=frozenset(MASKED) | frozenset(READ_ONLY),
        )


@record
class Place:
    """Where a container is put on this host.

    With `rootfs` an overlay is mounted; without, `config.root.path`, relative to `bundle`, is ready. It enters
    its cgroup by the v1 `join_files` or is born in the v2 `cgroup`; `cgroup_mounts` are what a mount of type
    cgroup shows: (v1 controllers, directory name), one empty pair for v2; without a cgroup namespace v1 shows its
    `cgroup_directories` instead: (host directory, name), and else the host's whole tree. Where no cgroup guards the
    devices, none can be made and those in the image cannot be opened. `files` are put over the image's: path and
    content.

    With `waits` the child stops before its root is pivoted and says `hooks` to its parent, which may then find
    its namespaces by its pid (hooks of the runtime, a network). `hold` is a FIFO, made before, at which it stops
    just before execve until `spawning.release`; it says `start` then. `keyring` gives it a session keyring.
    """

    rootfs: Rootfs | None = None
    bundle: Path = Path("/")
    join_files: tuple[Path, ...] = ()
    cgroup: Path | None = None
    cgroup_mounts: tuple[tuple[str, str], ...] = ()
    cgroup_directories: tuple[tuple[str, str], ...] = ()
    devices_guarded: bool = True
    files: tuple[tuple[str, str], ...] = ()
    waits: bool = False
    hold: Path | None = None
    keyring: bool = True
    die_with_launcher: bool = False


def _lacking(status: Path, last: int) -> frozenset[int]:
    """The capabilities up to `last` that a process does not have by its /proc file; none where there is no file."""
    fields = dict(line.split(":\t", 1) for line in status.read_text().splitlines() if ":\t" in line)
    held = int(fields["CapPrm"], 16) & int(fields["CapBnd"], 16)
    return frozenset(number for number in range(last + 1) if not held & 1 << number)
