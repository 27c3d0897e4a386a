"""A blob on its way into the store: a file named by its digest, shared by all who want it, resumed after a crash.

Whoever fills the file has it for himself; a complete one may be read by any number. `tare clean` removes only
what nobody holds. Not for where the bytes come from (`pull.py`).
"""

from __future__ import annotations

import fcntl
import os
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.images.layout import hex_of
from runtime.images.workshop import partial_guard


class Arrival:
    """The file of one blob. `complete` says that it has its whole length; whether its content is true, a digest."""

    def __init__(self, path: Path, fd: int, size_bytes: int) -> None:
        self.path, self.fd, self.size_bytes = path, fd, size_bytes

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.here_bytes == self.size_bytes

    @property
    def here_bytes(self) -> int:
        """How much has arrived."""
        return os.fstat(self.fd).st_size

    def share(self) -> None:
        """Let others read what is complete now."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)


@contextmanager
def arrival(directory: Path, digest: str, size_bytes: int) -> Iterator[Arrival]:
    """The file where the blob arrives, below the store's `directory`: complete and shared, or ours alone to fill."""
    path = directory / "partial" / f"blob-{hex_of(digest)}"
    while True:
        with partial_guard(directory):
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if _take(path, fd, size_bytes):
                yield Arrival(path, fd, size_bytes)
                return
        finally:
            os.close(fd)
        time.sleep(random.uniform(0.005, 0.02))  # noqa: S311 - somebody else wants to fill it too


def _take(path: Path, fd: int, size_bytes: int) -> bool:
    """Lock the file, shared if it is complete; False when it went away or others have it, and are not done."""
    fcntl.flock(fd, fcntl.LOCK_SH)
    if os.fstat(fd).st_size != size_bytes or size_bytes == 0:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    try:
        return os.path.samestat(path.lstat(), os.fstat(fd))
    except FileNotFoundError:
        return False
