"""What of this host stands in the way of bridges, or will when there are many: a sentence each, and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.network import forwarding
from runtime.network.bridge import orphans
from runtime.network.definitions import Definitions
from runtime.network.host_links import HostLinks

_NEIGHBOURS: Final = "sys/net/ipv4/neigh/default/gc_thresh3"
_ENOUGH: Final = 4096


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing. `do` is a command for a root shell; `usable` is whether bridges work all the same."""

    text: str
    do: str
    usable: bool = True


def remarks(root: Path, proc: Path = Path("/proc")) -> list[Remark]:
    """Look at this host as the networks of state root `root` would find it."""
    if shutil.which("nft") is None:
        return [Remark("nft is not on PATH: no NAT and no bridge networks", "./bootstrap", usable=False)]
    definitions = Definitions(root)
    found = [Remark(text, "nft insert rule FAMILY TABLE CHAIN ...") for text in forwarding.obstacles(definitions.table)]
    found += _of_links(definitions)
    limit = _neighbours(proc)
    if limit is not None and limit < _ENOUGH:
        # Containers and gateways know each other permanently; the table counts who speaks to whom beside that.
        text = f"the neighbour table ends at {limit} entries: more than {limit} containers cannot all speak to others"
        found.append(Remark(text, f"sysctl -w net.ipv4.neigh.default.gc_thresh3={_ENOUGH}"))
    return found


def _of_links(definitions: Definitions) -> Iterator[Remark]:
    """What the host's bridges and routes give cause for. Our own bridges stay as Docker's does, which is none."""
    links = HostLinks()
    try:
        bridges, routes = links.bridges(), links.routes()
    finally:
        links.close()
    for bridge, _ in orphans(bridges):
        yield Remark(f"bridge {bridge.name} is of a state root that is gone", "tare clean")
    for network in definitions.all():
        own = {each.index for each in bridges if each.name.removeprefix(network.stem).isdigit()}
        clash = any(
            route.prefix_bits and route.link not in own and network.subnet.overlaps(route.network, route.prefix_bits)
            for route in routes
        )
        if clash and (own or not network.automatic):  # without a bridge it would choose another subnet
            yield Remark(f"network {network.name}: the host has another route into {network.subnet}", "ip route")


def _neighbours(proc: Path) -> int | None:
    try:
        return int((proc / _NEIGHBOURS).read_text())
    except (OSError, ValueError):
        return None
