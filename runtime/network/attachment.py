"""One container's place in a network, as plain values: what its launch needs, and what an inspection shows."""

from __future__ import annotations

from runtime.ledger import PREFIX
from runtime.network import links
from runtime.network.ports import Port
from runtime.network.subnet import hardware, shown
from runtime.record import ordered_record

_LINK_PREFIX = "ve"


@ordered_record
class Attachment:
    """An address taken for `owner`, and the link `interface` that will lead there; nothing of it exists yet.

    A container's is a veth pair: `pair` goes into the launch's `Flat.links`, `step_values` into its `Interface`
    step. A virtual machine's is a tap (`taps`), for which only what concerns the host's end counts.
    """

    owner: str
    network: str
    packed_address: bytes
    packed_gateway: bytes
    prefix_bits: int
    bridge: str
    interface: str
    pair: links.Pair
    mtu: int
    ports: tuple[Port, ...] = ()

    @property
    def address(self) -> str:
        """The container's address."""
        return shown(self.packed_address)

    @property
    def gateway(self) -> str:
        """The bridge's address: the container's default route."""
        return shown(self.packed_gateway)

    @property
    def mac_address(self) -> str:
        """The container's MAC address, which follows from its address."""
        return hardware(self.packed_address).hex(":")

    @property
    def gateway_mac_address(self) -> str:
        """The bridge's MAC address."""
        return hardware(self.packed_gateway).hex(":")

    @property
    def links(self) -> tuple[bytes, ...]:
        """The pair as the launch wants it."""
        return (self.pair.before, self.pair.after, *self.pair.rest)

    @property
    def step_values(self) -> tuple[str, bytes, int, bytes, bytes]:
        """The fields of `runtime.container.steps.Interface`."""
        gateway = self.packed_gateway
        return links.INSIDE, self.packed_address, self.prefix_bits, gateway, hardware(gateway)


def link_name(owner: str) -> str:
    """What the host's end of a container's pair is called: the head of the owner's random id."""
    return _LINK_PREFIX + owner.removeprefix(PREFIX)[: 15 - len(_LINK_PREFIX)]
