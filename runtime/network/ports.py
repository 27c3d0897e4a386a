"""Published ports: as users write them, and whether the host still has them to give. Nothing is held open."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import replace

from runtime.errors import TareError, UsageError
from runtime.record import ordered_record

ANY = "0.0.0.0"  # noqa: S104 - Docker's default: a published port is meant to be reached


_ATTEMPTS = 64


@ordered_record
class Port:
    """`host_port` of the host's address `host` leads to `port` of the container. Host port 0: any that is free."""

    host_port: int
    port: int
    protocol: str = "tcp"
    host: str = ANY

    @classmethod
    def parse(cls, text: str) -> Port:
        """Read `[[IP:]HOST:]PORT[/tcp|/udp]`. Raises UsageError, also for what Docker knows and this does not."""
        rest, _, protocol = text.partition("/")
        *outer, port = rest.rsplit(":", 2)
        host = outer[0] if len(outer) == 2 else ANY
        host_port = (outer[-1] or "0") if outer else "0"
        if (protocol or "tcp") not in ("tcp", "udp"):
            raise UsageError(f"port {text!r}", f"{protocol!r} is no protocol known here", "use /tcp or /udp")
        try:
            socket.inet_pton(socket.AF_INET, host)
        except (OSError, ValueError) as error:
            raise UsageError(f"port {text!r}", f"{host!r} is not an IPv4 address", "use IP:HOST:PORT") from error
        if not (_in_range(host_port, 0) and _in_range(port, 1)):
            raise UsageError(f"port {text!r}", "ports are single numbers up to 65535", "use [[IP:]HOST:]PORT[/udp]")
        return cls(int(host_port), int(port), protocol or "tcp", host)

    def __str__(self) -> str:
        return f"{self.host}:{self.host_port}->{self.port}/{self.protocol}"

    def clashes(self, other: Port) -> bool:
        """Whether both cannot be published at once."""
        same = (self.host_port, self.protocol) == (other.host_port, other.protocol)
        return same and (self.host == other.host or ANY in (self.host, other.host))


def claim(port: Port, published: Sequence[Port] = ()) -> Port:
    """`port`, its host port chosen if it was 0. Raises TareError if a process listens there or it is published."""
    for _ in range(_ATTEMPTS):
        chosen = _bound(port)
        if not any(chosen.clashes(other) for other in published):
            return chosen
        if port.host_port:
            break
    raise _taken(port, "another container has published it")


def _bound(port: Port) -> Port:
    """What a process of the host that binds `port` gets."""
    kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.host_port))
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise UsageError(f"port {port}", f"this host has no address {port.host}", "use one it has") from error
            raise _taken(port, "a process of the host uses it") from error
        return replace(port, host_port=probe.getsockname()[1])


def _taken(port: Port, why: str) -> TareError:
    return TareError(f"port {port.host}:{port.host_port}/{port.protocol}", why, "publish another host port")


def _in_range(text: str, least: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and least <= int(text) <= 65535
