"""Where the keeper of guests is found, and the lock under which keepers begin and end.

Not what it keeps: that is `kept`; nor what it answers: that is `keeper`.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.driver import Host
from runtime.ledger import make_directory
from runtime.protocol import SOCKET

_LOCK = "keeper.lock"


def directory(host: Host) -> Path:
    """Where its socket, lock and log lie."""
    return host.run / "guests"


@contextmanager
def held(where: Path) -> Iterator[None]:
    """Hold the lock under which keepers begin and end; `where` is there then, and stays."""
    path = where / _LOCK
    while True:
        make_directory(where)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is still what was opened, and not gone or another's since (`retire`)."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def retire(host: Host) -> list[str]:
    """Remove what keepers leave for the next one, lock and log, unless there is one; returns what went."""
    where = directory(host)
    if not where.exists():
        return []
    with held(where):
        if listens(where):
            return []
        for path in where.iterdir():
            if path.name != _LOCK:
                path.unlink()
        (where / _LOCK).unlink()  # last: from here on somebody may begin anew
        with suppress(OSError):
            where.rmdir()
            return [str(where)]
    return []


def listens(where: Path) -> bool:
    """Whether there is a keeper. A socket's address holds 107 bytes only, so it is named through a descriptor."""
    descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(f"/proc/self/fd/{descriptor}/{SOCKET}") == 0
    finally:
        os.close(descriptor)
