"""One process that the keeper keeps: its streams go to the log and to who is attached, its end is told. Lean.

Nobody is overtaken: while one of the attached cannot take more, the process's output is not read, and while the
process reads nothing, the input of the attached is not. Not how it is started nor what its end means (`keeper`).
"""

from __future__ import annotations

import errno
import os
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias

from runtime.container.logs import LogWriter
from runtime.container.loop import IN, OUT, Handler, Loop
from runtime.protocol import INPUT, INPUT_END, MESSAGE_BYTES, WORDS, decoded, encoded

CHUNK_BYTES = 64 << 10
Said: TypeAlias = "Callable[[Session, tuple[Any, ...], list[int]], None]"
"""Is told what a session says, with the descriptors that came along and are then its own."""


class Session:
    """A connection: words both ways, and a process's streams once it is attached to one."""

    def __init__(self, loop: Loop, connection: socket.socket, said: Said) -> None:
        connection.setblocking(False)
        self.kept: Kept | None = None
        self.gone: Callable[[], None] = lambda: None
        self.heard: Callable[[], None] = lambda: None
        """Called at the word `go`."""
        self.open = True
        self._loop = loop
        self._connection = connection
        self._said = said
        self._queue: deque[tuple[bytes, tuple[int, ...]]] = deque()
        self._listens = True
        self._events = -1
        self._watch()

    def tell(self, *words: object, descriptors: tuple[int, ...] = ()) -> None:
        """Send words; the descriptors are duplicated at once."""
        self.send(WORDS + encoded(words), tuple(os.dup(descriptor) for descriptor in descriptors))

    def send(self, message: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Send now, or as soon as the other end takes it; `descriptors` are closed then."""
        if self.open:
            self._queue.append((message, descriptors))
            if len(self._queue) == 1:
                self._flush()
        else:
            _close_all(descriptors)

    @property
    def congested(self) -> bool:
        """Whether it has not taken all it was sent."""
        return bool(self._queue)

    def listen(self, listens: bool) -> None:
        """Read what it says, or let it wait."""
        self._listens = listens
        self._watch()

    def close(self) -> None:
        """End it."""
        if not self.open:
            return
        self.open = False
        self._loop.forget(self._connection.fileno())
        self._connection.close()
        for _, descriptors in self._queue:
            _close_all(descriptors)
        self._queue.clear()
        if self.kept is not None:
            self.kept.detach(self)
        self.gone()

    def _watch(self) -> None:
        if self.open:
            events = (IN if self._listens else 0) | (OUT if self._queue else 0)
            if events != self._events:
                self._events = events
                self._loop.watch(self._connection.fileno(), self._ready, events)

    def _ready(self, events: int) -> None:
        if events & OUT:
            self._flush()
            if self.kept is not None and not self._queue:
                self.kept.proceed()
        if self.open and events & ~OUT:
            self._receive()

    def _flush(self) -> None:
        while self._queue:
            message, descriptors = self._queue[0]
            try:
                socket.send_fds(self._connection, [message], descriptors, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self.close()
                return
            self._queue.popleft()
            _close_all(descriptors)
        self._watch()

    def _receive(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._connection, MESSAGE_BYTES, 16, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        tag, body = message[:1], message[1:]
        if tag == INPUT and self.kept is not None:
            self.kept.put(body, self)
        elif tag == INPUT_END and self.kept is not None:
            self.kept.end_input(self)
        elif tag == WORDS:
            self._said(self, decoded(body), descriptors)
            return
        _close_all(tuple(descriptors))
        if not message:
            self.close()


class Kept:
    """The streams of one process. `sources` are (descriptor, stream 1 or 2), nonblocking; `sink` is its input or -1."""

    def __init__(self, loop: Loop, sources: tuple[tuple[int, int], ...], sink: int, log: LogWriter | None) -> None:
        self.sessions: list[Session] = []
        self.pidfd = self.console = self.root = -1
        self.pid = 0
        self.input_once = True
        """Whether the end of one session's input is the end of all."""
        self.finished: Callable[[], None] = lambda: None
        self._loop = loop
        self._sources = dict(sources)
        self._sink = sink
        self._log = log
        self._input: deque[bytes] = deque()
        self._input_ends = False
        self._writers: set[Session] = set()
        self._spare = -1
        self._ended = False
        for descriptor, _ in (*sources, (sink, 0)):
            if descriptor >= 0:
                os.set_blocking(descriptor, False)

    def adopt_console(self, console: int) -> None:
        """Read and write a terminal instead of pipes: the master's descriptor, which now belongs to this."""
        self.console = self._sink = console
        self._sources[console] = 1
        os.set_blocking(console, False)

    def attach(self, session: Session, *, output: bool, writes: bool) -> None:
        """Let a session see what comes from now on, and write if it `writes`."""
        session.kept = self
        if output:
            self.sessions.append(session)
        if writes:
            self._writers.add(session)

    def detach(self, session: Session) -> None:
        """A session has ended; what waited for it goes on."""
        if self.input_once:
            self.end_input(session)
        session.kept = None
        self._writers.discard(session)
        if session in self.sessions:
            self.sessions.remove(session)
            self._loop.after(0, self.proceed)  # not now: this may be in the middle of passing something on

    def proceed(self) -> None:
        """Read the output, unless somebody has to be waited for."""
        blocked = any(session.congested for session in self.sessions)
        for descriptor in list(self._sources):
            if blocked:
                self._loop.forget(descriptor)
            else:
                self._loop.watch(descriptor, self._reader(descriptor))
        if self._ended and not blocked:
            self._drain()

    def end(self) -> None:
        """The process has ended: what it has printed is still passed on, then `finished` is called."""
        self._ended = True
        self.proceed()

    def put(self, data: bytes, session: Session) -> None:
        """Input from an attached session, which waits while the process does not read."""
        if session in self._writers and self._sink >= 0 and not self._input_ends:
            self._input.append(data)
            self._write()

    def end_input(self, session: Session) -> None:
        """A session's input has ended: so has the process's, if it takes one only, and it is no terminal."""
        if session in self._writers and self.console < 0 and self.input_once:
            self._input_ends = True
            self._write()

    def close(self) -> None:
        """Give everything back."""
        for descriptor in list(self._sources):
            self._drop(descriptor)
        self._close_sink()
        if self.console >= 0:
            os.close(self.console)
            self.console = -1
        if self._log is not None:
            self._log.finish()
            self._log = None

    def _reader(self, descriptor: int) -> Handler:
        return lambda _: self._read(descriptor)

    def _read(self, descriptor: int) -> bool:
        """Pass one piece of output on: whether there may be more."""
        try:
            data = os.read(descriptor, CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.EIO:  # a terminal that nobody has open any more
                raise
            data = b""
        if not data:
            self._drop(descriptor)
            return False
        stream = self._sources[descriptor]
        if self._log is not None:
            self._log.write(stream, data)
        message = b"%d" % stream + data
        for session in list(self.sessions):
            session.send(message)
        if any(session.congested for session in self.sessions):
            self.proceed()
            return False
        return True

    def _drain(self) -> None:
        """After the end: read until nothing is left, then say so once."""
        for descriptor in list(self._sources):
            while descriptor in self._sources and self._read(descriptor):
                pass
        if self._ended and not any(session.congested for session in self.sessions):
            self._ended = False
            self.finished()

    def _drop(self, descriptor: int) -> None:
        self._loop.forget(descriptor)
        if self._sources.pop(descriptor, None) is not None and descriptor != self.console:
            os.close(descriptor)

    def _write(self) -> None:
        try:
            while self._input:
                data = self._input[0]
                written = os.write(self._sink, data)
                if written < len(data):
                    self._input[0] = data[written:]
                else:
                    self._input.popleft()
        except BlockingIOError:
            self._let_write(False)
            self._loop.watch(self._writable(), lambda _: self._write(), OUT)
            return
        except OSError:  # it has closed its input
            self._input.clear()
            self._input_ends = self._input_ends or self.console < 0
        self._let_write(True)
        if self._sink >= 0 and self._input_ends:
            self._close_sink()
        elif self._sink >= 0 and self.console < 0:
            self._loop.forget(self._sink)
        elif self._spare >= 0:
            self._loop.forget(self._spare)

    def _writable(self) -> int:
        """The descriptor to watch for room: a terminal's is watched for output already, under its own number."""
        if self.console < 0:
            return self._sink
        if self._spare < 0:
            self._spare = os.dup(self.console)
        return self._spare

    def _let_write(self, may: bool) -> None:
        for session in self._writers:
            session.listen(may)

    def _close_sink(self) -> None:
        if self._spare >= 0:
            self._loop.forget(self._spare)
            os.close(self._spare)
            self._spare = -1
        if self._sink >= 0 and self._sink != self.console:
            self._loop.forget(self._sink)
            os.close(self._sink)
        self._sink = -1
        self._input.clear()
        with suppress(OSError):
            self._let_write(True)


def _close_all(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
