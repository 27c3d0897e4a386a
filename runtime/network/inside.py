"""What a container's child does in its own network namespace: wait for its end of the pair, and set it up.

Lean, no root of the host's needed: the namespace is the child's own.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from _socket import AF_INET

from runtime.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, Netlink, attribute, attributes, message, number
from runtime.network.links import (
    IFLA_IFNAME,
    RTM_GETLINK,
    RTM_NEWADDR,
    RTM_NEWLINK,
    link_header,
    named,
    neighbour,
    no_ipv6_address,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

TIMEOUT_S: Final = 30.0
# linux/rtnetlink.h, linux/if_addr.h
_RTM_NEWROUTE: Final = 24
_RTA_OIF, _RTA_GATEWAY = 4, 5
_RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 4, 0, 1
_RTMGRP_LINK: Final = 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_LOOPBACK: Final = 1  # its index, in every namespace


def set_up(name: str, address: bytes, prefix_bits: int, gateway: bytes, hardware: bytes) -> None:
    """Bring up lo and link `name` with `address`; `gateway`, whose MAC is `hardware`, is the way to everything else.

    The link may still be on its way: it is waited for. The working directory is a root with a /proc. Raises OSError,
    TimeoutError after 30 s.
    """
    with Netlink() as wire:
        index = wait_for(wire, name)
        ignore_routers(name)
        wire.ask(requests(index, address, prefix_bits, gateway, hardware), f"setting up {name}")


def ignore_routers(name: str) -> None:
    """Let no neighbour be the way to the IPv6 world by saying that it is a router. Before the link is up."""
    try:
        descriptor = os.open(f"proc/sys/net/ipv6/conf/{name}/accept_ra", os.O_WRONLY)
    except FileNotFoundError:  # a kernel without IPv6
        return
    os.write(descriptor, b"0")
    os.close(descriptor)


def requests(index: int, address: bytes, prefix_bits: int, gateway: bytes, hardware: bytes) -> list[bytes]:
    """All that sets up both links, in order."""
    broadcast = (int.from_bytes(address) | (1 << (32 - prefix_bits)) - 1).to_bytes(4)
    return [
        message(RTM_NEWLINK, 0, link_header(_LOOPBACK, up=True)),
        # Without IPv6 addresses nothing is sent to look for routers and duplicates, which every port would hear.
        message(RTM_NEWLINK, 0, link_header(index) + no_ipv6_address()),
        message(RTM_NEWLINK, 0, link_header(index, up=True)),
        message(
            RTM_NEWADDR,
            NLM_F_CREATE | NLM_F_EXCL,
            struct.pack("=BBBBI", AF_INET, prefix_bits, 0, 0, index)
            + attribute(_IFA_LOCAL, address)
            + attribute(_IFA_ADDRESS, address)
            + attribute(_IFA_BROADCAST, broadcast),
        ),
        message(
            _RTM_NEWROUTE,
            NLM_F_CREATE | NLM_F_EXCL,
            # struct rtmsg
            struct.pack(
                "=BBBBBBBBI",
                *(AF_INET, 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_STATIC, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0),
            )
            + attribute(_RTA_GATEWAY, gateway)
            + number(_RTA_OIF, index),
        ),
        neighbour(index, gateway, hardware),
    ]


def wait_for(wire: Netlink, name: str, timeout_s: float = TIMEOUT_S) -> int:
    """The index of link `name` as soon as it is there. Raises TimeoutError."""
    index = _find(wire, name)
    if index is not None:
        return index
    deadline = time.monotonic() + timeout_s
    with Netlink(groups=_RTMGRP_LINK) as news:
        index = _find(wire, name)  # it may have come before we listened
        while index is None:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise TimeoutError(errno.ETIMEDOUT, f"no link {name} came in {timeout_s:g} s")
            for kind, body in news.heard(remaining):
                if kind == RTM_NEWLINK and _name(body) == name:
                    index = _index(body)
    return index


def _find(wire: Netlink, name: str) -> int | None:
    request = message(RTM_GETLINK, 0, named(name))
    try:
        replies = wire.ask([request], f"looking for {name}")
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise
    return _index(replies[0][1])


def _index(body: bytes) -> int:
    index: int = struct.unpack_from("=i", body, 4)[0]
    return index


def _name(body: bytes) -> str:
    return attributes(body[16:]).get(IFLA_IFNAME, b"").rstrip(b"\0").decode()
