"""A lock that is a file: one holder at a time among all processes, and the kernel gives it back when its holder ends.

Not for locks that others remove (`keeperplace.held`), nor for a holder that must not load `contextlib`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path, *, create: bool = True, wait: bool = True) -> Iterator[None]:
    """Hold the lock `path`. Raises BlockingIOError when it is held and `wait` is False."""
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
