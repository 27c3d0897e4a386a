"""Descriptors over a socket, beside what the socket module does."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from runtime.linux.passing import receive, send


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_message_arrives_with_its_descriptors(pair: tuple[socket.socket, socket.socket], count: int) -> None:
    ours, theirs = pair
    send(ours, b"words", [0] * count)
    message, found = receive(theirs, 16, 3)
    assert (message, len(found)) == (b"words", count)
    for descriptor in found:
        assert os.path.sameopenfile(descriptor, 0)
        assert not os.get_inheritable(descriptor)
        os.close(descriptor)


def test_the_socket_module_understands_it(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    send(ours, b"there", [0])
    message, found, _, _ = socket.recv_fds(theirs, 16, 2)
    socket.send_fds(theirs, [b"back"], found)
    assert (message, len(found)) == (b"there", 1)
    answer, again = receive(ours, 16, 1)
    assert (answer, len(again)) == (b"back", 1)
    for descriptor in (*found, *again):
        os.close(descriptor)


def test_an_end_is_an_empty_message_and_nobody_to_hear_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.close()
    assert receive(ours, 16, 1) == (b"", [])
    with pytest.raises(BrokenPipeError):
        send(ours, b"words")
