"""Subnets: what is accepted, how one is cut into segments, which addresses a segment has."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import UsageError
from runtime.network.subnet import Subnet, hardware, shown


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("10.87.0.0", "prefix"),
        ("10.87.0.0/", "prefix"),
        ("10.87.0.0/33", "prefix"),
        ("10.87.0.0/31", "prefix"),
        ("10.0.0.0/7", "prefix"),
        ("10.87.0.0/१६", "prefix"),
        ("10.87.0/16", "not an IPv4 network"),
        ("10.87.0.0\0/16", "not an IPv4 network"),
        ("fd00::/64", "not an IPv4 network"),
        ("", "not an IPv4 network"),
        ("10.87.0.1/16", "did you mean 10.87.0.0/16?"),
    ],
)
def test_what_is_no_subnet_is_refused_with_its_reason(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match="subnet") as caught:
        Subnet.parse(text)
    assert complaint in str(caught.value)


@given(st.integers(0, 2**32 - 1), st.integers(8, 30))
def test_a_subnet_is_read_as_the_standard_library_reads_it(address: int, bits: int) -> None:
    network = ipaddress.ip_network((address, bits), strict=False)
    subnet = Subnet.parse(str(network))
    assert str(subnet) == str(network)
    assert subnet.size == network.num_addresses


@given(st.integers(8, 30), st.data())
def test_every_slot_of_every_segment_is_an_address_of_its_own(bits: int, data: st.DataObject) -> None:
    subnet = Subnet(10 << 24, bits)
    segment = data.draw(st.integers(0, subnet.segments - 1))
    slot = data.draw(st.integers(2, subnet.segment_size - 2))
    address = subnet.address(segment, slot)
    inside = ipaddress.ip_network((subnet.gateway(segment), subnet.segment_prefix_bits), strict=False)
    assert ipaddress.ip_address(address) in inside.hosts()
    assert address != subnet.gateway(segment)
    assert subnet.place(address) == (segment, slot)


def test_a_segment_fits_on_a_bridge() -> None:
    subnet = Subnet.parse("10.87.0.0/16")
    assert (subnet.segments, subnet.capacity, subnet.segment_prefix_bits) == (64, 1021, 22)
    assert shown(subnet.gateway(1)) == "10.87.4.1"
    assert (Subnet.parse("10.0.0.0/29").segments, Subnet.parse("10.0.0.0/29").capacity) == (1, 5)


@given(st.integers(0, 2**32 - 1), st.integers(8, 30), st.integers(0, 2**32 - 1), st.integers(0, 32))
def test_overlap_is_what_the_standard_library_calls_it(one: int, bits: int, other: int, other_bits: int) -> None:
    first = ipaddress.ip_network((one, bits), strict=False)
    second = ipaddress.ip_network((other, other_bits), strict=False)
    assert Subnet.parse(str(first)).overlaps(int(second.network_address), other_bits) == first.overlaps(second)


def test_a_mac_address_is_local_not_multicast_and_tells_addresses_apart() -> None:
    mac = hardware(bytes([10, 87, 3, 4]))
    assert mac.hex(":") == "02:54:0a:57:03:04"
    assert mac[0] & 0b11 == 0b10
