"""The bridges of networks: made when the first container of a segment needs them, with all that belongs to them.

A bridge that is up is whole: bringing it up is the last thing done. The caller holds the networks' lock.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from runtime.errors import TareError
from runtime.linux.netlink import NETLINK_NETFILTER, Netlink
from runtime.network import links, nat
from runtime.network.definitions import Definitions, Network
from runtime.network.subnet import Subnet, hardware

_DEFAULT_MTU: Final = 1500
_ALIAS: Final = "tare"
_GROUP: Final = 0x7A12E  # the kernel's group of links that are being removed


class Bridges:
    """Bridges and packet filter, over one long-lived socket for each of the two."""

    def __init__(self, definitions: Definitions, run: Path) -> None:
        self._definitions = definitions
        self._forwarding = run / "ip_forward"
        self._known: dict[str, tuple[int, int]] = {}
        self._wires: tuple[Netlink, Netlink] | None = None

    def close(self) -> None:
        """Give the sockets back."""
        if self._wires is not None:
            for wire in self._wires:
                wire.close()
        self._wires = None
        self._known.clear()

    @property
    def wire(self) -> Netlink:
        """The socket for links."""
        return self._sockets()[0]

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
        routes = links.routes(self.wire)
        return any(route.prefix_bits and subnet.overlaps(route.network, route.prefix_bits) for route in routes)

    def take_down(self, network: Network) -> None:
        """Remove a network's bridges; absent is no error."""
        from runtime.network import forwarding  # nothing for a container whose bridge is there

        names = self.present(network)
        for name in names:
            self._known.pop(name, None)
        self.remove_links(names)
        if names:
            forwarding.dismiss(network.stem)

    def remove_links(self, names: list[str]) -> None:
        """Remove links by their names, all at once."""
        links.remove(self.wire, names, _GROUP)

    def rules_are_whole(self) -> bool:
        """Whether the packet filter's table is there and complete."""
        return nat.is_whole(self._sockets()[1], self._definitions.table)

    def apply_rules(self) -> None:
        """Make the packet filter's table right for all networks."""
        networks = {network.stem: network.subnet for network in self._definitions.all()}
        nat.apply(nat.ruleset(self._definitions.table, networks))

    def leave(self) -> None:
        """Remove what the host had for all networks together."""
        from runtime.network import forwarding  # nothing for a container whose bridge is there

        nat.drop(self._definitions.table)
        # Docker and libvirt take forwarding for granted once they have found it allowed.
        forwarding.leave(self._forwarding, needed=bool(links.bridges(self.wire)))

    def orphans(self) -> list[tuple[str, str]]:
        """The (bridge, table) of state roots that are no more: nobody else will ever remove them."""
        found = []
        for name, alias in links.bridges(self.wire).items():
            word, _, rest = alias.partition(" ")
            table, _, root = rest.partition(" ")
            if word == _ALIAS and root.startswith("/") and not Path(root).exists():
                found.append((name, table))
        return found

    def remove_orphans(self) -> list[str]:
        """Remove what `orphans` finds; a line each."""
        found = self.orphans()
        self.remove_links([name for name, _ in found])
        for table in sorted({table for _, table in found}):
            nat.drop(table)
        return [f"bridge {name} of a state root that is gone" for name, _ in found]

    def _alias(self) -> str:
        """What tells whose a bridge is, once its state root may be gone."""
        return f"{_ALIAS} {self._definitions.table} {self._definitions.root}"

    def _sockets(self) -> tuple[Netlink, Netlink]:
        if self._wires is None:
            self._wires = Netlink(), Netlink(NETLINK_NETFILTER)
        return self._wires

    def _bring_up(self, network: Network, segment: int) -> tuple[int, int]:
        from runtime.network import forwarding  # nothing for a container whose bridge is there

        name, gateway = network.bridge(segment), network.subnet.gateway(segment)
        index = links.index_of(name)
        if index is not None and links.is_up(name):
            return index, links.mtu_of(self.wire, index)
        if index is None and segment == 0 and self.overlapping(network.subnet):
            raise TareError(
                f"network {network.name}", f"the host has a route into {network.subnet}", "remove the route"
            )
        forwarding.enter(self._forwarding)
        if index is None:
            self.wire.ask([links.bridge(name, hardware(gateway))], f"making bridge {name}")
            index = socket.if_nametoindex(name)
        mtu = self._mtu()
        forwarding.route_loopback(name)
        forwarding.admit(network.stem)
        self.apply_rules()
        up = links.bridge_up(index, gateway, network.subnet.segment_prefix_bits, mtu, self._alias())
        self.wire.ask(up, f"bringing up bridge {name}")
        return index, mtu

    def _mtu(self) -> int:
        """The MTU of the way out, so that nothing is cut up or lost there."""
        ways = [route.link for route in links.routes(self.wire) if route.prefix_bits == 0 and route.link]
        return min((links.mtu_of(self.wire, link) for link in ways), default=_DEFAULT_MTU)
