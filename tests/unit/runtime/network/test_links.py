"""Our requests as pyroute2, an independent implementation, reads them."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from runtime.network import inside, links
from runtime.network.attachment import link_name

ADDRESS, GATEWAY = bytes([10, 87, 0, 2]), bytes([10, 87, 0, 1])
MAC = b"\x02\x54\x0a\x57\x00\x02"


def read(kind: type[Any], data: bytes) -> Any:
    message = kind(data)
    message.decode()
    assert message["header"]["length"] == len(data)
    return message


def test_a_pair_is_born_on_the_bridge_and_in_the_process_s_namespace() -> None:
    made, quiet, attached, known = links.pair("ve0", 7, ADDRESS, 1400, MAC).messages(4321)
    message = read(ifinfmsg, made)
    assert (message.get_attr("IFLA_IFNAME"), message.get_attr("IFLA_MTU")) == ("ve0", 1400)
    info = message.get_attr("IFLA_LINKINFO")
    assert info.get_attr("IFLA_INFO_KIND") == "veth"
    peer = info.get_attr("IFLA_INFO_DATA").get_attr("VETH_INFO_PEER")
    assert peer.get_attr("IFLA_IFNAME") == "eth0"
    assert peer.get_attr("IFLA_ADDRESS") == MAC.hex(":")
    assert peer.get_attr("IFLA_MTU") == 1400
    assert peer.get_attr("IFLA_NET_NS_PID") == 4321
    assert read(ifinfmsg, quiet).get_attr("IFLA_IFNAME") == "ve0"
    message = read(ifinfmsg, attached)
    assert (message.get_attr("IFLA_MASTER"), message["flags"] & 1, message["change"] & 1) == (7, 1, 1)
    message = read(ndmsg, known)
    assert (message["ifindex"], message["state"]) == (7, 0x80)
    assert (message.get_attr("NDA_DST"), message.get_attr("NDA_LLADDR")) == ("10.87.0.2", MAC.hex(":"))


@pytest.mark.parametrize("pid", [1, 255, 2**22, 2**31 - 1])
def test_any_pid_fits_and_the_length_stays(pid: int) -> None:
    pair = links.pair("ve0", 7, bytes([255, 255, 255, 255]), 1500, MAC)
    message = read(ifinfmsg, pair.messages(pid)[0])
    data = message.get_attr("IFLA_LINKINFO").get_attr("IFLA_INFO_DATA")
    assert data.get_attr("VETH_INFO_PEER").get_attr("IFLA_NET_NS_PID") == pid


def test_inside_the_gateway_is_known_and_the_way_to_everything() -> None:
    lo, _, up, address, route, gateway = inside.requests(2, ADDRESS, 22, GATEWAY, MAC)
    assert [(read(ifinfmsg, data)["index"], read(ifinfmsg, data)["flags"]) for data in (lo, up)] == [(1, 1), (2, 1)]
    message = read(ifaddrmsg, address)
    assert (message["prefixlen"], message.get_attr("IFA_LOCAL")) == (22, "10.87.0.2")
    assert message.get_attr("IFA_BROADCAST") == "10.87.3.255"
    message = read(rtmsg, route)
    assert (message["family"], message["dst_len"], message["table"], message["type"]) == (socket.AF_INET, 0, 254, 1)
    assert (message.get_attr("RTA_GATEWAY"), message.get_attr("RTA_OIF")) == ("10.87.0.1", 2)
    assert read(ndmsg, gateway).get_attr("NDA_DST") == "10.87.0.1"


def test_a_link_is_named_for_its_owner_alone() -> None:
    names = {link_name(f"tare-{number:012x}") for number in range(1000)}
    assert len(names) == 1000
    assert {len(name) for name in names} == {14}
    long = "0123456789abcdef" * 4
    assert link_name(long) == "ve0123456789abc"
    assert link_name(long) == link_name(long[:32])  # what a pool remembers of an owner is enough
