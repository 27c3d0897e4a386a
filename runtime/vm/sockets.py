"""The sockets that QEMU connects to as it starts: listened on before, so that no byte of the guest's comes too early.

Not what is said on them: that is the channel's and the console's.
"""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_ACCEPT_TIMEOUT_S = 10.0


@contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A listener at `path` for one that connects, within 10 s."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen(1)
        sock.settimeout(_ACCEPT_TIMEOUT_S)
        yield sock


@contextmanager
def accepting(listener: socket.socket, seen: Callable[[], object]) -> Iterator[list[socket.socket]]:
    """Within, another thread waits for who connects and calls `seen`; what was accepted is yielded, there at the end.

    The block is over once QEMU runs, or fails: then nobody is waited for, and who came is hung up on.
    """
    came: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):  # shut down below: QEMU never came
            came.append(listener.accept()[0])
            seen()

    listener.settimeout(None)
    waiter = threading.Thread(target=accept, name="tare-spawned", daemon=True)
    waiter.start()
    try:
        yield came
    except BaseException:
        with suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        waiter.join()
        for sock in came:
            sock.close()
        raise
    waiter.join()


def peer_pid(sock: socket.socket) -> int:
    """Who called connect(2): QEMU, whichever libvirt started it."""
    sock.settimeout(None)
    return int(struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0])
