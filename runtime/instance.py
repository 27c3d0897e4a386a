"""A running instance as its users see it, whatever launched it: timeline, commands, usage, end.

Not how any backend works; a driver returns a subclass of `Instance`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType

from runtime.errors import TareError
from runtime.record import field, ordered_record, record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Timeline:
    """What happened when, in nanoseconds of the host's CLOCK_MONOTONIC, in the order it was stamped.

    The names, as far as a backend can see them: request, disk (its writable layer is there), spawned, firmware,
    kernel, userland, ready, answered (its first command or ping), closing (its end was asked for), stopped,
    removed. A phase that cannot be seen is absent, never guessed.
    """

    def __init__(self) -> None:
        self._events: dict[str, int] = {}

    def stamp(self, name: str, at_ns: int | None = None) -> int:
        """Record `name` at `at_ns` (now, if not given) and return that time. The first stamp of a name stands."""
        return self._events.setdefault(name, time.monotonic_ns() if at_ns is None else at_ns)

    def between_ns(self, first: str, last: str) -> int | None:
        """Nanoseconds from `first` to `last`, or None when either was not seen."""
        if first in self._events and last in self._events:
            return self._events[last] - self._events[first]
        return None

    def events(self) -> tuple[tuple[str, int], ...]:
        """All events as (name, monotonic_ns), earliest first."""
        return tuple(sorted(self._events.items(), key=lambda item: item[1]))

    def __contains__(self, name: str) -> bool:
        return name in self._events

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.events())


@ordered_record
class ExecResult:
    """One command run inside an instance.

    `exit_code` is the command's, or 128 + the signal that ended it, or 126/127 when it could not be
    executed. `elapsed_ns` is host time from sending the request to learning the exit.
    """

    argv: tuple[str, ...]
    exit_code: int
    stdout: bytes
    stderr: bytes
    elapsed_ns: int

    def check(self) -> Self:
        """Return self, or raise TareError with the command and the end of its stderr if it failed."""
        if self.exit_code != 0:
            tail = self.stderr.decode(errors="replace").strip()[-400:] or "no error output"
            raise TareError(f"command {' '.join(self.argv)!r}", f"exit {self.exit_code}: {tail}")
        return self


@record
class Usage:
    """What the whole instance has used, seen from the host (a VM's is its QEMU process's).

    `cpu_ns` and the I/O bytes are totals since the start; the memory figures are now. A figure the
    backend cannot give is None. `method` says where they come from: `cgroup v1`, `cgroup v2`, `procfs`.
    """

    method: str
    cpu_ns: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    pss_bytes: int | None = None
    pids: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None


@ordered_record
class DiskPaths:
    """Host paths whose blocks an instance occupies.

    `shared` is used by every instance of the image (unpacked layers, base disk, kernel); `exclusive`
    belongs to this instance alone (writable layer, disk overlay).
    """

    shared: tuple[Path, ...] = ()
    exclusive: tuple[Path, ...] = ()


@ordered_record
class LimitReading:
    """One limit as the host really holds it: what was `asked`, what was `read` back, and from `source`."""

    name: str
    asked: str
    read: str
    source: str
    holds: bool


class Instance(ABC):
    """A live instance. A context manager; `close()` stops it, removes it and proves that nothing is left."""

    id: str
    timeline: Timeline

    @abstractmethod
    def host_pids(self) -> tuple[int, ...]:
        """The instance's processes as the host numbers them (for a VM: QEMU's)."""

    @abstractmethod
    def wait_ready(self, timeout_s: float) -> None:
        """Block on the instance's own signal until it is ready as its spec defines it.

        Raises TareError on time-out or when it died before, with the end of its console or stderr.
        """

    @abstractmethod
    def exec(self, argv: Sequence[str], timeout_s: float) -> ExecResult:
        """Run `argv` inside and wait. May be called from several threads at once.

        Raises TareError when the time is over (the command is killed first) or the instance is gone.
        """

    @abstractmethod
    def usage(self) -> Usage:
        """What the instance has used until now, without executing anything inside it."""

    @abstractmethod
    def disk_paths(self) -> DiskPaths:
        """Where on the host its bytes lie."""

    @abstractmethod
    def limit_readings(self) -> tuple[LimitReading, ...]:
        """Every limit of the spec, read back from where the host enforces it; empty for the native baseline."""

    @abstractmethod
    def alive(self) -> bool:
        """Whether its main process still runs."""

    @abstractmethod
    def pause(self) -> None:
        """Freeze every process of the instance; returns when all are frozen."""

    @abstractmethod
    def resume(self) -> None:
        """Thaw a paused instance."""

    @abstractmethod
    def close(self) -> None:
        """Stop and remove the instance; stamps `stopped` and `removed`. Safe to call twice.

        Raises TareError naming what is left if the host was not given back as it was.
        """

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


@ordered_record
class Availability:
    """Whether a driver works on this host and, where it does not, the reason and its mend.

    `facts` are the versions, hashes and modes that belong beside its figures.
    """

    usable: bool
    reason: str = ""
    mend: str = ""
    facts: dict[str, str] = field(default_factory=dict)
