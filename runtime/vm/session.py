"""A connection to the keeper of guests: requests and input in, words and output out.

Not what is asked for: that is `keeper`.
"""

from __future__ import annotations

import queue
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from runtime.protocol import INPUT, INPUT_END, MESSAGE_BYTES, OUTPUT, WORDS, decoded, encoded

PENDING_BYTES = 16 << 20
"""Output that a command has not taken yet; one that lags behind further is hung up on."""


class Session:
    """A connection: what is told goes through a queue, so that no reader of a guest's output waits for a command.

    `typed` gets input (none: its end) and may wait; `told` what is said later; `shown` how much output has gone out.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.typed: Callable[[bytes], None] = lambda _: None
        self.told: Callable[[tuple[Any, ...]], None] = lambda _: None
        self.shown: Callable[[int], None] = lambda _: None
        self.gone: Callable[[], None] = lambda: None
        self.over = threading.Event()
        self._connection = connection
        self._queue: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._pending = 0
        self._lock = threading.Lock()
        self._writer = threading.Thread(target=self._write, name="tare-writer", daemon=True)
        self._writer.start()

    def tell(self, *words: object) -> None:
        """Send words."""
        self._put(WORDS + encoded(words))

    def show(self, stream: int, data: bytes) -> None:
        """Send output."""
        for start in range(0, len(data), MESSAGE_BYTES // 4):
            self._put(b"%d" % stream + data[start : start + MESSAGE_BYTES // 4])

    def request(self) -> tuple[Any, ...]:
        """The one thing that is asked for; nothing from who has hung up. From then on input is listened to."""
        message = self._receive()
        return decoded(message[1:]) if message[:1] == WORDS else ()

    def listen(self) -> None:
        """Hear input and the end in a thread of its own."""
        threading.Thread(target=self._hear, name="tare-ear", daemon=True).start()

    def hung_up(self) -> bool:
        """Whether the other end has, though what it said before may not have been heard yet."""
        poll = select.poll()
        poll.register(self._connection, 0)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Send what waits, and hang up."""
        self._queue.put(b"")
        self._writer.join()
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()

    def _put(self, message: bytes) -> None:
        with self._lock:
            self._pending += len(message)
            lags = self._pending > PENDING_BYTES
        if lags:
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)
        else:
            self._queue.put(message)

    def _write(self) -> None:
        while message := self._queue.get():
            with suppress(OSError):
                self._connection.send(message, socket.MSG_NOSIGNAL)
            with self._lock:
                self._pending -= len(message)
            if message[:1] in OUTPUT:
                self.shown(len(message) - 1)

    def _hear(self) -> None:
        while message := self._receive():
            if message[:1] in (INPUT, INPUT_END):
                self.typed(message[1:])
            elif message[:1] == WORDS:
                self.told(decoded(message[1:]))
        self.over.set()
        self.gone()

    def _receive(self) -> bytes:
        try:
            return self._connection.recv(MESSAGE_BYTES)
        except OSError:
            return b""
