"""The bridges of networks: made when the first container of a segment needs them, with all that belongs to them.

A bridge that is up is whole: bringing it up is the last thing done. The caller holds the networks' lock.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

from runtime.errors import TareError
from runtime.linux.netlink import NETLINK_NETFILTER, Netlink
from runtime.network import links, nat
from runtime.network.definitions import Definitions, Network
from runtime.network.subnet import Subnet, hardware, shown

if TYPE_CHECKING:
    from runtime.network.host_links import Bridge, HostLinks

_DEFAULT_MTU: Final = 1500
_ALIAS: Final = "tare"


class Bridges:
    """Bridges and packet filter, over one long-lived socket for each of the two, opened when first needed."""

    def __init__(self, definitions: Definitions, run: Path) -> None:
        self._definitions = definitions
        self._forwarding = run / "ip_forward"
        self._known: dict[str, tuple[int, int]] = {}
        self._wire: Netlink | None = None
        self._links: HostLinks | None = None

    def close(self) -> None:
        """Give the sockets back."""
        if self._wire is not None:
            self._wire.close()
        if self._links is not None:
            self._links.close()
        self._wire = self._links = None
        self._known.clear()

    @property
    def links(self) -> HostLinks:
        """The host's links, for all that is not one launch's."""
        if self._links is None:
            from runtime.network.host_links import HostLinks  # nothing for a container whose bridge is there

            self._links = HostLinks()
        return self._links

    def ensure(self, network: Network, segment: int) -> tuple[int, int]:
        """The (index, MTU) of a segment's bridge, which is up, with everything around it."""
        name = network.bridge(segment)
        known = self._known.get(name)
        if known is None or links.index_of(name) != known[0]:
            known = self._known[name] = self._bring_up(network, segment)
        if not self.rules_are_whole():
            self.apply_rules()
        return known

    def is_known(self, network: Network) -> bool:
        """Whether this process has seen the network's first bridge up; it may be gone since."""
        return network.bridge(0) in self._known

    def present(self, network: Network) -> list[str]:
        """The bridges of a network that are there."""
        there = {name for _, name in socket.if_nameindex()}
        names = (network.bridge(segment) for segment in range(network.subnet.segments))
        return [name for name in names if name in there]

    def overlapping(self, subnet: Subnet) -> bool:
        """Whether the host has a route into a subnet."""
        routes = self.links.routes()
        return any(route.prefix_bits and subnet.overlaps(route.network, route.prefix_bits) for route in routes)

    def take_down(self, network: Network) -> None:
        """Remove a network's bridges; absent is no error."""
        from runtime.network import forwarding  # nothing for a container whose bridge is there

        names = self.present(network)
        for name in names:
            self._known.pop(name, None)
        if names:
            self.links.remove(names)
            forwarding.dismiss(network.stem)

    def rules_are_whole(self) -> bool:
        """Whether the packet filter's table is there and complete."""
        if self._wire is None:
            self._wire = Netlink(NETLINK_NETFILTER)
        return nat.is_whole(self._wire, self._definitions.table)

    def apply_rules(self) -> None:
        """Make the packet filter's table right for all networks."""
        networks = {network.stem: network.subnet for network in self._definitions.all()}
        nat.apply(nat.ruleset(self._definitions.table, networks))

    def leave(self) -> None:
        """Remove what the host had for all networks together."""
        from runtime.network import forwarding  # nothing for a container whose bridge is there

        nat.drop(self._definitions.table)
        # Docker and libvirt take forwarding for granted once they have found it allowed.
        forwarding.leave(self._forwarding, needed=bool(self.links.bridges()))

    def remove_orphans(self) -> list[str]:
        """Remove what `orphans` finds, and the links that are still on such bridges; a line each bridge."""
        found = orphans(self.links.bridges())
        self.links.remove([name for bridge, _ in found for name in (bridge.name, *self.links.ports_of(bridge.index))])
        for table in sorted({table for _, table in found}):
            nat.drop(table)
        return [f"bridge {bridge.name} of a state root that is gone" for bridge, _ in found]

    def _alias(self) -> str:
        """What tells whose a bridge is, once its state root may be gone."""
        return f"{_ALIAS} {self._definitions.table} {self._definitions.root}"

    def _bring_up(self, network: Network, segment: int) -> tuple[int, int]:
        from runtime.network import forwarding  # nothing for a container whose bridge is there

        name, gateway = network.bridge(segment), network.subnet.gateway(segment)
        index, mtu = links.index_of(name), links.mtu_if_up(name)
        if index is not None and mtu is not None:
            return index, mtu
        if index is None and segment == 0 and self.overlapping(network.subnet):
            raise TareError(
                f"network {network.name}", f"the host has a route into {network.subnet}", "remove the route"
            )
        forwarding.enter(self._forwarding)
        if index is None:
            index = self.links.make_bridge(name, hardware(gateway).hex(":"))
        mtu = self._mtu()
        forwarding.route_loopback(name)
        forwarding.ignore_routers(name)
        forwarding.admit(network.stem)
        self.apply_rules()
        self.links.bring_up(index, shown(gateway), network.subnet.segment_prefix_bits, mtu, self._alias())
        return index, mtu

    def _mtu(self) -> int:
        """The MTU of the way out, so that nothing is cut up or lost there."""
        ways = [route.link for route in self.links.routes() if route.prefix_bits == 0 and route.link]
        return min((self.links.mtu_of(link) for link in ways), default=_DEFAULT_MTU)


def orphans(bridges: Iterable[Bridge]) -> list[tuple[Bridge, str]]:
    """Those of state roots that are no more, each with its table: nobody else will ever remove them."""
    found = []
    for bridge in bridges:
        word, _, rest = bridge.alias.partition(" ")
        table, _, root = rest.partition(" ")
        if word == _ALIAS and root.startswith("/") and not Path(root).exists():
            found.append((bridge, table))
    return found
