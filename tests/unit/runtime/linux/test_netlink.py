"""Netlink's frame and attributes, and answers good and bad, without a kernel."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.linux import netlink
from runtime.linux.netlink import Netlink, attribute, attributes, message, nested, number, text


@pytest.fixture
def wire() -> Iterator[tuple[Netlink, socket.socket]]:
    ours, kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    one = Netlink.__new__(Netlink)
    one._socket = ours
    with kernel, one:
        yield one, kernel


def answer(code: int, extra: bytes = b"", flags: int = 0) -> bytes:
    body = struct.pack("=i", -code) + bytes(16) + extra
    return struct.pack("=IHHII", 16 + len(body), netlink.NLMSG_ERROR, flags, 0, 0) + body


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=40)))
def test_attributes_are_read_as_they_were_written(words: dict[int, bytes]) -> None:
    packed = b"".join(attribute(kind, payload) for kind, payload in words.items())
    assert len(packed) % 4 == 0
    assert attributes(packed) == words


@given(st.binary(max_size=100))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    attributes(data)
    list(netlink._split(data))


def test_the_kinds_of_attribute() -> None:
    assert text(3, "eth0") == b"\x09\0\3\0eth0\0\0\0\0"
    assert attributes(nested(18, number(5, 7)))[18] == number(5, 7)


def test_every_message_is_answered_in_one_exchange(wire: tuple[Netlink, socket.socket]) -> None:
    one, kernel = wire
    news = struct.pack("=IHHII", 20, 16, 0, 0, 0) + b"body"
    kernel.send(news + answer(0))
    kernel.send(answer(0))
    assert one.ask([message(16, 0, b""), message(20, 0, b"")], "asking") == [(16, b"body")]
    assert len(kernel.recv(1000)) == 32


def test_the_first_failure_is_raised_with_the_kernel_s_words_once_all_is_answered(
    wire: tuple[Netlink, socket.socket],
) -> None:
    one, kernel = wire
    explained = attribute(1, b"Device is not a bridge\0")
    kernel.send(answer(errno.EINVAL, explained, flags=0x300) + answer(errno.ENODEV))
    with pytest.raises(OSError, match=r"making ve0: Invalid argument \(Device is not a bridge\)") as caught:
        one.ask([message(16, 0, b""), message(16, 0, b"")], "making ve0")
    assert caught.value.errno == errno.EINVAL
    kernel.send(answer(0))
    assert one.ask([message(16, 0, b"")], "after") == []


def test_nothing_heard_is_a_time_out(wire: tuple[Netlink, socket.socket]) -> None:
    with pytest.raises(TimeoutError):
        wire[0].heard(0.01)
