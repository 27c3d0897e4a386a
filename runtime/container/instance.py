"""An instance that the launcher cloned, with all that the host must get back for it.

What containers and the native baseline have in common; what tells them apart is in their drivers.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.cgroups.cgroup import Cgroup
from runtime.channel import Channel
from runtime.container import storage
from runtime.container.client import Child
from runtime.container.freezing import Freezable
from runtime.errors import TareError
from runtime.instance import DiskPaths, ExecResult, LimitReading, Timeline
from runtime.ledger import Entry
from runtime.spec import InstanceSpec, Ready

STOP_TIMEOUT_S = 2.0
KILL_TIMEOUT_S = 10.0
_TAIL_BYTES = 2000


@dataclass(slots=True)
class Holdings:
    """Everything on the host that belongs to one instance; filled while it is launched, given back at its end."""

    entry: Entry
    directory: Path
    cgroup: Cgroup | None = None
    child: Child | None = None
    channel: Channel | None = None
    disconnect: Callable[[], None] | None = None

    def give_back(self) -> None:
        """Remove all of it and strike out the ledger's page. Raises TareError naming what could not be removed."""
        left: list[str] = []
        if self.channel is not None:
            self.channel.close()
        if self.child is not None:
            self.child.kill(signal.SIGKILL)
            wait, group = self.child.wait, self.cgroup
            if not (wait(KILL_TIMEOUT_S) if group is None else group.await_end(wait, KILL_TIMEOUT_S)):
                left.append(f"process {self.child.pid}")
            self.child.close()
        if self.disconnect is not None:
            try:
                self.disconnect()
            except (TareError, OSError) as error:
                left.append(str(error))
        if self.cgroup is not None:
            try:
                self.cgroup.remove()
            except (TareError, OSError) as error:
                left.append(str(error))
        storage.remove(str(self.directory))
        if self.directory.exists():
            left.append(f"directory {self.directory}")
        self.entry.close(gone=not left)
        if left:
            raise TareError(f"removing {self.entry.id}", f"left behind: {'; '.join(left)}", "run: tare clean")


class LaunchedInstance(Freezable):
    """A child of the launcher, talked to through the guest agent when it is the agent that runs."""

    def __init__(self, spec: InstanceSpec, timeline: Timeline, holdings: Holdings, layers: Sequence[Path]) -> None:
        assert holdings.child is not None
        self.id = holdings.entry.id
        self.timeline = timeline
        self.spec = spec
        self._holdings = holdings
        self._child = holdings.child
        self._layers = tuple(layers)
        self._closed = False

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the agent's word; without an agent, the program has been executing since `launch` returned."""
        channel = self._holdings.channel
        if channel is None:
            if not self.alive() and self._child.exit_code not in (None, 0):
                raise TareError(f"instance {self.id}", f"ended with {self._child.exit_code}: {self.console_tail()}")
        elif self.spec.ready is not Ready.SPAWNED:
            channel.wait("userland" if self.spec.ready is Ready.USERLAND else "ready", timeout_s)

    def exec(self, argv: Sequence[str], timeout_s: float) -> ExecResult:
        """Through the agent."""
        if self._holdings.channel is None:
            raise TareError(f"exec in {self.id}", "it runs a program of its own, not the agent", "give no command")
        if self._closed:
            raise TareError(f"exec in {self.id}", "the instance was closed")
        return self._holdings.channel.exec(argv, timeout_s)

    def alive(self) -> bool:
        """Asked of the pidfd."""
        return not self._closed and self._child.alive()

    def wait_ended(self, timeout_s: float) -> int | None:
        """The main process's exit code (128 + signal), or None when it still runs after `timeout_s`."""
        return self._child.exit_code if self._child.wait(timeout_s) else None

    def disk_paths(self) -> DiskPaths:
        """The image's layers; the instance's own directory."""
        return DiskPaths(shared=self._layers, exclusive=(self._holdings.directory,))

    def limit_readings(self) -> tuple[LimitReading, ...]:
        """From the cgroup, where there is one."""
        return () if self._holdings.cgroup is None else self._holdings.cgroup.readings(self.spec.limits)

    def console_tail(self) -> str:
        """The end of what its main process printed."""
        try:
            text = (self._holdings.directory / storage.CONSOLE).read_bytes()
        except OSError:
            return ""
        return text[-_TAIL_BYTES:].decode(errors="replace").strip()

    def close(self) -> None:
        """Ask the agent to end, kill what does not, give everything back."""
        if self._closed:
            return
        if self.alive():
            with suppress(TareError, OSError):
                self.resume()
            if self._holdings.channel is not None:
                self._holdings.channel.stop()
                self._child.wait(STOP_TIMEOUT_S)
        self._closed = True
        try:
            self._end_processes()
        finally:
            try:
                self._holdings.give_back()
            finally:
                self.timeline.stamp("stopped", self._child.stopped_ns)
        self.timeline.stamp("removed")

    def _end_processes(self) -> None:
        """Kill what the end of the main process does not end by itself."""
