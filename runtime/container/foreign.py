"""An instance that somebody else's runtime or engine made; its agent, process and cgroup are ours to see.

What the drivers of comparators have in common; how each asks its runtime is in their files. Usage, limits and
processes are read from the kernel by the reader that every driver uses, never asked of the runtime.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from runtime.cgroups.cgroup import Cgroup
from runtime.channel import Channel
from runtime.container.freezing import Freezable
from runtime.container.instance import STOP_TIMEOUT_S
from runtime.container.leftovers import present, remove, standing
from runtime.errors import TareError
from runtime.instance import ExecResult, LimitReading, Timeline, Usage
from runtime.ledger import Entry, Resource
from runtime.linux import procfs
from runtime.linux.pidfd import Pidfd
from runtime.spec import InstanceSpec, Ready


@dataclass(slots=True)
class Holdings:
    """Everything on the host that belongs to one instance; filled while it is launched, given back at its end.

    `destroy` has the runtime remove what it made, in whatever state that is; it raises TareError where it cannot.
    """

    entry: Entry
    destroy: Callable[[], None]
    noted: list[Resource] = field(default_factory=list)
    channel: Channel | None = None
    process: Pidfd | None = None

    def note(self, kind: str, value: str) -> None:
        """Write down what is about to exist."""
        self.noted.append(Resource(kind, value))
        self.entry.note(kind, value)

    def give_back(self, *, search: bool) -> None:
        """Remove all of it and strike out the page; with `search`, also what a runtime that failed left running.

        Raises TareError naming what could not be removed.
        """
        complaint = ""
        if self.channel is not None:
            self.channel.close()
        try:
            self.destroy()
        except TareError as error:
            complaint = str(error)
        left = []
        try:
            remove(list((present if search else standing)(self.noted)))
            left = [f"{item.kind} {item.value}" for item in standing(self.noted)]
        except (TareError, OSError) as error:
            left = [str(error)]
        if self.process is not None:
            self.process.close()
        self.entry.close(gone=not left)
        if left:
            raise TareError(
                f"removing {self.entry.id}",
                f"left behind: {'; '.join(left)}{complaint and f' ({complaint})'}",
                "run: tare clean",
            )
        if complaint and not search:
            raise TareError(f"removing {self.entry.id}", complaint)


class ForeignInstance(Freezable):
    """A running container of another runtime."""

    def __init__(self, spec: InstanceSpec, timeline: Timeline, holdings: Holdings, cgroup: Cgroup) -> None:
        assert holdings.channel is not None
        assert holdings.process is not None
        self.id = holdings.entry.id
        self.timeline = timeline
        self.spec = spec
        self._holdings = holdings
        self._channel = holdings.channel
        self._process = holdings.process
        self._cgroup = cgroup
        self._closed = False

    def host_pids(self) -> tuple[int, ...]:
        """What the cgroup holds."""
        return self._cgroup.pids()

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the agent's word."""
        if self.spec.ready is not Ready.SPAWNED:
            self._channel.wait("userland" if self.spec.ready is Ready.USERLAND else "ready", timeout_s)

    def exec(self, argv: Sequence[str], timeout_s: float) -> ExecResult:
        """Through the agent: the runtime's own way would be a difference between drivers."""
        if self._closed:
            raise TareError(f"exec in {self.id}", "the instance was closed")
        return self._channel.exec(argv, timeout_s)

    def usage(self) -> Usage:
        """The cgroup's accounting, and the processes' proportional set size."""
        return dataclasses.replace(self._cgroup.usage(), pss_bytes=procfs.pss_bytes(self.host_pids()))

    def limit_readings(self) -> tuple[LimitReading, ...]:
        """From the cgroup."""
        return self._cgroup.readings(self.spec.limits)

    def alive(self) -> bool:
        """Asked of the pidfd."""
        return not self._closed and not self._process.wait(0)

    def close(self) -> None:
        """Ask the agent to end, have the runtime remove the container, prove that nothing is left."""
        if self._closed:
            return
        if self.alive():
            with suppress(TareError, OSError):
                self.resume()
            self._channel.stop()
            if self._process.wait(STOP_TIMEOUT_S):
                self.timeline.stamp("stopped")
        self._closed = True
        try:
            self._holdings.give_back(search=False)
        finally:
            self.timeline.stamp("stopped")
        self.timeline.stamp("removed")
