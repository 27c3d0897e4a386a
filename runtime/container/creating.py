"""From what a user wants to a container written down: image, volumes, namespaces of others, configuration.

Nothing of it exists on the host until it is started. Not the words of the command line (`runtime.commands.asking`).
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from runtime.cgroups.resources import Resources
from runtime.container import decode, defaults
from runtime.container.config import Config
from runtime.container.logs import now
from runtime.container.options import IdRange
from runtime.container.starting import Ground, check
from runtime.container.state import Record, StateDirectory
from runtime.container.wanted import CONTAINER, Wanted, join
from runtime.driver import Host
from runtime.errors import TareError
from runtime.images.store import Image, ImageStore
from runtime.linux import capabilities

_FIRST_IDS, _IDS = 1 << 30, 1 << 16
Say = Callable[[str], None]


class Place(Protocol):
    """Where it is to be: `lifecycle.Containers`."""

    host: Host
    state: StateDirectory
    ground: Ground

    def find(self, text: str) -> Record:
        """Another container."""


class Creation:
    """Creates containers at a place."""

    def __init__(self, place: Place) -> None:
        self._root = place.host.root
        self._state, self._ground = place.state, place.ground
        self._find = place.find

    def create(self, wanted: Wanted, say: Say) -> tuple[Record, Config | None]:
        """Write down a container of an image, which is pulled if need be. Raises TareError, leaving nothing then.

        Its configuration comes along unless that depends on where other containers are when it starts.
        """
        image = self._image(wanted, say)
        container_id = self._state.draw_id()
        layers = tuple(layer.directory for layer in image.layers)
        with ExitStack() as stack:
            stack.enter_context(ImageStore(self._root).using())  # until the state names the image
            if not all(layer.is_dir() for layer in layers):
                raise TareError(f"image {wanted.image}", "somebody removed it meanwhile", "try again")
            options, network = self._placed(wanted, container_id, stack)
            mounts = self._mounts(wanted, image, layers, stack)
            options = replace(
                options,
                mounts=tuple(mounts),
                last_capability=self._ground.facts.last_capability,
                held_capabilities=capabilities.held(),
            )
            options = replace(options, resources=self._swapped(options.resources, container_id))
            config = defaults.build(image.config, options, layers=layers)
            check(config, self._ground.group(container_id, config))
            inner = image.config.get("config") or {}
            ports = wanted.settings.ports
            exposed = tuple(dict.fromkeys((*wanted.settings.exposed, *(inner.get("ExposedPorts") or {}))))
            settings = replace(
                wanted.settings,
                network=network,
                ports=(*ports, *(_published(ports, exposed) if wanted.publish_all else ())),
                labels={**(inner.get("Labels") or {}), **wanted.settings.labels},
                stop_signal=wanted.settings.stop_signal or _stop_signal(inner),
                exposed=exposed,
                entrypoint=tuple(
                    wanted.options.entrypoint
                    if wanted.options.entrypoint is not None
                    else inner.get("Entrypoint") or ()
                ),
            )
            record = self._state.create(
                Record(
                    id=container_id,
                    name=wanted.name,
                    directory=Path(),
                    image=wanted.image,
                    image_digest=image.digest,
                    layers=tuple(str(layer) for layer in layers),
                    argv=config.process.args if config.process is not None else (),
                    created_at=now(),
                    settings=settings,
                ),
                decode.document(config),
            )
        lasting = not any(namespace.path is not None for namespace in config.linux.namespaces)
        return record, config if lasting else None

    def _swapped(self, resources: Resources, container_id: str) -> Resources:
        """As much swap as memory where only memory is limited, as Docker has it, if this host can limit swap."""
        memory = resources.memory
        if memory is None or not memory.limit or memory.limit < 0 or memory.swap is not None:
            return resources
        bounded = replace(resources, memory=replace(memory, swap=2 * memory.limit))
        try:
            self._ground.group(container_id).check(bounded)
        except TareError:
            return resources
        return bounded

    def _image(self, wanted: Wanted, say: Say) -> Image:
        store = ImageStore(self._root)
        if wanted.pull != "always":
            with suppress(TareError):
                return store.find(wanted.image)
        from runtime.images.pull import pull_if_missing

        return pull_if_missing(store, wanted.image, wanted.pull, say=say)

    def _placed(self, wanted: Wanted, container_id: str, stack: ExitStack) -> tuple[Any, str]:
        """The options with other containers' namespaces and ids of its own, and the network's lasting name."""
        options, network = wanted.options, wanted.settings.network
        changes: dict[str, Any] = {"container_id": container_id}
        for kind, name in (("network", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts")):
            mode = getattr(options, kind)
            if mode.startswith(CONTAINER):
                other = self._find(mode.removeprefix(CONTAINER))
                changes[kind] = join(other.id, f"ns/{name}")
                if kind == "network":
                    network = CONTAINER + other.id
                    # It is found under the other's name: one address, one /etc/hosts.
                    changes["hostname"] = options.hostname or self._state.document(other.id).get("hostname")
        if options.ipc == "host":
            changes["shm_source"] = "/dev/shm"  # noqa: S108 - the host's, as asked
        if network not in ("none", "host", "bridge") and not network.startswith(CONTAINER):
            self._ground.networks.definitions.demand(network)
        if wanted.auto_ids:
            stack.enter_context(self._state.lock("ids"))
            changes["id_range"] = IdRange(host_id=self._free_ids(), size=_IDS)
        return replace(options, **changes), network

    def _free_ids(self) -> int:
        """The first range of ids that no container has."""
        taken = set()
        for container_id in self._state.ids():
            with suppress(OSError, ValueError):
                mappings = self._state.document(container_id).get("linux", {}).get("uidMappings", [])
                taken |= {int(mapping["hostID"]) for mapping in mappings}
        return next(start for start in range(_FIRST_IDS, 1 << 32, _IDS) if start not in taken)

    def _mounts(self, wanted: Wanted, image: Image, layers: Sequence[Path], stack: ExitStack) -> list[Any]:
        """The mounts asked for, and a volume for each place that the image wants one."""
        declared = (image.config.get("config") or {}).get("Volumes") or {}
        if not wanted.mounts and not declared:
            return []
        from runtime.container.mountflags import MountRequest, Resolver, Source
        from runtime.container.volumes import VolumeStore

        targets = {request.target for request in wanted.mounts}
        implied = [MountRequest(kind=Source.VOLUME, target=target) for target in declared if target not in targets]
        volumes = VolumeStore(self._root)
        stack.enter_context(volumes.held())
        found = Resolver(volumes, Path.cwd(), mapped=wanted.auto_ids).resolve([*wanted.mounts, *implied])
        for resolved in found:
            if resolved.volume is not None and resolved.copy:
                volumes.populate(resolved.volume, layers, resolved.mount.destination)
        return [resolved.mount for resolved in found]


def _published(
    ports: Sequence[tuple[str, int, int, str]], exposed: Sequence[str]
) -> Iterator[tuple[str, int, int, str]]:
    """Any free port of the host for each that is exposed and not published already. Raises UsageError."""
    from runtime.network.ports import parse

    known = {(inside, protocol) for _, _, inside, protocol in ports}
    for text in exposed:
        for port in parse(text):
            if (port.port, port.protocol) not in known:
                yield port.host, 0, port.port, port.protocol


def _stop_signal(inner: Mapping[str, Any]) -> int:
    """The image's own, else SIGTERM; one that this kernel does not know is passed over as Docker does."""
    text = str(inner.get("StopSignal") or "")
    if text.isdigit():
        return int(text)
    name = text.upper() if text.upper().startswith("SIG") else f"SIG{text.upper()}"
    return int(getattr(signal, name, signal.SIGTERM)) if text else int(signal.SIGTERM)
