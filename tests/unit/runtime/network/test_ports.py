"""Published ports: how they are written, and when the host has none to give."""

from __future__ import annotations

import socket

import pytest

from runtime.errors import TareError, UsageError
from runtime.network.ports import Port, claim


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("80", Port(0, 80)),
        ("8080:80", Port(8080, 80)),
        ("8080:80/udp", Port(8080, 80, "udp")),
        ("127.0.0.1:8080:80", Port(8080, 80, "tcp", "127.0.0.1")),
        ("127.0.0.1::80/tcp", Port(0, 80, "tcp", "127.0.0.1")),
    ],
)
def test_a_port_is_read_as_docker_reads_it(text: str, port: Port) -> None:
    assert Port.parse(text) == port


@pytest.mark.parametrize(
    "text",
    ["", "x", "80:", "0", "8080:0", "65536:80", "80-90:80-90", "80/sctp", "::1:80:80", "1.2.3:80:80", "-1:80", "8٠:80"],
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="port"):
        Port.parse(text)


@pytest.mark.parametrize(
    ("other", "clash"),
    [
        (Port(80, 1), True),
        (Port(80, 1, "udp"), False),
        (Port(81, 1), False),
        (Port(80, 1, "tcp", "127.0.0.1"), True),
    ],
)
def test_a_port_of_every_address_clashes_with_that_of_one(other: Port, clash: bool) -> None:
    assert Port(80, 80).clashes(other) is clash
    assert other.clashes(Port(80, 80)) is clash
    assert not Port(80, 1, "tcp", "127.0.0.1").clashes(Port(80, 1, "tcp", "127.0.0.2"))


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
def test_a_port_that_a_process_uses_is_not_given(kind: socket.SocketKind, protocol: str) -> None:
    with socket.socket(socket.AF_INET, kind) as used:
        used.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            used.listen()
        number = used.getsockname()[1]
        with pytest.raises(TareError, match=f"{number}/{protocol}: a process of the host uses it"):
            claim(Port(number, 80, protocol))
    assert claim(Port(number, 80, protocol)) == Port(number, 80, protocol)


def test_a_port_that_was_published_is_not_given_again() -> None:
    chosen = claim(Port(0, 80, "tcp", "127.0.0.1"))
    assert chosen.host_port > 0
    with pytest.raises(TareError, match="another container has published it"):
        claim(chosen, [Port(chosen.host_port, 81)])


def test_an_address_that_the_host_lacks_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match=r"this host has no address 192\.0\.2\.99"):
        claim(Port(0, 80, "tcp", "192.0.2.99"))
