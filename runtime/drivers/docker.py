"""The `docker` driver: the Docker engine, the system that the claims are about, asked through docker-py.

The engine that answers on this host ($DOCKER_HOST or the default socket), else one of our own (`container.dockerd`).
Its containers are Docker's default ones with the limits of the specification; the image is loaded from our store, once,
untimed. What is timed is a request to create and one to start. The agent talks over a socket that is bound into the
container. Usage, limits and processes are read from the kernel. Not an engine elsewhere: a clock cannot be shared.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import Hierarchies, detect, io_device, open_cgroup
from runtime.cgroups.weights import bfq_weight, cpu_shares
from runtime.channel import Channel
from runtime.command import program_facts
from runtime.container.dockerd import Engine, answers
from runtime.container.foreign import ForeignInstance, Holdings
from runtime.container.launching import AGENT
from runtime.container.leftovers import Leftovers
from runtime.container.specified import check_mounts
from runtime.driver import Driver, Host, Kind, Prepared
from runtime.errors import TareError, printable
from runtime.images.store import Image, ImageStore
from runtime.instance import Availability, DiskPaths, Instance, Timeline
from runtime.ledger import Ledger, make_directory, new_id, process_start
from runtime.linux.pidfd import Pidfd
from runtime.network.network import Networks
from runtime.spec import InstanceSpec, Limits, MountKind, NetworkMode

DEFAULT_SOCKET = Path("/var/run/docker.sock")
REQUEST_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 30.0  # from the engine's word that it has started a container to the agent's
_CHANNEL = "/run/tare-channel"
_LABEL = "org.tare.run"
_LEAST_BYTES = 6 << 20
_LEAST_IO_WEIGHT = 10
_MISSING = 404


@dataclass(frozen=True, slots=True)
class PreparedDocker(Prepared):
    """The image's id in the engine, and what its containers are like."""

    image_id: str
    host_config: dict[str, Any]
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
        freeze: Callable[[bool], None],
    ) -> None:
        super().__init__(prepared.spec, timeline, holdings, cgroup)
        self._disk, self._freeze_it = disk, freeze

    def disk_paths(self) -> DiskPaths:
        """As the engine's storage driver says."""
        if not self._disk.shared:
            raise TareError(f"disk of {self.id}", "the engine does not say where its layers lie", "use overlay2")
        return self._disk

    def _freeze(self, frozen: bool) -> None:
        self._freeze_it(frozen)


class DockerDriver(Driver):
    """Launches containers of a Docker engine on this host."""

    name = "docker"
    kind = Kind.CONTAINER

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self._ledger = Ledger(host.run)
        self._networks = Networks(host.root, host.run)
        self._leftovers = Leftovers(self.name, self._ledger, self._networks)
        self._engine = Engine(host, self.name)
        self._loaded: set[str] = set()
        self._client: Any = None

    @cached_property
    def _hierarchies(self) -> Hierarchies:
        return detect()

    # --- the engine

    def probe(self) -> Availability:
        """Whether an engine answers or could be started; none is started for the asking."""
        if os.geteuid() != 0:
            return Availability(False, "an engine and the cgroups of its containers need root", "run it as root")
        if not _can_talk():
            return Availability(False, "the Python package docker is not installed", "pip install 'tare[docker]'")
        try:
            if self._client is None and self._theirs() is None:
                return self._startable()
            client = self._connected(start=False)
            with _explained("docker version"):
                version, info = client.version(), client.info()
        except TareError as error:
            return Availability(False, str(error), error.do)
        parts = {part["Name"]: part["Version"] for part in version.get("Components", ())}
        facts = {
            "version": f"Docker {version['Version']}, API {version['ApiVersion']}",
            "runtime": f"{info['DefaultRuntime']}, {', '.join(f'{name} {parts[name]}' for name in sorted(parts))}",
            "engine": "this host's" if self._theirs() is not None else "our own, started for the run",
            "cgroups": f"cgroup v{info.get('CgroupVersion', '1')}, {info['CgroupDriver']} driver",
            "root file system": str(info["Driver"]),
            "called": "create and start by its API, timed as one",
        }
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

    def _connected(self, *, start: bool) -> Any:
        """The client of the engine in use; with `start`, one of our own where the host has none."""
        if self._client is None:
            path = self._theirs()
            if path is None:
                if start:
                    self._mend()  # an engine that a dead owner left is not for us to join
                    self._engine.start()
                path = self._engine.socket
            self._client = _client(path)
        return self._client

    # --- preparing

    def prepare(self, spec: InstanceSpec) -> PreparedDocker:
        """Refuse what cannot be done, have an engine, load the image if it has not got it."""
        self._check(spec)
        self.host.root.mkdir(parents=True, exist_ok=True)
        store = ImageStore(self.host.root)
        image = store.resolve(spec.image)
        client = self._connected(start=True)
        with store.using():
            self._load(client, store, image)
        with _explained("docker info"):
            data = Path(client.info()["DockerRootDir"])
        return PreparedDocker(spec, image.id, _host_config(client, spec, data), data)

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

    def _load(self, client: Any, store: ImageStore, image: Image) -> None:
        import docker.errors

        from runtime.images.saving import save

        with _explained("docker load"):
            try:
                client.inspect_image(image.id)
            except docker.errors.ImageNotFound:
                pass
            else:
                return
            reading, writing = os.pipe()
            problems: list[Exception] = []

            def write() -> None:
                try:
                    with os.fdopen(writing, "wb") as target:
                        save(store, [image], target, form="docker")
                except (TareError, OSError) as error:
                    problems.append(error)

            writer = threading.Thread(target=write, name="tare-docker-load", daemon=True)
            writer.start()
            with os.fdopen(reading, "rb") as source:
                said = [line for line in client.load_image(source, quiet=True) or () if "error" in line]
            writer.join()
            if said or problems:
                raise TareError(f"loading {image.ref} into docker", printable(str([*said, *problems][0])))
            client.inspect_image(image.id)
        self._loaded.add(image.id)

    # --- launching

    def launch(self, prepared: Prepared) -> Instance:
        """Create and start; whatever fails, everything made until then is removed."""
        assert isinstance(prepared, PreparedDocker)
        client = self._connected(start=True)
        timeline = Timeline()
        timeline.stamp("request")
        instance_id = new_id()
        directory = self.host.run / "channels" / instance_id
        holdings = Holdings(self._ledger.open(instance_id, self.name), lambda: _remove(client, instance_id))
        try:
            holdings.note("dir", str(directory))
            make_directory(directory)
            with _listening(directory / "channel") as listener:
                self._create(client, prepared, instance_id, directory / "channel")
                peer = _start(client, instance_id, listener, timeline, holdings)
            with _explained("docker inspect"):
                found = client.inspect_container(instance_id)
                pid = int(found["State"]["Pid"])
                disk = _disk(found)
            if pid != peer:
                raise TareError("docker inspect", f"it says that process {pid} runs, and process {peer} does")
            holdings.process = Pidfd.of(pid)
            holdings.note("pid", f"{pid}:{process_start(pid)}")
            return DockerInstance(
                prepared,
                timeline,
                holdings,
                self._cgroup_of(pid, prepared),
                disk=disk,
                freeze=lambda frozen: _freeze(client, instance_id, frozen),
            )
        except BaseException:
            with suppress(TareError):
                holdings.give_back(search=True)
            raise

    def _create(self, client: Any, prepared: PreparedDocker, instance_id: str, channel: Path) -> None:
        spec = prepared.spec
        binds = [*prepared.host_config["Binds"], f"{channel}:{_CHANNEL}"]
        host_mode = spec.network.mode is NetworkMode.HOST
        with _explained("docker create"):
            answer = client.create_container(
                prepared.image_id,
                ["--connect", _CHANNEL],
                entrypoint=[AGENT],
                name=instance_id,
                hostname=None if host_mode else spec.hostname or instance_id,
                environment=dict(spec.env),
                labels={_LABEL: str(self.host.run)},
                host_config={**prepared.host_config, "Binds": binds},
            )
            warnings = answer.get("Warnings") or []
        if warnings:  # that is how it says that it leaves a limit out
            raise TareError("docker create", printable("; ".join(map(str, warnings))), "leave that limit out")

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
        with self._reachable() as clients:
            containers = [f"{name}: container" for client in clients for name in self._orphans(client)]
        return [*containers, *self._leftovers.lines()]

    def sweep(self) -> list[str]:
        """Remove these, and what an engine of our own keeps for its next start."""
        removed = [*self._mend(), *self._engine.forget()]
        if self._client is not None and self._theirs() is None and not answers(self._engine.socket):
            self._client = None  # it was that of an engine whose owner is dead
        return removed

    def _mend(self) -> list[str]:
        removed = []
        with self._reachable() as clients:
            for client in clients:
                for name in self._orphans(client):
                    _remove(client, name)
                    removed.append(f"{name}: container")
        return [*removed, *self._leftovers.sweep()]

    def _orphans(self, client: Any) -> list[str]:
        with _explained("docker list"):
            rows = client.containers(all=True, filters={"label": f"{_LABEL}={self.host.run}"})
            names = [row["Names"][0].removeprefix("/") for row in rows]
        living = {instance_id for instance_id, _ in self._ledger.live()}
        return [name for name in names if name not in living]

    @contextmanager
    def _reachable(self) -> Iterator[list[Any]]:
        """A client of each engine that may have containers of ours."""
        if self._client is not None or not _can_talk():
            yield [] if self._client is None else [self._client]
            return
        sockets = [path for path in (self._theirs(), self._engine.socket) if path is not None and answers(path)]
        with ExitStack() as stack:
            clients = [_client(path) for path in sockets]
            for client in clients:
                stack.callback(client.close)
            yield clients

    def close(self) -> None:
        """End our own engine; take the image out of the host's."""
        client, self._client = self._client, None
        try:
            if client is not None and self._loaded and self._theirs() is not None:
                with _explained("docker image remove"):
                    for image_id in self._loaded:
                        client.remove_image(image_id, force=True)
        finally:
            if client is not None:
                client.close()
            self._engine.stop()
            self._networks.close()


def _can_talk() -> bool:
    """Whether docker-py is installed: it comes with an extra."""
    return find_spec("docker") is not None


def _client(path: Path) -> Any:
    import docker

    with _explained("docker connect"):
        return docker.APIClient(base_url=f"unix://{path}", version="auto", timeout=REQUEST_TIMEOUT_S)


def _host_config(client: Any, spec: InstanceSpec, data: Path) -> dict[str, Any]:
    limits = spec.limits
    swap = None if limits.memory_bytes is None else -1
    if limits.memory_bytes is not None and limits.swap_bytes is not None:
        swap = limits.memory_bytes + limits.swap_bytes
    config = client.create_host_config(
        network_mode=str(spec.network.mode),
        security_opt=["no-new-privileges"],
        cgroupns="private",
        cpu_shares=None if limits.cpu_weight is None else cpu_shares(limits.cpu_weight),
        cpuset_cpus=limits.cpuset,
        mem_limit=limits.memory_bytes,
        mem_reservation=limits.memory_low_bytes,
        memswap_limit=swap,
        pids_limit=limits.pids,
        blkio_weight=None if limits.io_weight is None else bfq_weight(limits.io_weight),
        nano_cpus=None if limits.cpus is None else round(limits.cpus * 1e9),
        tmpfs={mount.target: "ro" if mount.read_only else "" for mount in spec.mounts if mount.kind is MountKind.TMPFS},
    )
    config["Binds"] = [
        f"{Path(mount.source).resolve()}:{mount.target}:{'ro' if mount.read_only else 'rw'}"
        for mount in spec.mounts
        if mount.kind is MountKind.BIND
    ]
    for name, rate in (("BlkioDeviceReadBps", limits.io_read_bps), ("BlkioDeviceWriteBps", limits.io_write_bps)):
        if rate is not None:
            config[name] = [{"Path": _device(data), "Rate": rate}]
    return dict(config)


def _device(data: Path) -> str:
    """The disk below the engine's data, as it wants it named."""
    number = io_device(data)
    if number is None:
        raise TareError("limit io", "the engine's data lie on no block device", "leave it out")
    lines = (Path("/sys/dev/block") / number / "uevent").read_text().splitlines()
    return "/dev/" + next(line.partition("=")[2] for line in lines if line.startswith("DEVNAME="))


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Whatever goes wrong between us and the engine, or makes no sense in its answer, as a TareError."""
    import docker.errors
    import requests.exceptions

    try:
        yield
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        raise TareError(what, printable(str(getattr(error, "explanation", None) or error))[:400]) from error
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise TareError(what, f"an answer that is none of Docker's: {error!r}"[:400]) from error


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        path.chmod(0o666)  # whoever the container's user is; its directory is root's alone
        listener.listen(1)
        yield listener


def _start(client: Any, instance_id: str, listener: socket.socket, timeline: Timeline, holdings: Holdings) -> int:
    """Start it, and stamp when its process is first heard of: the engine's own word comes later. Returns its pid."""
    problems: list[TareError] = []
    said = os.eventfd(0)

    def ask() -> None:
        try:
            with _explained("docker start"):
                client.start(instance_id)
        except TareError as error:
            problems.append(error)
        finally:
            os.eventfd_write(said, 1)

    asking = threading.Thread(target=ask, name="tare-docker-start", daemon=True)
    asking.start()
    try:
        heard = listener.fileno() in select.select([listener.fileno(), said], [], [])[0]
        if not heard and not problems:
            heard = _heard(client, instance_id, listener)
        if heard:
            connection, _ = listener.accept()
            timeline.stamp("spawned")
            peer = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
            holdings.channel = Channel(connection, timeline, lambda: _tail(client, instance_id))
    finally:
        asking.join()
        os.close(said)
    if problems:
        raise problems[0]
    if not heard:
        raise TareError("docker start", f"it said success and nothing runs. {_tail(client, instance_id)}".strip())
    return int(peer)


def _heard(client: Any, instance_id: str, listener: socket.socket) -> bool:
    """Whether the agent comes, now that the engine says that it runs."""
    deadline = time.monotonic() + CONNECT_TIMEOUT_S
    while time.monotonic() < deadline:
        if select.select([listener], [], [], min(1.0, CONNECT_TIMEOUT_S))[0]:
            return True
        with _explained("docker inspect"):
            if not client.inspect_container(instance_id)["State"]["Running"]:
                return False
    return False


def _tail(client: Any, instance_id: str) -> str:
    try:
        with _explained("docker logs"):
            return printable(client.logs(instance_id, tail=10).decode(errors="replace").strip()[-400:])
    except TareError:
        return ""


def _freeze(client: Any, instance_id: str, frozen: bool) -> None:
    with _explained("docker pause" if frozen else "docker unpause"):
        client.pause(instance_id) if frozen else client.unpause(instance_id)


def _remove(client: Any, instance_id: str) -> None:
    """Remove a container, running or not. Raises TareError when it is still there afterwards."""
    import docker.errors

    with _explained("docker remove"):
        try:
            client.remove_container(instance_id, v=True, force=True)
            client.inspect_container(instance_id)
        except docker.errors.NotFound:
            return
    raise TareError("docker remove", "it said success and the container is still there")


def _disk(found: Any) -> DiskPaths:
    data = (found.get("GraphDriver") or {}).get("Data") or {}
    if "LowerDir" not in data:
        return DiskPaths()
    # The lowest of a container's own layers holds its mount points, made for it alone.
    own = Path(data["UpperDir"]).parent
    lower = [Path(path).parent for path in data["LowerDir"].split(":")]
    initial = [path for path in lower if path.name == f"{own.name}-init"]
    return DiskPaths(shared=tuple(path for path in lower if path not in initial), exclusive=(own, *initial))


def _wants_io(limits: Limits) -> bool:
    return any(limit is not None for limit in (limits.io_read_bps, limits.io_write_bps, limits.io_weight))
