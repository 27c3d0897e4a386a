"""Published ports: how they are written, and when the host has none to give."""

from __future__ import annotations

import socket

import pytest

from runtime.errors import TareError, UsageError
from runtime.network.ports import Port, Taken, claim, parse, parse_all, ranges


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
    assert parse(text) == (port,)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "80:",
        "0",
        "8080:0",
        "65536:80",
        "80-",
        "-80",
        "0-5:80-85",
        "80-85-90",
        "80/sctp",
        "::1:80:80",
        "1.2.3:80:80",
        "-1:80",
        "8٠:80",
    ],
)
def test_what_is_no_port_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="port"):
        parse(text)


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
    assert Taken([other]).clash(Port(80, 80)) is clash
    assert Taken([Port(80, 80)]).clash(other) is clash
    assert not Taken([Port(80, 1, "tcp", "127.0.0.2")]).clash(Port(80, 1, "tcp", "127.0.0.1"))


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("8000-8002:80-82", (Port(8000, 80), Port(8001, 81), Port(8002, 82))),
        ("80-81/udp", (Port(0, 80, "udp"), Port(0, 81, "udp"))),
        ("127.0.0.1:53-54:5300-5301/udp", (Port(53, 5300, "udp", "127.0.0.1"), Port(54, 5301, "udp", "127.0.0.1"))),
        ("127.0.0.1::80-81", (Port(0, 80, "tcp", "127.0.0.1"), Port(0, 81, "tcp", "127.0.0.1"))),
        ("80-80:90-90", (Port(80, 90),)),
    ],
)
def test_a_range_is_its_ports_one_by_one(text: str, ports: tuple[Port, ...]) -> None:
    assert parse(text) == ports


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("8000-8005:80-84", "6 ports of the host for 5 of the container"),
        ("8000-8005:80", "6 ports of the host for 1 of the container"),
        ("8000:80-85", "1 ports of the host for 6 of the container"),
        ("8005-8000:80-85", "the range 8005-8000 ends before it begins"),
        ("65530-65536:1-7", "numbers up to 65535"),
    ],
)
def test_a_range_that_cannot_be_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse(text)


@pytest.mark.parametrize(
    "texts", [("80:80", "80:81"), ("8000-8005:80-85", "127.0.0.1:8005:1"), ("53:53/udp", "50-55:1-6/udp")]
)
def test_one_port_of_the_host_is_not_asked_for_twice(texts: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="is asked for twice"):
        parse_all(texts)


def test_what_is_no_clash_is_read_in_its_order() -> None:
    texts = ("80", "80", "90:1", "90:1/udp", "127.0.0.1:91:1", "127.0.0.2:91:1")
    assert [port.host_port for port in parse_all(texts)] == [0, 0, 90, 90, 91, 91]


def test_ports_are_shown_as_ranges_where_they_are_ones() -> None:
    ports = [*parse("8000-8002:80-82"), Port(8003, 90), Port(8004, 83, "udp"), Port(8005, 84, "udp", "127.0.0.1")]
    assert ranges(reversed(ports)) == [
        "0.0.0.0:8000-8002->80-82/tcp",
        "0.0.0.0:8003->90/tcp",
        "0.0.0.0:8004->83/udp",
        "127.0.0.1:8005->84/udp",
    ]


@pytest.mark.parametrize(("kind", "protocol"), [(socket.SOCK_STREAM, "tcp"), (socket.SOCK_DGRAM, "udp")])
def test_a_port_that_a_process_uses_is_not_given(kind: socket.SocketKind, protocol: str) -> None:
    with socket.socket(socket.AF_INET, kind) as used:
        used.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            used.listen()
        number = used.getsockname()[1]
        with pytest.raises(TareError, match=f"{number}/{protocol}: a process of the host uses it"):
            claim([Port(number, 80, protocol)])
    assert claim([Port(number, 80, protocol)]) == (Port(number, 80, protocol),)


def test_a_port_that_was_published_is_not_given_again() -> None:
    [chosen] = claim([Port(0, 80, "tcp", "127.0.0.1")])
    assert chosen.host_port > 0
    with pytest.raises(TareError, match="another container has published it"):
        claim([chosen], [Port(chosen.host_port, 81)])


def test_an_address_that_the_host_lacks_is_the_users_mistake() -> None:
    with pytest.raises(UsageError, match=r"this host has no address 192\.0\.2\.99"):
        claim([Port(0, 80, "tcp", "192.0.2.99")])


def test_a_port_that_is_named_is_kept_from_those_that_are_chosen() -> None:
    claimed = claim([Port(0, 1, "tcp", "127.0.0.1"), *claim([Port(0, 2, "tcp", "127.0.0.1")])])
    assert [port.port for port in claimed] == [2, 1]
    assert claimed[0].host_port != claimed[1].host_port
