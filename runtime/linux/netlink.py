"""Netlink as bytes, for what every launch asks: requests packed by hand, one socket, and the answers checked.

Lean, as a container's child and the launcher use it. It knows the frame and the attributes, not what
they mean: links, addresses and routes are `runtime.network`'s and `runtime.container.steps`'. It lists nothing:
all that is not one launch's goes through pyroute2 (`runtime.network.host_links`), with which the tests
also compare what is packed here.
"""

from __future__ import annotations

import os
import struct
from _socket import AF_NETLINK, SOCK_CLOEXEC, SOCK_RAW, socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Final, Self

# linux/netlink.h
NETLINK_ROUTE: Final = 0
NETLINK_NETFILTER: Final = 12
NLM_F_REQUEST: Final = 0x1
NLM_F_ACK: Final = 0x4
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLMSG_ERROR: Final = 2
_NLM_F_ACK_TLVS: Final = 0x200
_NLM_F_CAPPED: Final = 0x100
_NLMSGERR_ATTR_MSG: Final = 1
_NETLINK_CAP_ACK, _NETLINK_EXT_ACK, _SOL_NETLINK = 10, 11, 270
_NESTED: Final = 0x8000
_HEADER: Final = struct.Struct("=IHHII")
_BUFFER_BYTES: Final = 1 << 16


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute (struct nlattr), padded to four bytes."""
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute that holds others."""
    return attribute(kind | _NESTED, b"".join(attributes))


def number(kind: int, value: int) -> bytes:
    """An attribute of 32 bits."""
    return attribute(kind, struct.pack("=I", value))


def text(kind: int, value: str) -> bytes:
    """An attribute of a string that ends with a NUL."""
    return attribute(kind, value.encode() + b"\0")


def message(kind: int, flags: int, body: bytes) -> bytes:
    """One request (struct nlmsghdr and what follows); always answered, see `Netlink.ask`."""
    return _HEADER.pack(16 + len(body), kind, flags | NLM_F_REQUEST | NLM_F_ACK, 0, 0) + body


def attributes(payload: bytes) -> dict[int, bytes]:
    """The attributes in `payload` by their kind; of a repeated one the last."""
    found, at = {}, 0
    while at + 4 <= len(payload):
        length, kind = struct.unpack_from("=HH", payload, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = payload[at + 4 : at + length]
        at += length + (-length % 4)
    return found


class Netlink:
    """One socket of the network namespace in which it is made, wherever it is used later. Not thread-safe."""

    def __init__(self, family: int = NETLINK_ROUTE, groups: int = 0) -> None:
        self._socket = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, family)
        try:
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)
            self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
            self._socket.bind((0, groups))
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    def ask(self, messages: Sequence[bytes], about: str) -> list[tuple[int, bytes]]:
        """Send `messages` in one call, wait for every answer, return what came beside them as (kind, body).

        The kernel carries out each of them in turn, also those behind one that fails. Raises OSError
        for the first failure, with the kernel's explanation and `about`.
        """
        self._socket.send(b"".join(messages))
        replies: list[tuple[int, bytes]] = []
        failure: OSError | None = None
        pending = len(messages)
        while pending:
            for kind, flags, body in _split(self._socket.recv(_BUFFER_BYTES)):
                if kind == NLMSG_ERROR:
                    pending -= 1
                    failure = failure or _failure(flags, body, about)
                else:
                    replies.append((kind, body))
        if failure is not None:
            raise failure
        return replies

    def heard(self, timeout_s: float) -> list[tuple[int, bytes]]:
        """The next message to the socket's groups. Raises TimeoutError after `timeout_s`."""
        self._socket.settimeout(timeout_s)
        try:
            return [(kind, body) for kind, _, body in _split(self._socket.recv(_BUFFER_BYTES))]
        finally:
            self._socket.settimeout(None)


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, _, _ = _HEADER.unpack_from(data, at)
        yield kind, flags, data[at + 16 : at + length]
        at += length + (-length % 4)


def _failure(flags: int, body: bytes, about: str) -> OSError | None:
    """What an answer (struct nlmsgerr and attributes) says, None for success."""
    code: int = -struct.unpack_from("=i", body)[0]
    if code == 0:
        return None
    extra = b""
    if flags & _NLM_F_ACK_TLVS:
        request = 16 if flags & _NLM_F_CAPPED else struct.unpack_from("=I", body, 4)[0]
        extra = attributes(body[4 + request :]).get(_NLMSGERR_ATTR_MSG, b"")
    why = extra.rstrip(b"\0").decode(errors="replace")
    return OSError(code, f"{about}: {os.strerror(code)}" + (f" ({why})" if why else ""))
