"""Where the store's data is made and changed: one lock for what changes names, and directories for what is half-made.

Not for what is made there (`store.py`) nor for sweeping what the dead left (`collect.py`).
"""

from __future__ import annotations

import fcntl
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.images.trees import remove_tree
from runtime.linux import flock


class Workshop:
    """The directory of a store. Construction touches nothing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._guard = threading.RLock()
        self._depth = 0

    @contextmanager
    def exclusive(self, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the store's lock, across processes and threads; `waiting` is called if somebody else has it."""
        with self._guard:
            if self._depth:
                yield
                return
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)  # setuid files of images lie below
            fd = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    waiting()
                    fcntl.flock(fd, fcntl.LOCK_EX)
                self._depth = 1
                yield
            finally:
                self._depth = 0
                os.close(fd)

    @contextmanager
    def using(self) -> Iterator[None]:
        """Keep what is here: for who has chosen layers that no name and no container's state may lead to.

        It is the caller's to look, from then on, whether what was chosen is still there.
        """
        if not self.directory.is_dir():
            yield
            return
        fd = self._users()
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
            yield
        finally:
            os.close(fd)

    @contextmanager
    def unused(self, timeout_s: float = 1.0) -> Iterator[bool]:
        """Keep users away while data goes; false when there are some, who take longer than `timeout_s` to finish."""
        fd = self._users()
        deadline_s = time.monotonic() + timeout_s
        try:
            while True:
                with suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    yield True
                    return
                if time.monotonic() > deadline_s:
                    break
                time.sleep(0.02)  # a container that is being created needs milliseconds, a driver has them all along
            yield False
        finally:
            os.close(fd)

    def _users(self) -> int:
        return os.open(self.directory / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @contextmanager
    def partial(self) -> Iterator[Path]:
        """A fresh directory for something half-made; gone at the end, whatever happens, and not swept before."""
        with partial_guard(self.directory):
            work = self.directory / "partial" / secrets.token_hex(6)
            work.mkdir(parents=True, mode=0o700)
            fd = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            yield work
        finally:
            try:
                remove_tree(work)
            finally:
                os.close(fd)  # what could not be removed is left for a sweep


@contextmanager
def partial_guard(directory: Path) -> Iterator[None]:
    """Keep a sweep away while something is made in `partial/` and not yet locked by its maker."""
    (directory / "partial").mkdir(parents=True, exist_ok=True, mode=0o700)
    directory.chmod(0o700)  # setuid files of images lie below
    with flock.held(directory / "partial.lock"):
        yield
