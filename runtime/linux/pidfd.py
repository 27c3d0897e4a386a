"""A process held by a descriptor: it cannot be mistaken for a later process with the same pid.

Only signalling and waiting for the end; the exit status belongs to the parent.
"""

from __future__ import annotations

import os
import select
import signal
from contextlib import suppress
from types import TracebackType
from typing import Self


class Pidfd:
    """Owns a pidfd. A context manager."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def of(cls, pid: int) -> Self:
        """Open process `pid`. Raises OSError (ESRCH when there is none)."""
        return cls(os.pidfd_open(pid))

    def fileno(self) -> int:
        """The descriptor; readable once the process has ended."""
        return self._descriptor

    def signal(self, number: int) -> None:
        """Send a signal; a process that has ended is no error."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def wait(self, timeout_s: float) -> bool:
        """Whether the process has ended, waiting up to `timeout_s`. It may still be a zombie."""
        poller = select.poll()
        poller.register(self._descriptor, select.POLLIN)
        return bool(poller.poll(timeout_s * 1000))

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
