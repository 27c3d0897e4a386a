"""A container as it is asked for: `Options` and what concerns its life and its place, before anything is looked up.

`join` and `joined` are the placeholder for a namespace of another container, whose process is not known before start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from runtime.container.options import Options
from runtime.container.state import Settings
from runtime.record import field, record

CONTAINER = "container:"
GATEWAY = "host-gateway"
"""Stands for the gateway's address in what is put into /etc/hosts."""
_PLACE = "/container:"


@record
class Wanted:
    """`options` without the mounts, which `mounts` ask for; namespaces of others as `container:NAME`.

    `pull` is missing, always or never. `auto_ids` asks for a user namespace with ids of its own, `publish_all` for
    a port of the host for each that is exposed.
    """

    image: str
    options: Options = field(default_factory=Options)
    settings: Settings = field(default_factory=Settings)
    name: str = ""
    mounts: tuple[Any, ...] = ()
    """`mountflags.MountRequest`s: not imported here, as what reads them brings the volumes along."""
    pull: str = "missing"
    quiet: bool = False
    auto_ids: bool = False
    publish_all: bool = False


def join(container_id: str, rest: str) -> str:
    """What stands in a configuration for `/proc/PID/rest` of another container's process."""
    return f"{_PLACE}{container_id}/{rest}"


def joined(document: Any, pid_of: Callable[[str], int]) -> Any:
    """`document` with every such place made a real one; `pid_of` gives the process of a container's id."""
    if isinstance(document, str) and document.startswith(_PLACE):
        container_id, _, rest = document.removeprefix(_PLACE).partition("/")
        return f"/proc/{pid_of(container_id)}/{rest}"
    if isinstance(document, Mapping):
        return {key: joined(value, pid_of) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [joined(value, pid_of) for value in document]
    return document
