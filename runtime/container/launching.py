"""What the two drivers on top of the launcher share: preparing, launching without leaks, sweeping.

Not a driver itself.
"""

from __future__ import annotations

import dataclasses
import os
import socket
from abc import abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runtime.channel import Channel
from runtime.container import storage
from runtime.container.client import LauncherClient
from runtime.container.instance import Holdings, LaunchedInstance
from runtime.container.leftovers import Leftovers
from runtime.container.plan import Plan, Program
from runtime.driver import Driver, Host, Prepared
from runtime.errors import TareError
from runtime.images.store import ImageStore
from runtime.instance import Instance, Timeline
from runtime.ledger import Ledger, new_id, process_start
from runtime.network.network import Networks
from runtime.spec import InstanceSpec

AGENT = "/usr/lib/tare/agent"
AGENT_FD = 3
REHEARSAL_TIMEOUT_S = 10.0
# As sent to the launcher: the console, then (if the agent runs) its end of the channel.
CONSOLE_STREAMS = ((0, 1), (0, 2))
AGENT_STREAMS = (*CONSOLE_STREAMS, (1, AGENT_FD))


@dataclass(frozen=True, slots=True)
class PreparedImage(Prepared):
    """The image's layers, topmost last, its configuration, and the program to execute, that configuration applied."""

    layers: tuple[Path, ...]
    config: Mapping[str, Any]
    program: Program
    streams: tuple[tuple[int, int], ...]


class LauncherDriver(Driver):
    """A driver whose instances are children of one launcher process."""

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.launcher = LauncherClient()
        self.networks = Networks(host.root, host.run)
        self._ledger = Ledger(host.run)
        self._leftovers = Leftovers(self.name, self._ledger, self.networks)
        self._images_used = ExitStack()

    def prepare(self, spec: InstanceSpec) -> PreparedImage:
        """Resolve the image, check what the driver can do, start the launcher."""
        self.check(spec)
        store = ImageStore(self.host.root)
        before = self._images_used.pop_all()
        self._images_used.enter_context(store.using())  # nobody removes layers from under what will be launched
        before.close()
        image = store.resolve(spec.image)
        config = image.config.get("config") or {}
        env = tuple(tuple(word.split("=", 1)) for word in config.get("Env") or () if "=" in word)
        argv = spec.argv or (AGENT, "--fd", str(AGENT_FD))
        self.launcher.start()
        (self.host.root / "instances").mkdir(parents=True, exist_ok=True, mode=0o700)
        return PreparedImage(
            spec=spec,
            layers=tuple(layer.directory for layer in image.layers),
            config=image.config,
            program=Program(argv, (*env, *spec.env), config.get("WorkingDir") or "/"),
            streams=CONSOLE_STREAMS if spec.argv else AGENT_STREAMS,
        )

    @abstractmethod
    def check(self, spec: InstanceSpec) -> None:
        """Raise TareError naming the first thing in `spec` that this driver cannot do."""

    @abstractmethod
    def equip(self, prepared: PreparedImage, holdings: Holdings) -> Plan:
        """Make what the instance needs on the host, noting each thing first, and the plan of its launch."""

    @abstractmethod
    def instance(self, prepared: PreparedImage, timeline: Timeline, holdings: Holdings) -> LaunchedInstance:
        """The handle of an instance that runs."""

    def launch(self, prepared: Prepared) -> Instance:
        """Note, equip, clone; whatever fails, everything made until then is removed."""
        assert isinstance(prepared, PreparedImage)
        timeline = Timeline()
        timeline.stamp("request")
        instance_id = new_id()
        entry = self._ledger.open(instance_id, self.name)
        holdings = Holdings(entry, self.host.root / "instances" / instance_id)
        try:
            entry.note("dir", str(holdings.directory))
            plan = self.equip(prepared, holdings)
            self._clone(plan, prepared, timeline, holdings)
            return self.instance(prepared, timeline, holdings)
        except BaseException:
            with suppress(TareError):
                holdings.give_back()
            raise

    def rehearse(self, equip: Callable[[Holdings], Plan]) -> str:
        """Carry out the plan that `equip` makes, all but its program, and remove everything: why not, or nothing."""
        (self.host.root / "instances").mkdir(parents=True, exist_ok=True, mode=0o700)
        instance_id = new_id()
        holdings = Holdings(self._ledger.open(instance_id, self.name), self.host.root / "instances" / instance_id)
        try:
            holdings.entry.note("dir", str(holdings.directory))
            plan = equip(holdings)
            child = holdings.child = self.launcher.launch(dataclasses.replace(plan, parts=plan.parts[:-1]), [])
            ended = child.wait(REHEARSAL_TIMEOUT_S)
            return "" if ended and child.exit_code == 0 else f"a launch without a program ended with {child.exit_code}"
        finally:
            holdings.give_back()

    def _clone(self, plan: Plan, prepared: PreparedImage, timeline: Timeline, holdings: Holdings) -> None:
        console = os.open(
            holdings.directory / storage.CONSOLE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        descriptors, theirs = [console], None
        try:
            if not prepared.spec.argv:
                ours, theirs = socket.socketpair()
                descriptors.append(theirs.fileno())
                holdings.channel = Channel(ours, timeline, lambda: _tail(holdings))
            child = holdings.child = self.launcher.launch(plan, descriptors)
        finally:
            os.close(console)
            if theirs is not None:
                theirs.close()
        timeline.stamp("spawned", child.spawned_ns)
        if prepared.spec.argv:
            timeline.stamp("userland", child.executed_ns)
        holdings.entry.note("pid", f"{child.pid}:{process_start(child.pid)}")

    def leftovers(self) -> list[str]:
        """What is still there of instances whose owner is dead."""
        return self._leftovers.lines()

    def sweep(self) -> list[str]:
        """Kill, remove and strike out, instance by instance."""
        return self._leftovers.sweep()

    def own_cpu_s(self) -> float:
        """What the launcher has used."""
        return self.launcher.cpu_s()

    def close(self) -> None:
        """End the launcher, and networks that nobody uses any more."""
        self.launcher.close()
        self._images_used.close()
        self.networks.retire()
        self.networks.close()


def _tail(holdings: Holdings) -> str:
    try:
        return (holdings.directory / storage.CONSOLE).read_text(errors="replace")[-400:]
    except OSError:
        return ""
