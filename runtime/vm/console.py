"""The serial consoles of all guests: read by one thread, the end of each kept, what is seen in passing told.

In memory and bounded, so that a guest that prints without end costs the host nothing. Not a terminal.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from runtime.instance import Timeline
from runtime.reading import reader

KEPT_BYTES = 1 << 20
ENDS = {
    b"!!!! X64 Exception Type": "the firmware crashed",
    b"---[ end Kernel panic - not syncing": "the kernel panicked",
}
"""What is printed by who then stands still for ever: OVMF, and a kernel that is not to start anew."""
_END_BEGINS = (b"!!!! X64 Exception Type", b"Kernel panic - not syncing")  # many lines of registers follow
_READ_BYTES = 64 << 10
_TAIL_BYTES = 800


class Console:
    """What one guest prints. `marks` are byte strings whose first appearance is stamped into the timeline by name.

    `on_end` is told, once and by the one thread that reads for all, what the guest says of its own end (ENDS).
    """

    def __init__(
        self,
        sock: socket.socket,
        timeline: Timeline,
        marks: Mapping[str, bytes],
        on_end: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._sock = sock
        self._timeline = timeline
        self._marks = dict(marks)
        self._on_end: Callable[[str], None] | None = on_end
        self._kept = bytearray()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._listeners: list[Callable[[bytes], None]] = []
        reader("tare-consoles").add(self, sock.fileno())

    def text(self) -> str:
        """All that is kept: at most KEPT_BYTES, the latest."""
        return _decoded(bytes(self._kept[-KEPT_BYTES:]))

    def tail(self) -> str:
        """The last few lines, for an error message; or how its end began, if it has told of one."""
        begun = max(self._kept.rfind(word) for word in _END_BEGINS)
        end = bytes(self._kept[-_TAIL_BYTES:] if begun < 0 else self._kept[begun : begun + _TAIL_BYTES])
        lines = ("".join(mark for mark in line if mark.isprintable()).strip() for line in _decoded(end).splitlines())
        return " | ".join(line for line in lines if line) or "its console is empty"

    def listen(self, listener: Callable[[bytes], None]) -> None:
        """Tell `listener` all that is kept, then what comes, and at the end b"". It must not wait: a lock is held."""
        with self._lock:
            listener(bytes(self._kept[-KEPT_BYTES:]))
            self._listeners.append(listener)
            if self._ended.is_set():
                listener(b"")

    def unlisten(self, listener: Callable[[bytes], None]) -> None:
        """Tell it no more."""
        with self._lock:
            self._listeners.remove(listener)

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self._ended.is_set()

    def send(self, data: bytes) -> None:
        """Type `data`. What a guest that does not read would have to wait for is dropped, as on a serial line."""
        with suppress(OSError):
            self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def close(self) -> None:
        """Stop listening. Safe to call twice."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the reader, who alone may close the descriptor
        self._ended.wait()

    def feed(self, data: bytes) -> None:
        """Keep `data` and stamp the marks it completes."""
        now_ns = time.monotonic_ns()
        start = len(self._kept)
        with self._lock:
            self._kept += data
            for listener in self._listeners:
                listener(data)
        for name, mark in list(self._marks.items()):
            if self._shows(mark, start):
                self._timeline.stamp(name, now_ns)
                del self._marks[name]
        for mark, why in ENDS.items():
            if self._on_end is not None and self._shows(mark, start):
                told, self._on_end = self._on_end, None
                told(why)
        if len(self._kept) > 2 * KEPT_BYTES:
            del self._kept[:-KEPT_BYTES]

    def _shows(self, mark: bytes, start: int) -> bool:
        """Whether what came from `start` on completes `mark`."""
        return self._kept.find(mark, max(0, start - len(mark) + 1)) >= 0

    def receive(self, buffer: memoryview) -> bool:
        """Take what has been printed; False when there will be no more. Called by the reader only."""
        try:
            size = self._sock.recv_into(buffer, _READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            return False
        if size:
            self.feed(bytes(buffer[:size]))
        return size > 0

    def release(self) -> None:
        """Give the socket up. Called by the reader only."""
        self._sock.close()
        with self._lock:
            self._ended.set()
            for listener in self._listeners:
                listener(b"")


def _decoded(data: bytes) -> str:
    return data.decode(errors="replace")
