"""Links, addresses and routes of this network namespace: requests as bytes, and what can be asked.

Constants are named as in the kernel's headers. Which bridge and which address is decided elsewhere.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from runtime.linux import netlink
from runtime.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    Netlink,
    attribute,
    message,
    nested,
    number,
    text,
)
from runtime.record import ordered_record

# linux/rtnetlink.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN: Final = 254
# linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/veth.h
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_NET_NS_PID: Final = 19
IFLA_IFALIAS: Final = 20
IFLA_AF_SPEC: Final = 26
IFLA_GROUP: Final = 27
IFLA_NET_NS_FD: Final = 28
IFLA_NUM_TX_QUEUES: Final = 31
IFLA_NUM_RX_QUEUES: Final = 32
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_BRPORT_MODE: Final = 4
_IFLA_BR_MCAST_SNOOPING: Final = 23
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_IN6_ADDR_GEN_MODE_NONE: Final = b"\1"
_VETH_INFO_PEER: Final = 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT: Final = 0x80
_IFF_UP: Final = 1
# linux/sockios.h
_SIOCGIFFLAGS: Final = 0x8913

INSIDE: Final = "eth0"
"""What a container calls its end."""


@ordered_record
class Pair:
    """The requests for a veth pair; the first is split where the process goes in whose namespace one end is born."""

    before: bytes
    after: bytes
    rest: tuple[bytes, ...]

    def messages(self, pid: int) -> list[bytes]:
        """The requests, ready to send from the host's namespace."""
        return [self.before + struct.pack("=I", pid) + self.after, *self.rest]


def pair(name: str, bridge_index: int, address: bytes, mtu: int, hardware: bytes, *, reflects: bool = False) -> Pair:
    """A veth pair: `name` on the bridge, up; its other end `eth0` in a process's namespace, still down.

    `address` (four bytes) gets a permanent neighbour entry on the bridge: nobody has to ask for it by a
    broadcast that every port would hear, and the neighbour table's limits do not count it. With `reflects`
    the bridge sends back by the port what came from there: a published port that a container itself uses
    (where iptables sees bridged packets, they are translated before the bridge, not behind it).
    """
    marker = struct.pack("=I", 0xFFFFFFFF)
    queues = number(IFLA_NUM_TX_QUEUES, 1) + number(IFLA_NUM_RX_QUEUES, 1)
    # No other four bytes here are all ones: neither a name, a MAC of ours nor an MTU.
    peer = link_header() + text(IFLA_IFNAME, INSIDE) + attribute(IFLA_ADDRESS, hardware) + number(IFLA_MTU, mtu)
    data = nested(_IFLA_INFO_DATA, nested(_VETH_INFO_PEER, peer + queues + attribute(IFLA_NET_NS_PID, marker)))
    made = message(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        named(name) + number(IFLA_MTU, mtu) + queues + nested(IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), data),
    )
    # Without this the kernel gives the host's end an IPv6 address, and looks for duplicates of it.
    quiet = message(RTM_NEWLINK, 0, named(name) + no_ipv6_address())
    attached = message(RTM_NEWLINK, 0, named(name, up=True) + number(IFLA_MASTER, bridge_index))
    before, _, after = made.partition(marker)
    rest = [quiet, attached, neighbour(bridge_index, address, hardware)]
    if reflects:
        port = nested(_IFLA_INFO_SLAVE_DATA, attribute(_IFLA_BRPORT_MODE, b"\1"))
        kind = nested(IFLA_LINKINFO, text(_IFLA_INFO_SLAVE_KIND, "bridge"), port)
        rest.append(message(RTM_NEWLINK, 0, named(name) + kind))
    return Pair(before, after, tuple(rest))


def bridge(name: str, hardware: bytes) -> bytes:
    """Make a bridge that needs neither a search for its address nor the multicast's, which grow with its ports."""
    data = nested(_IFLA_INFO_DATA, attribute(_IFLA_BR_MCAST_SNOOPING, b"\0"))
    kind = nested(IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge"), data)
    return message(
        RTM_NEWLINK,
        NLM_F_CREATE | NLM_F_EXCL,
        named(name) + attribute(IFLA_ADDRESS, hardware) + kind,
    )


def bridge_up(index: int, address: bytes, prefix_bits: int, mtu: int, alias: str) -> list[bytes]:
    """Give the bridge its address, and its MTU by name: otherwise it looks at every port at each change."""
    return [
        message(RTM_NEWLINK, 0, link_header(index) + no_ipv6_address()),
        message(RTM_NEWLINK, 0, link_header(index) + number(IFLA_MTU, mtu) + text(IFLA_IFALIAS, alias)),
        message(
            RTM_NEWADDR,
            NLM_F_CREATE | NLM_F_REPLACE,
            struct.pack("=BBBBI", socket.AF_INET, prefix_bits, 0, 0, index)
            + attribute(_IFA_LOCAL, address)
            + attribute(_IFA_ADDRESS, address),
        ),
        message(RTM_NEWLINK, 0, link_header(index, up=True)),
    ]


def neighbour(index: int, address: bytes, hardware: bytes) -> bytes:
    """A permanent neighbour on link `index`."""
    head = struct.pack("=BxxxiHBB", socket.AF_INET, index, _NUD_PERMANENT, 0, 0)
    return message(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        head + attribute(_NDA_DST, address) + attribute(_NDA_LLADDR, hardware),
    )


def index_of(name: str) -> int | None:
    """The index of a link; None when there is none of that name."""
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return None


def is_up(name: str) -> bool:
    """Whether a link exists and was brought up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, _SIOCGIFFLAGS, struct.pack("16sh22x", name.encode(), 0))
        except OSError:
            return False
    flags: int = struct.unpack_from("=16sh", answer)[1]
    return bool(flags & _IFF_UP)


def remove(wire: Netlink, names: list[str], group: int) -> None:
    """Remove links; absent is no error. Many go at once, as `group`: one by one each waits for the kernel."""
    present = [name for name in names if index_of(name) is not None]
    for name in present:
        with suppress(OSError):
            wire.ask([message(RTM_NEWLINK, 0, named(name) + number(IFLA_GROUP, group))], name)
    if present:
        try:
            wire.ask([message(RTM_DELLINK, 0, link_header() + number(IFLA_GROUP, group))], "removing links")
        except OSError as error:
            if error.errno != errno.ENODEV:  # the kernel was faster
                raise


@ordered_record
class Route:
    """An IPv4 route of the main table: network (as a number), its prefix, the link it leaves by (0: none)."""

    network: int
    prefix_bits: int
    link: int


def routes(wire: Netlink) -> Iterator[Route]:
    """The host's IPv4 routes; the default route has the prefix 0."""
    request = netlink.message(RTM_GETROUTE, NLM_F_DUMP, struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8))
    for _, body in wire.ask([request], "reading the routes"):
        prefix, table = body[1], body[4]
        found = netlink.attributes(body[12:])
        if table == _RT_TABLE_MAIN:
            link = struct.unpack("=I", found[_RTA_OIF])[0] if _RTA_OIF in found else 0
            yield Route(int.from_bytes(found.get(_RTA_DST, bytes(4))), prefix, link)


def bridges(wire: Netlink) -> dict[str, str]:
    """Every bridge there is, whosever it is: its name and its alias, "" where it has none."""
    found = {}
    for _, body in wire.ask([message(RTM_GETLINK, NLM_F_DUMP, link_header())], "listing links"):
        words = netlink.attributes(body[16:])
        kind = netlink.attributes(words.get(IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b"")
        if kind.rstrip(b"\0") == b"bridge":
            name, alias = (
                words.get(each, b"").rstrip(b"\0").decode(errors="replace") for each in (IFLA_IFNAME, IFLA_IFALIAS)
            )
            found[name] = alias
    return found


def mtu_of(wire: Netlink, index: int) -> int:
    """The MTU of a link."""
    for _, body in wire.ask([message(RTM_GETLINK, 0, link_header(index))], f"link {index}"):
        found = netlink.attributes(body[16:])
        if IFLA_MTU in found:
            mtu: int = struct.unpack("=I", found[IFLA_MTU])[0]
            return mtu
    raise OSError(19, f"link {index} has no MTU")


def link_header(index: int = 0, *, up: bool = False) -> bytes:
    """The struct ifinfomsg."""
    flag = _IFF_UP if up else 0
    return struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flag, flag)


def named(name: str, *, up: bool = False) -> bytes:
    """The beginning of a request about the link of that name."""
    return link_header(up=up) + text(IFLA_IFNAME, name)


def no_ipv6_address() -> bytes:
    """The attribute by which a link gets no IPv6 address of its own accord."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE)
    return nested(IFLA_AF_SPEC, nested(socket.AF_INET6, mode))
