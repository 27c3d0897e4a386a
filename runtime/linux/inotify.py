"""Waiting for files below directories to change, instead of looking again and again."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self

from runtime.linux import syscalls

# linux/inotify.h
IN_MODIFY: Final = 0x2
IN_MOVED_TO: Final = 0x80
IN_CREATE: Final = 0x100
IN_DELETE_SELF: Final = 0x400
_ANY: Final = IN_MODIFY | IN_MOVED_TO | IN_CREATE | IN_DELETE_SELF


class Inotify:
    """Tells when something in one of `directories`, which exist, has changed since it was made. A context manager."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self._descriptor = syscalls.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            for directory in directories:
                syscalls.inotify_add_watch(self._descriptor, os.fsencode(directory), _ANY)
        except BaseException:
            os.close(self._descriptor)
            raise

    def wait(self, others: Sequence[int] = (), timeout_s: float | None = None) -> list[int]:
        """Wait for a change, or for one of `others`, descriptors, to be readable: those of them that are."""
        ready, _, _ = select.select([self._descriptor, *others], [], [], timeout_s)
        if self._descriptor in ready:
            os.read(self._descriptor, 65536)
        return [descriptor for descriptor in ready if descriptor != self._descriptor]

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
