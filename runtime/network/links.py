"""What one launch needs of links: its veth pair's requests as bytes, and what can be asked without netlink.

Constants are named as in the kernel's headers. Bridges, and all that is not for one launch, are `host_links`'.
"""

from __future__ import annotations

import errno
import fcntl
import struct
from _socket import AF_INET, AF_INET6, AF_UNSPEC, SOCK_CLOEXEC, SOCK_DGRAM, if_nametoindex, socket

from runtime.linux.netlink import (
    NLM_F_CREATE,
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

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# linux/rtnetlink.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_NEWNEIGH: Final = 28
# linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/veth.h
IFLA_ADDRESS: Final = 1
IFLA_IFNAME: Final = 3
IFLA_MTU: Final = 4
IFLA_MASTER: Final = 10
IFLA_LINKINFO: Final = 18
IFLA_NET_NS_PID: Final = 19
IFLA_AF_SPEC: Final = 26
IFLA_NUM_TX_QUEUES: Final = 31
IFLA_NUM_RX_QUEUES: Final = 32
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_KIND, _IFLA_INFO_SLAVE_DATA = 1, 2, 4, 5
_IFLA_BRPORT_MODE: Final = 4
_IFLA_INET6_ADDR_GEN_MODE: Final = 8
_IN6_ADDR_GEN_MODE_NONE: Final = b"\1"
_VETH_INFO_PEER: Final = 1
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT: Final = 0x80
_IFF_UP: Final = 1
# linux/sockios.h
_SIOCGIFFLAGS: Final = 0x8913
_SIOCGIFMTU: Final = 0x8921

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


def neighbour(index: int, address: bytes, hardware: bytes) -> bytes:
    """A permanent neighbour on link `index`."""
    head = struct.pack("=BxxxiHBB", AF_INET, index, _NUD_PERMANENT, 0, 0)
    return message(
        RTM_NEWNEIGH,
        NLM_F_CREATE | NLM_F_REPLACE,
        head + attribute(_NDA_DST, address) + attribute(_NDA_LLADDR, hardware),
    )


def index_of(name: str) -> int | None:
    """The index of a link; None when there is none of that name."""
    try:
        return if_nametoindex(name)
    except OSError:
        return None


def mtu_if_up(name: str) -> int | None:
    """The MTU of a link that was brought up; None for one that is down or not there."""
    any_socket = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC)
    try:
        flags = _told(any_socket, _SIOCGIFFLAGS, name)
        return _told(any_socket, _SIOCGIFMTU, name) if flags & _IFF_UP else None
    except OSError:
        return None
    finally:
        any_socket.close()


def _told(any_socket: socket, request: int, name: str) -> int:
    """The number that a request about a link (struct ifreq) is answered with: flags fit into its lower half."""
    answer: int = struct.unpack_from("=16si", fcntl.ioctl(any_socket, request, struct.pack("=16s24x", name.encode())))[
        1
    ]
    return answer


def remove(name: str) -> None:
    """Remove a container's pair, of which `name` is one end; absent is no error."""
    if index_of(name) is None:
        return
    try:
        with Netlink() as wire:
            wire.ask([message(RTM_DELLINK, 0, named(name))], f"removing link {name}")
    except OSError as error:
        if error.errno != errno.ENODEV:  # the kernel was faster
            raise


def link_header(index: int = 0, *, up: bool = False) -> bytes:
    """The struct ifinfomsg."""
    flag = _IFF_UP if up else 0
    return struct.pack("=BxHiII", AF_UNSPEC, 0, index, flag, flag)


def named(name: str, *, up: bool = False) -> bytes:
    """The beginning of a request about the link of that name."""
    return link_header(up=up) + text(IFLA_IFNAME, name)


def no_ipv6_address() -> bytes:
    """The attribute by which a link gets no IPv6 address of its own accord."""
    mode = attribute(_IFLA_INET6_ADDR_GEN_MODE, _IN6_ADDR_GEN_MODE_NONE)
    return nested(IFLA_AF_SPEC, nested(AF_INET6, mode))
