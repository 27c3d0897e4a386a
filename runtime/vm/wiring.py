"""A guest's network and name: what the host makes for them, and what the guest is told.

The same bridges, addresses, rules and published ports as a container's (`runtime.network`); a tap in place of the
veth pair. Not the guest's side: the agent carries out what `identity` says. A guest without a network or a name of
its own needs neither, and is told nothing.
"""

from __future__ import annotations

from contextlib import closing, suppress

from runtime.driver import Host
from runtime.errors import TareError, UsageError
from runtime.identity import Identity, Place
from runtime.ledger import Entry
from runtime.network import links, names, taps
from runtime.network.attachment import Attachment
from runtime.network.network import Networks
from runtime.network.ports import Port
from runtime.spec import InstanceSpec, NetworkMode, NetworkSpec
from runtime.vm.domain import Interface


class Wiring:
    """What one guest holds of the host's networks. `open` makes one, `close` gives it all back.

    `interface` is the guest's network card, `identity` what its agent is to be told (`Channel`), `ports` what is
    published; None, None and nothing where there is no cause.
    """

    def __init__(self, host: Host, identity: Identity | None, attachment: Attachment | None) -> None:
        self.identity = identity
        self._host = host
        self._attachment = attachment

    @classmethod
    def open(cls, entry: Entry, host: Host, spec: InstanceSpec, instance_id: str) -> Wiring:
        """Take an address and make the tap, each noted in `entry` first. Raises TareError and leaves nothing."""
        if spec.network.mode is NetworkMode.NONE:
            return cls(host, _named(spec.hostname) if spec.hostname else None, None)
        attachment = _attach(entry, host, spec, instance_id)
        hostname = spec.hostname or instance_id
        return cls(host, _placed(hostname, attachment), attachment)

    @property
    def interface(self) -> Interface | None:
        """The card that leads to the tap."""
        place = self._attachment
        return None if place is None else Interface(tap=place.interface, mac=place.mac_address, mtu=place.mtu)

    @property
    def address(self) -> str | None:
        """The guest's own."""
        return None if self._attachment is None else self._attachment.address

    @property
    def ports(self) -> tuple[Port, ...]:
        """What of the host leads to the guest."""
        return () if self._attachment is None else self._attachment.ports

    def close(self) -> None:
        """Remove the tap and give address and ports back. Safe to call twice. Raises TareError."""
        place = self._attachment
        if place is None:
            return
        try:
            taps.remove(place)
            with closing(Networks(self._host.root, self._host.run)) as networks:
                networks.disconnect(place.owner, place.network, place.address, place.ports)
        except OSError as error:
            raise TareError(f"network of {place.owner}", str(error), "run: tare clean") from error

    def left(self) -> list[str]:
        """What is still there after `close`, in words."""
        place = self._attachment
        if place is None:
            return []
        with closing(Networks(self._host.root, self._host.run)) as networks:
            leased = networks.holds(place.owner, "lease", place.network)
            held = [port for port in place.ports if networks.holds(place.owner, "port", f"{port} {place.address}")]
        found = [f"tap {place.interface}"] if links.index_of(place.interface) is not None else []
        found += [f"address {place.address}"] if leased else []
        return found + [f"port {port}" for port in held]


def refuse(network: NetworkSpec) -> None:
    """Raise UsageError for the networks of others: a machine has a kernel of its own, which no namespace reaches."""
    if network.mode is NetworkMode.HOST:
        why = "its own kernel cannot use the host's interfaces"
        raise UsageError("virtual machine on network host", why, "use --network bridge")
    if network.mode is NetworkMode.CONTAINER:
        why = "its own kernel cannot join a namespace of the host's"
        raise UsageError(f"virtual machine on network container:{network.container}", why, "use --network bridge")


def _attach(entry: Entry, host: Host, spec: InstanceSpec, instance_id: str) -> Attachment:
    ports = [Port(*words) for words in spec.network.ports]
    with closing(Networks(host.root, host.run)) as networks:
        attachment = networks.connect(instance_id, entry.note, ports=ports)
        try:
            taps.make(attachment)
        except BaseException:
            with suppress(TareError, OSError):
                networks.disconnect(instance_id, attachment.network, attachment.address, attachment.ports)
            raise
    return attachment


def _named(hostname: str) -> Identity:
    return Identity(hostname=hostname, files=(("/etc/hosts", names.hosts_file(hostname, None)),))


def _placed(hostname: str, attachment: Attachment) -> Identity:
    place = Place(
        address=attachment.address,
        prefix_bits=attachment.prefix_bits,
        gateway=attachment.gateway,
        mac=attachment.mac_address,
        gateway_mac=attachment.gateway_mac_address,
        mtu=attachment.mtu,
    )
    files = (
        ("/etc/hosts", names.hosts_file(hostname, attachment.address)),
        ("/etc/resolv.conf", names.resolv_conf(names.host_resolv_conf())),
    )
    return Identity(hostname=hostname, place=place, files=files)
