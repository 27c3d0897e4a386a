"""Waiting for the end of a user's container. Not what brings it about: that is `lifecycle`."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from pathlib import Path
from typing import Self

from runtime.container.contact import connect
from runtime.container.state import Record, StateDirectory
from runtime.errors import TareError
from runtime.linux.pidfd import Pidfd


class Watch:
    """Waits for a container's end, from before one does something about it. A context manager."""

    def __init__(self, run: Path, state: StateDirectory, record: Record) -> None:
        self._state = state
        self._record = record
        self._contact = connect(run)
        self._heard = False
        if self._contact is not None:
            self._contact.ask("wait", record.id, False)

    def ended(self, timeout_s: float | None) -> bool:
        """Whether it has ended and that is written down, waiting up to `timeout_s`, or for ever."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        if self._contact is not None and not self._heard:
            if not select.select([self._contact.fileno()], [], [], timeout_s)[0]:
                return False
            with suppress(TareError):  # the keeper has ended, and its containers with it
                self._contact.hear()
            self._heard = True
        run = self._record.run
        if run is not None:
            with suppress(ProcessLookupError), Pidfd.of(run.pid) as process:
                left_s = 1e6 if deadline is None else max(0.0, deadline - time.monotonic())
                if self._state.exists(run) and not process.wait(left_s):
                    return False
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._contact is not None:
            self._contact.close()
