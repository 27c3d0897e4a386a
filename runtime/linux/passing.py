"""Descriptors over a socket, as `socket.send_fds` and `recv_fds` pass them, with the C part of that module alone.

What the other part brings along (enums, selectors) each child of a launcher would have to copy.
"""

from __future__ import annotations

import struct
from _socket import CMSG_LEN, MSG_CMSG_CLOEXEC, MSG_NOSIGNAL, SCM_RIGHTS, SOL_SOCKET

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Sequence

_INT_BYTES = 4


def send(connection: socket, message: bytes, descriptors: Sequence[int] = ()) -> None:
    """Send `message` with copies of the descriptors. Raises OSError, for a reader that is gone too."""
    rights = (SOL_SOCKET, SCM_RIGHTS, struct.pack(f"{len(descriptors)}i", *descriptors))
    connection.sendmsg([message], [rights] if descriptors else [], MSG_NOSIGNAL)


def receive(connection: socket, size: int, most: int) -> tuple[bytes, list[int]]:
    """The next message of at most `size` bytes, and the descriptors with it, close-on-exec. Raises OSError.

    More than `most` of them are as good as lost: the kernel closes the rest.
    """
    message, ancillary, _, _ = connection.recvmsg(size, CMSG_LEN(most * _INT_BYTES), MSG_CMSG_CLOEXEC)
    found: list[int] = []
    for level, kind, data in ancillary:
        if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
            found += struct.unpack(f"{len(data) // _INT_BYTES}i", data[: len(data) // _INT_BYTES * _INT_BYTES])
    return message, found
