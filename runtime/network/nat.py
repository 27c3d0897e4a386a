"""The nftables rules that connect the bridges with the world: one table for all networks of a state root.

Set up once and as a whole; a container changes it only by publishing ports, which are elements of two
maps. What the rules are is pure and tested without root. IPv4 only. Written in nft's own language:
its JSON reader (1.0.6) crashes on a translation that is looked up in a map of concatenations.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from runtime.errors import TareError
from runtime.linux.netlink import Netlink, attributes, message, text
from runtime.network.ports import ANY, Port
from runtime.network.subnet import Subnet

TIMEOUT_S: Final = 30.0
_EVERYWHERE, _ADDRESSED = "everywhere", "addressed"  # the maps of ports: of any host address, of one
# linux/netfilter/nfnetlink.h, nf_tables.h
_NFT_MSG_GETTABLE: Final = 10 << 8 | 1
_NFPROTO_INET: Final = 1
_NFTA_TABLE_NAME, _NFTA_TABLE_USE = 1, 3
_CHAINS: Final = {
    # with the priorities that iptables has, so that the usual order holds
    "prerouting": "type nat hook prerouting priority -100",
    "output": "type nat hook output priority -100",
    "postrouting": "type nat hook postrouting priority 100",
    "forward": "type filter hook forward priority 0",
    "loopback": "type filter hook prerouting priority -300",
}
_CONTENTS: Final = len(_CHAINS) + 3
"""How many chains, maps and sets the table holds when it is whole."""
_SERVICE: Final = "inet_proto . inet_service"
_TARGET: Final = "ipv4_addr . inet_service"
_PORT_RULES: Final = tuple(
    f"fib daddr type local meta l4proto {{ tcp, udp }} dnat ip to {key}meta l4proto . th dport map @{name}"
    for name, key in ((_ADDRESSED, "ip daddr . "), (_EVERYWHERE, ""))
)


def ruleset(table: str, networks: Mapping[str, Subnet]) -> str:
    """The commands that make `table` exactly right for `networks` (bridge name stem → subnet), ports untouched.

    What comes from a bridge goes anywhere, disguised as the host. To a bridge goes only what answers,
    what was published, and what comes from the same network: containers of other networks, and hosts
    that route to this one, are kept out.
    """
    lines = [
        f"add table inet {table}",
        f"add set inet {table} subnets {{ type ipv4_addr; flags interval; }}",
        f"add map inet {table} {_EVERYWHERE} {{ type {_SERVICE} : {_TARGET}; }}",
        f"add map inet {table} {_ADDRESSED} {{ type ipv4_addr . {_SERVICE} : {_TARGET}; }}",
    ]
    for chain, hook in _CHAINS.items():
        lines.append(f"add chain inet {table} {chain} {{ {hook}; policy accept; }}")
        lines.append(f"flush chain inet {table} {chain}")
    lines.append(f"flush set inet {table} subnets")
    if networks:
        listed = ", ".join(str(subnet) for subnet in networks.values())
        lines.append(f"add element inet {table} subnets {{ {listed} }}")
    lines += [f"add rule inet {table} {chain} {rule}" for chain, rule in _rules(networks)]
    return "".join(f"{line}\n" for line in lines)


def apply(commands: str) -> None:
    """Carry out all commands or none. Raises TareError."""
    _run(["nft", "-f", "-"], commands.encode())


def is_whole(wire: Netlink, table: str) -> bool:
    """Whether the table is there with all that belongs in it, asked of the kernel (`wire` is of netfilter's family)."""
    try:
        replies = wire.ask([message(_NFT_MSG_GETTABLE, 0, _nfgenmsg() + text(_NFTA_TABLE_NAME, table))], table)
    except OSError:
        return False
    found = attributes(replies[0][1][4:])
    use: int = struct.unpack(">I", found[_NFTA_TABLE_USE])[0]
    return use >= _CONTENTS


def drop(table: str) -> None:
    """Remove the table with all that it holds; absent is no error."""
    apply(f"add table inet {table}\ndelete table inet {table}\n")


def published(table: str) -> list[tuple[Port, str]]:
    """Every published port and the container's address, as the kernel has them."""
    found: list[tuple[Port, str]] = []
    for name in (_EVERYWHERE, _ADDRESSED):
        with suppress(TareError):
            listed = _run(["nft", "-j", "list", "map", "inet", table, name])
            found += [pair for item in json.loads(listed)["nftables"] for pair in _pairs(item.get("map", {}))]
    return found


def publish(table: str, address: str, ports: Sequence[Port]) -> str:
    """The commands that lead `ports` to `address`; one that is taken makes them fail."""
    return "".join(
        f"create element inet {table} {_map(port)} {{ {_key(port)} : {address} . {port.port} }}\n" for port in ports
    )


def withdraw(table: str, ports: Sequence[Port]) -> str:
    """The commands that undo `publish`; each port must be there."""
    return "".join(f"delete element inet {table} {_map(port)} {{ {_key(port)} }}\n" for port in ports)


def _run(argv: list[str], commands: bytes | None = None) -> bytes:
    """What nft prints. Imported here: most containers need no more of this module than `is_whole`."""
    from runtime.command import run

    return run(argv, timeout_s=TIMEOUT_S, input=commands).stdout


def _rules(networks: Mapping[str, Subnet]) -> list[tuple[str, str]]:
    rules = [(chain, rule) for chain in ("prerouting", "output") for rule in _PORT_RULES]
    rules += [
        ("postrouting", "ip saddr @subnets ip daddr != @subnets masquerade"),
        # A container that reaches itself or a neighbour by a published port must get the answer by the same way.
        ("postrouting", "ip saddr @subnets ip daddr @subnets ct status dnat masquerade"),
        ("postrouting", "ip saddr 127.0.0.0/8 ip daddr @subnets masquerade"),
        ("forward", "ip daddr @subnets ct state established,related accept"),
        ("forward", "ip daddr @subnets ct status dnat accept"),
    ]
    for stem, subnet in networks.items():
        rules.append(("forward", f'iifname "{stem}*" ip daddr {subnet} accept'))
        # The bridges route 127.0.0.0/8, so that the host reaches published ports there; nobody else may.
        rules.append(("loopback", f'iifname "{stem}*" ip daddr 127.0.0.0/8 drop'))
    rules.append(("forward", "ip daddr @subnets drop"))
    return rules


def _map(port: Port) -> str:
    return _EVERYWHERE if port.host == ANY else _ADDRESSED


def _key(port: Port) -> str:
    return ("" if port.host == ANY else f"{port.host} . ") + f"{port.protocol} . {port.host_port}"


def _pairs(listed: dict[str, Any]) -> list[tuple[Port, str]]:
    pairs = []
    for key, value in listed.get("elem", ()):
        *host, protocol, host_port = key["concat"]
        address, port = value["concat"]
        pairs.append((Port(host_port, port, protocol, host[0] if host else ANY), address))
    return pairs


def _nfgenmsg() -> bytes:
    return struct.pack("=BBH", _NFPROTO_INET, 0, 0)
