"""Networks as the drivers and the commands use them: connect a container, disconnect it, give everything back.

An address is taken and its bridge is there before the container is cloned; the veth pair is made while
it goes on (`Flat.links`); the pair dies with the container's network namespace, which the kernel clears
in batches: to remove links one by one takes tens of milliseconds each.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import UsageError
from runtime.ledger import boot_id
from runtime.network import links, nat
from runtime.network.attachment import Attachment, link_name
from runtime.network.bridge import Bridges
from runtime.network.definitions import DEFAULT, SUBNET_VARIABLE, Definitions, Network
from runtime.network.lock import Lock, alone_on_this_host
from runtime.network.pool import Pool
from runtime.network.ports import Port, claim
from runtime.network.subnet import Subnet, hardware, shown

if TYPE_CHECKING:
    from runtime.network.host_links import Bridge

Note = Callable[[str, str], None]


class Networks:
    """The networks of one state root. Thread-safe; other processes are kept out by a lock on a file."""

    def __init__(self, root: Path, run: Path) -> None:
        self.definitions = Definitions(root)
        self._run = run / "network"
        self._lock = Lock(self._run / "lock")
        self._bridges = Bridges(self.definitions, self._run)
        self._pools: dict[str, tuple[Subnet, Pool]] = {}

    def close(self) -> None:
        """Give the descriptors back; what is connected stays so."""
        for _, pool in self._pools.values():
            pool.close()
        self._pools.clear()
        self._bridges.close()
        self._lock.close()

    def connect(self, owner: str, note: Note, *, network: str = DEFAULT, ports: Sequence[Port] = ()) -> Attachment:
        """An address for `owner` on `network`, its bridge up and `ports` published.

        `note(kind, value)` is called before anything is made, with what the ledger must know. Raises
        TareError when the addresses or a port are taken, and leaves nothing then.
        """
        with self._lock:
            definition = self._ready(network)
            note("lease", network)
            pool = self._pool(definition)
            lease = pool.take(owner)
            try:
                index, mtu = self._bridges.ensure(definition, lease.segment)
                if lease.former:
                    # Gone long since, unless the pool is tiny or somebody else joined its network namespace.
                    links.remove(link_name(lease.former))
                name = link_name(owner)
                note("link", name)
                published = self._publish(note, shown(lease.address), ports) if ports else ()
            except BaseException:
                pool.free(owner, lease.address)
                raise
        subnet = definition.subnet
        return Attachment(
            owner=owner,
            network=network,
            packed_address=lease.address,
            packed_gateway=subnet.gateway(lease.segment),
            prefix_bits=subnet.segment_prefix_bits,
            bridge=definition.bridge(lease.segment),
            interface=name,
            pair=links.pair(name, index, lease.address, mtu, hardware(lease.address), reflects=bool(published)),
            mtu=mtu,
            ports=published,
        )

    def disconnect(self, owner: str, network: str, address: str, ports: Sequence[Port] = ()) -> None:
        """Give back what `connect` took. The link goes with the container's network namespace."""
        with self._lock:
            if ports and self._bridges.rules_are_whole():
                there = [port for port, where in self.published() if where == address and port in ports]
                self._withdraw(there)
            definition = self.definitions.find(network)
            if definition is not None:
                self._pool(definition).free(owner, socket.inet_aton(address))

    def holds(self, owner: str, kind: str, value: str) -> bool:
        """Whether a resource that `connect` noted for `owner` is still there."""
        match kind:
            case "link":
                return links.index_of(value) is not None
            case "lease":
                definition = self.definitions.find(value)
                return definition is not None and any(name == owner[:32] for _, name in self.leases(definition))
            case "port":
                return any(value == f"{port} {address}" for port, address in self.published())
        return False

    def sweep(self, owner: str, resources: Sequence[tuple[str, str]]) -> None:
        """Remove what `connect` noted, as (kind, value), for an owner that is dead; of other kinds nothing."""
        if not any(kind in ("link", "lease", "port") for kind, _ in resources):
            return
        with self._lock:
            noted = {value for kind, value in resources if kind == "port"}
            if noted:
                self._withdraw([port for port, address in self.published() if f"{port} {address}" in noted])
            for kind, value in resources:
                definition = self.definitions.find(value) if kind == "lease" else None
                if definition is not None and self._pool_path(definition).exists():
                    self._pool(definition).release(owner)
            for kind, value in resources:
                if kind == "link":
                    links.remove(value)

    def leases(self, network: Network) -> list[tuple[str, str]]:
        """Every (address, owner) of a network; nothing is made for the asking."""
        if not self._pool_path(network).exists():
            return []
        with self._lock:
            return self._pool(network).leases()

    def published(self) -> list[tuple[Port, str]]:
        """Every published port and the container's address."""
        if not self._may_hold():
            return []
        with self._lock:
            return nat.published(self.definitions.table) if self._bridges.rules_are_whole() else []

    def bridges(self, network: Network) -> list[str]:
        """The bridges of a network that are there."""
        return self._bridges.present(network)

    def seen(self, network: Network) -> list[tuple[Bridge, list[str]]]:
        """What the kernel says of a network's bridges, and the addresses of each."""
        host = self._bridges.links
        found = [index for index in map(links.index_of, self.bridges(network)) if index is not None]
        return [(host.bridge(index), host.addresses_of(index)) for index in found]

    def create(self, name: str, subnet: str | None) -> Network:
        """A new network; its bridge is made when the first container needs it."""
        chosen = Subnet.parse(subnet) if subnet else None
        with self._lock:
            return self.definitions.create(name, chosen, self._bridges.links.routes())

    def remove(self, name: str) -> None:
        """Remove a network that no container uses."""
        network = self.definitions.demand(name)
        with self._lock:
            used = self.leases(network)
            if used:
                raise UsageError(f"network {name}", f"{len(used)} containers use it", "remove them first")
            self._take_down(network)
            self.definitions.remove(name)
            if self._bridges.rules_are_whole():
                self._bridges.apply_rules()

    def traces(self) -> list[str]:
        """What networks without any container have on this host, a line each: what `retire` would remove."""
        if not self._may_hold():
            return []
        with self._lock:
            networks = self.definitions.all()
            if any(self.leases(network) for network in networks):
                return []
            found = [f"bridge {name}" for network in networks for name in self.bridges(network)]
            table = [f"nftables table {self.definitions.table}"] if self._bridges.rules_are_whole() else []
            return found + table

    def retire(self) -> list[str]:
        """When no container uses any network, take everything off the host; returns what went, a line each."""
        if not self._may_hold():
            return []
        with self._lock:
            gone = self.traces()
            if gone:
                for network in self.definitions.all():
                    self._take_down(network)
                self._bridges.leave()
            return gone

    def reclaim(self, living: Callable[[], Iterable[str]]) -> list[str]:
        """Free the addresses of owners that `living` (asked afterwards) does not name; a line each.

        An owner's page is opened before its address is taken and struck out after it is given back.
        """
        taken = [(network, owner) for network in self.definitions.all() for _, owner in self.leases(network)]
        known = {owner[:32] for owner in living()} if taken else set()
        lost = [(network, owner) for network, owner in taken if owner not in known]
        for network, owner in lost:
            with self._lock:
                self._pool(network).release(owner)
        return [f"{owner}: address on network {network.name}" for network, owner in lost]

    def remove_orphans(self) -> list[str]:
        """Remove the bridges of state roots that have been deleted; returns what went, a line each."""
        return self._bridges.remove_orphans()

    def _ready(self, name: str) -> Network:
        """The network, its subnet beyond doubt: the default one is chosen when it is first needed."""
        if name != DEFAULT:
            return self.definitions.demand(name)
        wanted = os.environ.get(SUBNET_VARIABLE)
        chosen = Subnet.parse(wanted) if wanted else None
        now = self.definitions.find(name)
        if now is not None and chosen in (None, now.subnet) and self._stands(now):
            return now
        if now is not None and self.leases(now):
            raise UsageError(f"{SUBNET_VARIABLE}={wanted}", f"containers use {now.subnet}", "remove them first")
        if now is not None:
            self._take_down(now)
        with alone_on_this_host():
            made = self.definitions.save(name, chosen, self._bridges.links.routes())
            self._bridges.ensure(made, 0)
        return made

    def _may_hold(self) -> bool:
        """Whether there can be anything on the host: only root makes it, and notes it here."""
        return os.geteuid() == 0 and self._run.exists()

    def _stands(self, network: Network) -> bool:
        """Whether a network may be used as it is: it is in use, or nothing on the host has come into its way."""
        if self._bridges.is_known(network) or self.bridges(network) or self.leases(network):
            return True
        return not network.automatic or not self._bridges.overlapping(network.subnet)

    def _pool_path(self, network: Network) -> Path:
        return self._run / f"{network.name}.pool"

    def _pool(self, network: Network) -> Pool:
        known = self._pools.get(network.name)
        if known is None or known[0] != network.subnet:
            self._close_pool(network)
            known = network.subnet, Pool(self._pool_path(network), network.subnet, boot_id())
            self._pools[network.name] = known
        return known[1]

    def _close_pool(self, network: Network) -> None:
        known = self._pools.pop(network.name, None)
        if known is not None:
            known[1].close()

    def _publish(self, note: Note, address: str, ports: Sequence[Port]) -> tuple[Port, ...]:
        """Publish `ports`, their host ports chosen where they were 0."""
        chosen = claim(ports, (port for port, _ in self.published()))
        for port in chosen:
            note("port", f"{port} {address}")
        nat.apply(nat.publish(self.definitions.table, address, chosen))
        return chosen

    def _withdraw(self, ports: Sequence[Port]) -> None:
        if ports:
            nat.apply(nat.withdraw(self.definitions.table, ports))

    def _take_down(self, network: Network) -> None:
        """Remove a network's bridges and its pool. The pool stays a file: another process may have it open."""
        self._bridges.take_down(network)
        self._close_pool(network)
