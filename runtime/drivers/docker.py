"""The `docker` driver: the Docker engine, the system that the claims are about.

The engine that answers on this host ($DOCKER_HOST or the default socket), else one of our own (`container.dockerd`).
Its containers are Docker's default ones with the limits of the specification; the image is loaded from our store, once,
untimed. What is timed is a request to create and one to start. The agent talks over a socket that is bound into the
container. Usage, limits and processes are read from the kernel. Not an engine elsewhere: a clock cannot be shared.
Nor the words in which an engine is asked (`container.dockerapi`).
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import Hierarchies, detect, open_cgroup
from runtime.cgroups.weights import bfq_weight
from runtime.channel import Channel
from runtime.command import program_facts
from runtime.container.dockerapi import DockerApi, installed
from runtime.container.dockerd import Engine, answers
from runtime.container.foreign import ForeignInstance, Holdings
from runtime.container.launching import AGENT
from runtime.container.leftovers import Leftovers
from runtime.container.specified import check_mounts
from runtime.driver import Driver, Host, Kind, Prepared
from runtime.errors import TareError
from runtime.images.store import ImageStore
from runtime.instance import Availability, DiskPaths, Instance, Timeline
from runtime.ledger import Ledger, make_directory, new_id, process_start
from runtime.linux.pidfd import Pidfd
from runtime.network.network import Networks
from runtime.spec import InstanceSpec, Limits, NetworkMode

DEFAULT_SOCKET = Path("/var/run/docker.sock")
CONNECT_TIMEOUT_S = 30.0  # from the engine's word that it has started a container to the agent's
_CHANNEL = "/run/tare-channel"
_LABEL = "org.tare.run"
_LEAST_BYTES = 6 << 20
_LEAST_IO_WEIGHT = 10


@dataclass(frozen=True, slots=True)
class PreparedDocker(Prepared):
    """The image's id in the engine, and what its containers are like."""

    image_id: str
    settings: dict[str, Any]
    data: Path


class DockerInstance(ForeignInstance):
    """One container of the engine."""

    def __init__(
        self,
        prepared: PreparedDocker,
        timeline: Timeline,
        holdings: Holdings,
        cgroup: Cgroup,
        *,
        disk: DiskPaths,
        engine: DockerApi,
    ) -> None:
        super().__init__(prepared.spec, timeline, holdings, cgroup)
        self._disk, self._engine = disk, engine

    def disk_paths(self) -> DiskPaths:
        """As the engine's storage driver says."""
        if not self._disk.shared:
            raise TareError(f"disk of {self.id}", "the engine does not say where its layers lie", "use overlay2")
        return self._disk

    def _freeze(self, frozen: bool) -> None:
        self._engine.freeze(self.id, frozen)


class DockerDriver(Driver):
    """Launches containers of a Docker engine on this host."""

    name = "docker"
    kind = Kind.CONTAINER

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._ledger = Ledger(host.run)
        self._networks = Networks(host.root, host.run)
        self._leftovers = Leftovers(self.name, self._ledger, self._networks)
        self._own = Engine(host, self.name)
        self._loaded: set[str] = set()
        self._engine: DockerApi | None = None

    @cached_property
    def _hierarchies(self) -> Hierarchies:
        return detect()

    # --- the engine

    def probe(self) -> Availability:
        """Whether an engine answers or could be started; none is started for the asking."""
        if os.geteuid() != 0:
            return Availability(False, "an engine and the cgroups of its containers need root", "run it as root")
        if not installed():
            return Availability(False, "the Python package docker is not installed", "pip install 'tare[docker]'")
        try:
            if self._engine is None and self._theirs() is None:
                return self._startable()
            facts = self._connected(start=False).facts()
            whose = "this host's" if self._theirs() is not None else "our own, started for the run"
        except TareError as error:
            return Availability(False, str(error), error.do)
        facts |= {"engine": whose, "called": "create and start by its API, timed as one"}
        return Availability(True, facts={**self._program(), **facts})

    def _startable(self) -> Availability:
        if shutil.which("dockerd") is None or shutil.which("unshare") is None:
            return Availability(
                False, "no engine answers here and dockerd is not installed", "apt-get install docker.io"
            )
        return Availability(True, facts={**self._program(), "engine": "our own, to be started for the run"})

    def _program(self) -> dict[str, str]:
        found = shutil.which("dockerd")
        return program_facts(Path(found)) if found is not None else {}

    def _theirs(self) -> Path | None:
        """The socket of the engine that this host has. Raises TareError where one is asked for that cannot be used."""
        wanted = os.environ.get("DOCKER_HOST", "")
        if wanted:
            path = Path(wanted.removeprefix("unix://"))
            if not wanted.startswith("unix://"):
                raise TareError(f"DOCKER_HOST={wanted}", "not a socket of this host", "unset it")
            if not answers(path):
                raise TareError(f"DOCKER_HOST={wanted}", "no engine answers there", "start it, or unset it")
            return path
        return DEFAULT_SOCKET if answers(DEFAULT_SOCKET) else None

    def _connected(self, *, start: bool) -> DockerApi:
        """The engine in use; with `start`, one of our own where the host has none."""
        if self._engine is None:
            path = self._theirs()
            if path is None:
                if start:
                    self._mend()  # an engine that a dead owner left is not for us to join
                    self._own.start()
                path = self._own.socket
            self._engine = DockerApi(path)
        return self._engine

    # --- preparing

    def prepare(self, spec: InstanceSpec) -> PreparedDocker:
        """Refuse what cannot be done, have an engine, load the image if it has not got it."""
        self._check(spec)
        self.host.root.mkdir(parents=True, exist_ok=True)
        store = ImageStore(self.host.root)
        image = store.resolve(spec.image)
        engine = self._connected(start=True)
        with store.using():
            if engine.load(store, image):
                self._loaded.add(image.id)
        data = engine.data()
        return PreparedDocker(spec, image.id, engine.settings(spec, data), data)

    def _check(self, spec: InstanceSpec) -> None:
        limits = spec.limits
        if spec.argv:
            raise TareError(f"command {spec.argv[0]}", "docker runs the guest agent only", "leave it out")
        if spec.network.mode not in (NetworkMode.NONE, NetworkMode.HOST):
            raise TareError(f"network {spec.network.mode}", "docker gives none of it here", "use none or host")
        if limits.memory_bytes is not None and limits.memory_bytes < _LEAST_BYTES:
            raise TareError("limit memory_bytes", f"docker takes no less than {_LEAST_BYTES >> 20} MiB", "raise it")
        if limits.io_weight is not None and bfq_weight(limits.io_weight) < _LEAST_IO_WEIGHT:
            raise TareError("limit io_weight", f"docker takes no less than {_LEAST_IO_WEIGHT}", "raise it")
        check_mounts(spec)

    # --- launching

    def launch(self, prepared: Prepared) -> Instance:
        """Create and start; whatever fails, everything made until then is removed."""
        assert isinstance(prepared, PreparedDocker)
        engine = self._connected(start=True)
        timeline = Timeline()
        timeline.stamp("request")
        instance_id = new_id()
        directory = self.host.run / "channels" / instance_id
        holdings = Holdings(self._ledger.open(instance_id, self.name), lambda: engine.remove(instance_id))
        try:
            holdings.note("dir", str(directory))
            make_directory(directory)
            with _listening(directory / "channel") as listener:
                self._create(engine, prepared, instance_id, directory / "channel")
                peer = _start(engine, instance_id, listener, timeline, holdings)
            pid, disk = engine.inspect(instance_id)
            if pid != peer:
                raise TareError("docker inspect", f"it says that process {pid} runs, and process {peer} does")
            holdings.process = Pidfd.of(pid)
            holdings.note("pid", f"{pid}:{process_start(pid)}")
            cgroup = self._cgroup_of(pid, prepared)
            return DockerInstance(prepared, timeline, holdings, cgroup, disk=disk, engine=engine)
        except BaseException:
            with suppress(TareError):
                holdings.give_back(search=True)
            raise

    def _create(self, engine: DockerApi, prepared: PreparedDocker, instance_id: str, channel: Path) -> None:
        spec = prepared.spec
        host_mode = spec.network.mode is NetworkMode.HOST
        engine.create(
            instance_id,
            prepared.image_id,
            (AGENT, "--connect", _CHANNEL),
            hostname=None if host_mode else spec.hostname or instance_id,
            env=dict(spec.env),
            labels={_LABEL: str(self.host.run)},
            settings={**prepared.settings, "Binds": [*prepared.settings["Binds"], f"{channel}:{_CHANNEL}"]},
        )

    def _cgroup_of(self, pid: int, prepared: PreparedDocker) -> Cgroup:
        """Where the engine has put it, by the kernel's word."""
        rows = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        paths = {name: path for _, names, path in rows for name in names.split(",")}
        place = PurePosixPath(paths.get("memory", paths.get("", "/")))
        limits = prepared.spec.limits
        return open_cgroup(
            place.name,
            limits,
            io_path=prepared.data if _wants_io(limits) else None,
            parent=str(place.parent).lstrip("/"),
            hierarchies=self._hierarchies,
        )

    # --- what a dead owner left

    def leftovers(self) -> list[str]:
        """Containers that bear our label and have no living owner; what else pages of dead owners tell."""
        with self._reachable() as engines:
            containers = [f"{name}: container" for engine in engines for name in self._orphans(engine)]
        return [*containers, *self._leftovers.lines()]

    def sweep(self) -> list[str]:
        """Remove these, and what an engine of our own keeps for its next start."""
        removed = [*self._mend(), *self._own.forget()]
        if self._engine is not None and self._theirs() is None and not answers(self._own.socket):
            self._engine = None  # it was that of an engine whose owner is dead
        return removed

    def _mend(self) -> list[str]:
        removed = []
        with self._reachable() as engines:
            for engine in engines:
                for name in self._orphans(engine):
                    engine.remove(name)
                    removed.append(f"{name}: container")
        return [*removed, *self._leftovers.sweep()]

    def _orphans(self, engine: DockerApi) -> list[str]:
        names = engine.labelled(_LABEL, str(self.host.run))
        living = {instance_id for instance_id, _ in self._ledger.live()}
        return [name for name in names if name not in living]

    @contextmanager
    def _reachable(self) -> Iterator[list[DockerApi]]:
        """Each engine that may have containers of ours."""
        if self._engine is not None or not installed():
            yield [] if self._engine is None else [self._engine]
            return
        sockets = [path for path in (self._theirs(), self._own.socket) if path is not None and answers(path)]
        with ExitStack() as stack:
            engines = [DockerApi(path) for path in sockets]
            for engine in engines:
                stack.callback(engine.close)
            yield engines

    def close(self) -> None:
        """End our own engine; take the image out of the host's."""
        engine, self._engine = self._engine, None
        try:
            if engine is not None and self._loaded and self._theirs() is not None:
                for image_id in self._loaded:
                    engine.unload(image_id)
        finally:
            if engine is not None:
                engine.close()
            self._own.stop()
            self._networks.close()


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        path.chmod(0o666)  # whoever the container's user is; its directory is root's alone
        listener.listen(1)
        yield listener


def _start(engine: DockerApi, instance_id: str, listener: socket.socket, timeline: Timeline, holdings: Holdings) -> int:
    """Start it, and stamp when its process is first heard of: the engine's own word comes later. Returns its pid."""
    problems: list[TareError] = []
    said = os.eventfd(0)

    def ask() -> None:
        try:
            engine.start(instance_id)
        except TareError as error:
            problems.append(error)
        finally:
            os.eventfd_write(said, 1)

    asking = threading.Thread(target=ask, name="tare-docker-start", daemon=True)
    asking.start()
    try:
        heard = listener.fileno() in select.select([listener.fileno(), said], [], [])[0]
        if not heard and not problems:
            heard = _heard(engine, instance_id, listener)
        if heard:
            connection, _ = listener.accept()
            timeline.stamp("spawned")
            peer = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            holdings.channel = Channel(connection, timeline, lambda: engine.tail(instance_id))
    finally:
        asking.join()
        os.close(said)
    if problems:
        raise problems[0]
    if not heard:
        raise TareError("docker start", f"it said success and nothing runs. {engine.tail(instance_id)}".strip())
    return int(peer)


def _heard(engine: DockerApi, instance_id: str, listener: socket.socket) -> bool:
    """Whether the agent comes, now that the engine says that it runs."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while time.monotonic() < deadline:
        if select.select([listener], [], [], min(1.0, CONNECT_TIMEOUT_S))[0]:
            return True
        if not engine.runs(instance_id):
            return False
    return False


def _wants_io(limits: Limits) -> bool:
    return any(limit is not None for limit in (limits.io_read_bps, limits.io_write_bps, limits.io_weight))
