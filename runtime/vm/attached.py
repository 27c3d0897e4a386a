"""A command inside a guest, and the user at its streams: what the keeper does between a session and the channel.

What is typed waits until the command has begun and takes it; output waits for the user, as at a full pipe.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from runtime.channel import WINDOW_BYTES, Channel, Command, Output
from runtime.frames import Streams
from runtime.vm.session import Session

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_LOOK_S = 0.2


class Attached:
    """A session that is, or will be, at a command's streams. `size` is its terminal's, None without one."""

    def __init__(self, session: Session, *, interactive: bool, size: tuple[int, int] | None) -> None:
        self._session = session
        self._streams = Streams(input=interactive, terminal=size, window_bytes=WINDOW_BYTES)
        self._size = size
        self._command: Command | None = None
        self._begun = threading.Event()
        self._lock = threading.Lock()
        session.told = self._told
        if interactive:
            session.typed = self._typed

    @contextmanager
    def running(
        self, channel: Channel, argv: Sequence[str], env: Mapping[str, str], output: Output | None = None
    ) -> Iterator[Command]:
        """Run the command; its output goes to `output` instead of the session, if that is given."""
        env = environment(env, terminal=self._size is not None)
        with channel.running(argv, output or self._session.show, env=env, streams=self._streams) as command:
            self._session.shown = command.grant
            with self._lock:
                self._command = command
                if self._size is not None and self._size != self._streams.terminal:
                    command.resize(*self._size)
            self._begun.set()
            yield command

    def _typed(self, data: bytes) -> None:
        while not self._begun.wait(_LOOK_S):
            if self._session.hung_up():
                return
        assert self._command is not None  # it has begun
        self._command.type(data, self._session.hung_up)

    def _told(self, words: tuple[Any, ...]) -> None:
        match words:
            case ("resize", int(rows), int(columns)) if self._size is not None:
                with self._lock:
                    self._size = rows, columns
                    if self._command is not None:
                        self._command.resize(rows, columns)


def environment(env: Mapping[str, str], *, terminal: bool) -> dict[str, str]:
    """`env` with what a command needs beside it; nothing at all is left to the agent, whose own it gets then."""
    if not env and not terminal:
        return {}
    return {"PATH": PATH, **({"TERM": "xterm"} if terminal else {}), **env}
