"""The host's end of the talk with the guest agent (`runtime/guest/agent.c`), in the frames of `frames`.

Stamps on the host's clock when userland begins and when the service answers, and runs commands inside.
Not how the socket comes about: a driver hands over a connected one (socketpair, virtio-serial's socket).
One thread reads for all channels (`reading`).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from runtime.errors import TareError, printable
from runtime.frames import Decoder, Streams, encode, encode_exec, encode_more
from runtime.identity import Identity, encode_configure
from runtime.instance import ExecResult, Timeline
from runtime.reading import reader

OUTPUT_MAX = 64 << 20  # bytes of one command, both streams together
KILL_TIMEOUT_S = 5.0  # from killing a command to learning that it is dead
SEND_TIMEOUT_S = 10  # an agent that does not read is taken for lost
WINDOW_BYTES = 1 << 20  # of a command's output that may be under way, where whoever takes it may be slow
INPUT_BYTES = 64 << 10  # of one input frame, which the agent keeps until the command has taken it
CONFIGURE_TIMEOUT_S = 30.0  # for what is applied on the way to readiness; a slow guest's whole boot lies outside
ENTROPY_BYTES = 64  # what fills the kernel's generator twice
_LOOK_S = 0.2  # how often whoever waits for input to be taken asks whether that is still wanted
_COMPLAINT_MAX = 400  # bytes of a guest's complaint that are shown
Output: TypeAlias = Callable[[int, bytes], None]
"""Is told what a command prints on stream 1 or 2. Called by the one thread that reads for all: it must not wait."""


@dataclass(slots=True)
class _Request:
    """A command or ping on its way. `done` is set by its answer, by too much output, and by the channel's loss."""

    done: threading.Event = field(default_factory=threading.Event)
    streams: dict[str, list[bytes]] = field(default_factory=lambda: {"O": [], "E": []})
    size: int = 0
    answer: bytes | None = None
    sent_ns: int = 0
    answered_ns: int = 0
    output: Output | None = None
    taken: threading.Event = field(default_factory=threading.Event)

    def keep(self, kind: str, payload: bytes) -> None:
        if self.output is not None:
            self.output(1 if kind == "O" else 2, payload)
            return
        within, self.size = self.size <= OUTPUT_MAX, self.size + len(payload)
        if self.size <= OUTPUT_MAX:
            self.streams[kind].append(payload)
        elif within:
            self.done.set()  # once: the killer waits on this event again

    def finish(self, payload: bytes, now_ns: int) -> None:
        self.answer, self.answered_ns = payload, now_ns
        self.end()

    def end(self) -> None:
        """Let all go on that wait for it."""
        self.done.set()
        self.taken.set()


class Channel:
    """A live talk with one agent; owns `sock`, a connected stream socket in blocking mode.

    `on_loss` gives the end of the instance's console (or stderr), for the message when the agent is lost.
    `service_port` is where the agent's service listens, once ready. An `identity` is told to the agent as soon
    as that can hear, and until it has been applied the instance is not ready.
    """

    def __init__(
        self,
        sock: socket.socket,
        timeline: Timeline,
        on_loss: Callable[[], str] | None = None,
        *,
        identity: Identity | None = None,
    ) -> None:
        self.service_port: int | None = None
        self._identity = identity
        self._awaited = {"service"} if identity is None else {"service", "identity"}
        self._awaited_lock = threading.Lock()
        self._sock = sock
        self._timeline = timeline
        self._on_loss = on_loss
        self._decoder = Decoder()
        self._ids = itertools.count(1)
        self._requests: dict[int, _Request] = {}
        self._seen = {"userland": threading.Event(), "ready": threading.Event()}
        self._send_lock = threading.Lock()
        self._lost: str | None = None
        self._failure: TareError | None = None
        self._ended = threading.Event()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
        reader("tare-channels").add(self, sock.fileno())

    def wait(self, event: Literal["userland", "ready"], timeout_s: float) -> None:
        """Block until the agent has reported `event`; its time stands in the timeline.

        Raises TareError after `timeout_s`, when the agent is lost before, and when its service failed.
        """
        arrived = self._seen[event].wait(timeout_s)
        if event in self._timeline:
            return
        if self._lost is None and arrived and self._failure is not None:
            raise TareError(self._failure.what, self._failure.why, self._failure.do)
        if self._lost is None:
            raise TareError("instance", f"not {event} after {timeout_s:g} s{self._last_words()}")
        raise self._loss()

    def exec(self, argv: Sequence[str], timeout_s: float, *, env: Mapping[str, str] | None = None) -> ExecResult:
        """Run `argv` inside, with exactly `env` (the agent's own environment, if empty), and wait for its end.

        Thread-safe. Raises TareError when it is not done after `timeout_s` or prints more than
        OUTPUT_MAX bytes (its process group is killed then), and when the agent is lost.
        """
        with self._request("X", encode_exec(argv, env or {})) as (number, request):
            arrived = request.done.wait(timeout_s)
            too_much = request.size > OUTPUT_MAX  # which an answer close behind must not hide
            if too_much or (request.answer is None and self._lost is None):
                why = f"printed more than {OUTPUT_MAX} bytes" if arrived else f"not done after {timeout_s:g} s"
                raise TareError(f"command {shlex.join(argv)}", f"{why}; {self._kill(number, request)}")
            return ExecResult(
                argv=tuple(argv),
                exit_code=int.from_bytes(self._answer(request)[:4], "little", signed=True),
                stdout=b"".join(request.streams["O"]),
                stderr=b"".join(request.streams["E"]),
                elapsed_ns=request.answered_ns - request.sent_ns,
            )

    @contextlib.contextmanager
    def running(
        self,
        argv: Sequence[str],
        output: Output,
        *,
        env: Mapping[str, str] | None = None,
        streams: Streams | None = None,
    ) -> Iterator[Command]:
        """Run `argv` inside for as long as it takes, its output told as it comes; killed if the block ends before it.

        Thread-safe. Raises TareError when the agent is lost.
        """
        with self._request("T", encode_more(argv, env or {}, streams or Streams()), output) as (number, request):
            command = Command(self, number, request)
            try:
                yield command
            finally:
                command.kill()

    def ping(self, payload: bytes = b"", timeout_s: float = 10.0) -> int:
        """Nanoseconds until `payload` has come back. Raises TareError after `timeout_s` and on loss."""
        with self._request("P", payload) as (_, request):
            if not request.done.wait(timeout_s):
                raise TareError("guest agent", f"no answer after {timeout_s:g} s{self._last_words()}")
            if self._answer(request) != payload:
                raise TareError("guest agent", "its answer is not what was sent")
            return request.answered_ns - request.sent_ns

    def configure(self, identity: Identity, timeout_s: float = CONFIGURE_TIMEOUT_S, *, renew: bool = False) -> int:
        """Give a guest its place in the network, its names and files; returns when (monotonic_ns) it had them.

        At any time and as often as wanted: what is given replaces what was there. With `renew` also the
        host's time of day and fresh entropy, which a guest from a saved state needs. Thread-safe. Raises
        TareError with the agent's reason, after `timeout_s`, and on loss. Containers refuse: theirs is done outside.
        """
        time_ns, entropy = (time.time_ns(), os.urandom(ENTROPY_BYTES)) if renew else (None, b"")
        with self._request("C", encode_configure(identity, time_ns=time_ns, entropy=entropy)) as (_, request):
            if not request.done.wait(timeout_s):
                raise TareError("configuring the instance", f"not done after {timeout_s:g} s{self._last_words()}")
            complaint = self._answer(request)
            if complaint:
                raise TareError("configuring the instance", _legible(complaint))
            return request.answered_ns

    def revive(self, identity: Identity) -> None:
        """The agent goes on from a saved state, and says nothing by itself: tell it who it is now, and ask if it hears.

        Returns at once. Its first answer stands for userland, the next one for readiness.
        """
        threading.Thread(target=self._revive, args=(identity,), name="tare-identity", daemon=True).start()

    def _revive(self, identity: Identity) -> None:
        try:
            self._arrived("userland", self.configure(identity, renew=True))
            self.ping(timeout_s=CONFIGURE_TIMEOUT_S)
            self._arrived("ready", time.monotonic_ns())
        except TareError as error:
            self._fail(error)

    def stop(self) -> None:
        """Ask the agent to end (a VM: to power off). Returns at once; an agent already lost is no error."""
        if self._lost is None:
            with contextlib.suppress(TareError):
                self._send(encode("S", 0))

    def lose(self, why: str) -> None:
        """Give the agent up for lost: whoever waits for it, or will, gets a TareError that says why."""
        self._lose(why)
        self._hang_up()

    def close(self) -> None:
        """Give the socket up; whoever still waits gets a TareError. Safe to call twice."""
        self._lose("the channel was closed")
        self._hang_up()
        self._ended.wait()

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the reader, who alone may close the descriptor

    @contextlib.contextmanager
    def _request(self, kind: str, payload: bytes, output: Output | None = None) -> Iterator[tuple[int, _Request]]:
        number, request = next(self._ids), _Request(output=output)
        frame = encode(kind, number, payload)
        self._requests[number] = request
        try:
            if self._lost is not None:
                raise self._loss()
            request.sent_ns = time.monotonic_ns()
            self._send(frame)
            yield number, request
        finally:
            del self._requests[number]

    def _send(self, frame: bytes) -> None:
        try:
            with self._send_lock:
                self._sock.sendall(frame)
        except OSError as error:  # a frame may have been cut: nothing more can be said on this channel
            self._lose(f"sending failed: {error.strerror}")
            self._hang_up()
            raise self._loss() from error

    def _kill(self, number: int, request: _Request) -> str:
        ended = request.answer is not None
        request.done.clear()
        if request.answer is None:
            self._send(encode("K", number))
            request.done.wait(KILL_TIMEOUT_S)
        if ended:
            return "it has ended"
        return "killed" if request.answer is not None else f"killed, but not dead after {KILL_TIMEOUT_S:g} s"

    def _answer(self, request: _Request) -> bytes:
        if request.answer is None:
            raise self._loss()
        return request.answer

    def _loss(self) -> TareError:
        return TareError("guest agent", f"connection lost: {self._lost}{self._last_words()}")

    def _last_words(self) -> str:
        words = self._on_loss().strip() if self._on_loss is not None else ""
        return f"; last words: {words}" if words else ""

    def _lose(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
        for event in self._seen.values():
            event.set()
        for request in list(self._requests.values()):
            request.end()

    def receive(self, buffer: memoryview) -> bool:
        """Take what has arrived; False when there will be no more. Called by the reader only."""
        try:
            size = self._sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
            now_ns = time.monotonic_ns()
            if size:
                for kind, number, payload in self._decoder.feed(buffer[:size]):
                    self._dispatch(kind, number, payload, now_ns)
                return True
            self._lose("the agent is gone")
        except BlockingIOError:
            return True
        except OSError as error:
            self._lose(f"receiving failed: {error.strerror}")
        except ValueError as error:
            self._lose(f"malformed frame: {error}")
        return False

    def release(self) -> None:
        """Give the socket up. Called by the reader only."""
        self._sock.close()
        self._ended.set()

    def _dispatch(self, kind: str, number: int, payload: bytes, now_ns: int) -> None:
        if kind == "U":
            self._arrived("userland", now_ns)
        elif kind == "A":
            if self._identity is not None:
                identity, self._identity = self._identity, None
                # Not here: the reader must never wait for one guest.
                threading.Thread(target=self._introduce, args=(identity,), name="tare-identity", daemon=True).start()
        elif kind == "R":
            self.service_port = int.from_bytes(payload[:2], "little")
            self._done("service", now_ns)
        elif kind == "!":
            self._fail(TareError("service inside the instance", _legible(payload) or "it failed"))
        elif (request := self._requests.get(number)) is None:
            return  # the rest of a command that nobody waits for any more
        elif kind in "OE":
            request.keep(kind, payload)
        elif kind == "I":
            request.taken.set()
        else:
            if kind in "XP":
                self._timeline.stamp("answered", now_ns)
            request.finish(payload, now_ns)

    def _introduce(self, identity: Identity) -> None:
        try:
            self._done("identity", self.configure(identity))
        except TareError as error:
            self._fail(error)

    def _done(self, part: str, now_ns: int) -> None:
        """One of the things that readiness consists of has come about; the last of them is its moment."""
        with self._awaited_lock:
            self._awaited.discard(part)
            if not self._awaited:
                self._arrived("ready", now_ns)

    def _fail(self, error: TareError) -> None:
        self._failure = self._failure or error
        self._seen["ready"].set()

    def _arrived(self, event: str, now_ns: int) -> None:
        self._timeline.stamp(event, now_ns)
        self._seen[event].set()


def _legible(complaint: bytes) -> str:
    """The beginning of what a guest complains of, which may hold anything."""
    return printable(complaint[:_COMPLAINT_MAX].decode(errors="replace"))


class Command:
    """A command that runs inside; see `Channel.running`."""

    def __init__(self, channel: Channel, number: int, request: _Request) -> None:
        self._channel = channel
        self._number = number
        self._request = request
        self._granted = 0
        self._lock = threading.Lock()

    def wait(self) -> int:
        """Its exit code, once it has ended. Raises TareError when the agent is lost before."""
        self._request.done.wait()
        return int.from_bytes(self._channel._answer(self._request), "little", signed=True)

    def type(self, data: bytes, abandoned: Callable[[], bool] = lambda: False) -> bool:
        """Give it input (none: its end), by one thread at a time; returns when it has been taken.

        False when it never will be: the command has ended, the agent is lost, or it is `abandoned`, asked now and then.
        """
        for start in range(0, max(1, len(data)), INPUT_BYTES):
            self._request.taken.clear()
            if not self._say("I", data[start : start + INPUT_BYTES]):
                return False
            while not self._request.taken.wait(_LOOK_S):
                if abandoned():
                    return False
        return not self._request.done.is_set()

    def grant(self, size: int) -> None:
        """So many bytes of its output have been taken by whom they were for. Thread-safe; never from an Output."""
        with self._lock:
            self._granted += size
            if self._granted < WINDOW_BYTES // 4:
                return
            granted, self._granted = self._granted, 0
        self._say("W", struct.pack("<I", granted))

    def resize(self, rows: int, columns: int) -> None:
        """Give its terminal another size; its foreground processes get SIGWINCH."""
        self._say("Z", struct.pack("<HH", rows, columns))

    def signal(self, number: int) -> None:
        """Send a signal to its process."""
        self._say("K", struct.pack("<I", number))

    def kill(self) -> None:
        """End it, with its process group; one that has ended, or whose agent is lost, is no error."""
        self._say("K")

    def _say(self, kind: str, payload: bytes = b"") -> bool:
        """Send a frame about it; False once it has ended or the agent is lost."""
        if self._request.done.is_set():
            return False
        try:
            self._channel._send(encode(kind, self._number, payload))
        except TareError:
            return False
        return True
