"""Published ports: as users write and read them, and whether the host still has them to give. Nothing is held open."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable, Sequence
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

    def __str__(self) -> str:
        return f"{self.host}:{self.host_port}->{self.port}/{self.protocol}"


def parse(text: str) -> tuple[Port, ...]:
    """Read `[[IP:]HOST:]PORT[/tcp|/udp]`, where HOST and PORT may be ranges `A-B` of the same length.

    Raises UsageError, also for what Docker knows and this does not.
    """
    rest, _, protocol = text.partition("/")
    *outer, inside = rest.rsplit(":", 2)
    host = outer[0] if len(outer) == 2 else ANY
    outside = (outer[-1] or "0") if outer else "0"
    if (protocol or "tcp") not in ("tcp", "udp"):
        raise UsageError(f"port {text!r}", f"{protocol!r} is no protocol known here", "use /tcp or /udp")
    try:
        socket.inet_pton(socket.AF_INET, host)
    except (OSError, ValueError) as error:
        raise UsageError(f"port {text!r}", f"{host!r} is not an IPv4 address", "use IP:HOST:PORT") from error
    ports = _numbers(text, inside)
    host_ports = [0] * len(ports) if outside == "0" else _numbers(text, outside)
    if len(host_ports) != len(ports):
        why = f"{len(host_ports)} ports of the host for {len(ports)} of the container"
        raise UsageError(f"port {text!r}", why, "give ranges of the same length")
    return tuple(
        Port(outer_one, inner_one, protocol or "tcp", host)
        for outer_one, inner_one in zip(host_ports, ports, strict=True)
    )


def parse_all(texts: Sequence[str]) -> tuple[Port, ...]:
    """Read all of them. Raises UsageError, also when two want the same port of the host."""
    taken = Taken()
    for text in texts:
        for port in parse(text):
            if port.host_port and taken.clash(port):
                raise UsageError(f"port {text!r}", f"{port.host_port}/{port.protocol} is asked for twice", "leave one")
            taken.add(port)
    return tuple(taken.ports)


class Taken:
    """Ports that are given away; quick to ask, as a range may be all of them."""

    def __init__(self, ports: Iterable[Port] = ()) -> None:
        self.ports: list[Port] = []
        self._hosts: dict[tuple[int, str], set[str]] = {}
        for port in ports:
            self.add(port)

    def add(self, port: Port) -> None:
        """It is given away now."""
        self.ports.append(port)
        self._hosts.setdefault((port.host_port, port.protocol), set()).add(port.host)

    def clash(self, port: Port) -> bool:
        """Whether it cannot be published beside these: a port of every address clashes with that of one."""
        hosts = self._hosts.get((port.host_port, port.protocol), ())
        return bool(hosts) and (port.host == ANY or ANY in hosts or port.host in hosts)


def claim(ports: Sequence[Port], published: Iterable[Port] = ()) -> tuple[Port, ...]:
    """`ports`, chosen where the host's was 0: those after the others, so that none takes what another one names.

    Raises TareError if a process listens there or it is published.
    """
    taken, chosen = Taken(published), []
    for port in sorted(ports, key=lambda port: not port.host_port):
        chosen.append(_claimed(port, taken))
        taken.add(chosen[-1])
    return tuple(chosen)


def ranges(ports: Iterable[Port]) -> list[str]:
    """As users read them, `HOST->PORT/PROTOCOL`: neighbours that lead to neighbours as one range."""
    found: list[list[Port]] = []
    for port in sorted(ports, key=lambda port: (port.host, port.protocol, port.host_port, port.port)):
        last = found[-1][-1] if found else None
        if last is not None and port == replace(last, host_port=last.host_port + 1, port=last.port + 1):
            found[-1].append(port)
        else:
            found.append([port])
    return [_range(run[0], run[-1]) for run in found]


def _range(first: Port, last: Port) -> str:
    if first == last:
        return str(first)
    return f"{first.host}:{first.host_port}-{last.host_port}->{first.port}-{last.port}/{first.protocol}"


def _claimed(port: Port, taken: Taken) -> Port:
    for _ in range(_ATTEMPTS):
        chosen = _bound(port)
        if not taken.clash(chosen):
            return chosen
        if port.host_port:
            break
    raise _refusal(port, "another container has published it")


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
            raise _refusal(port, "a process of the host uses it") from error
        return replace(port, host_port=probe.getsockname()[1])


def _refusal(port: Port, why: str) -> TareError:
    return TareError(f"port {port.host}:{port.host_port}/{port.protocol}", why, "publish another host port")


def _numbers(text: str, words: str) -> list[int]:
    """The ports of `N` or `A-B`."""
    first, dash, last = words.partition("-")
    if not (_is_port(first) and (not dash or _is_port(last))):
        raise UsageError(f"port {text!r}", "ports are numbers up to 65535, or ranges", "use [[IP:]HOST:]PORT[/udp]")
    numbers = list(range(int(first), int(last or first) + 1))
    if not numbers:
        raise UsageError(f"port {text!r}", f"the range {words} ends before it begins", "write the lower port first")
    return numbers


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535
