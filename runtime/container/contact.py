"""The command's end of the keeper: starts it when there is none, asks it, and relays a terminal's or pipes' streams.

Not what is asked (that is `lifecycle`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from runtime.container import terminal
from runtime.container.terminal import KeyWatch
from runtime.errors import TareError
from runtime.linux.sealed import sealed_copy
from runtime.protocol import INPUT, INPUT_END, MESSAGE_BYTES, OUTPUT, SOCKET, VERSION, WORDS, decoded, encoded
from runtime.record import ordered_record

_SOURCE = str(Path(__file__).resolve().parents[2])
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from runtime.container.keeper import main; main(sys.argv[2])"
_CHUNK_BYTES = 32 << 10
_ATTEMPTS = 20
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h
# Of the process itself, or of no use to another one.
_NOT_PASSED_ON = {
    signal.SIGKILL,
    signal.SIGSTOP,
    signal.SIGCHLD,
    signal.SIGPIPE,
    signal.SIGURG,
    signal.SIGWINCH,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCONT,
    signal.SIGSEGV,
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGBUS,
    signal.SIGABRT,
}


_foreseen: dict[Path, int] = {}


def foresee(run: Path) -> None:
    """Start a keeper now if there is none: the `Summons` to come finds it on its way, however long imports take."""
    if os.geteuid() == 0 and not _answers(run):
        _foreseen[run] = _spawn(run)


class Summons:
    """A keeper on its way, so that what a command prepares need not wait for it."""

    def __init__(self, run: Path) -> None:
        self._run = run
        self._pid = _foreseen.pop(run, 0)
        if not self._pid and not _answers(run):
            self._pid = _spawn(run)

    def connect(self) -> Contact:
        """Wait for it, and be connected. Raises TareError when it does not come."""
        for _ in range(_ATTEMPTS):
            if self._pid:
                _, status = os.waitpid(self._pid, 0)
                self._pid = 0
                if status:
                    break
            contact = connect(self._run)
            if contact is not None:
                return contact
            self._pid = _spawn(self._run)
        raise TareError("keeper of containers", "it does not start", f"see {self._run / 'keeper.log'}")


@ordered_record
class Running:
    """What the keeper gives of a running process: its pid and pidfd, and its terminal's master or -1. To be closed."""

    pid: int
    pidfd: int
    console: int = -1

    def close(self) -> None:
        """Give the descriptors back."""
        for descriptor in (self.pidfd, self.console):
            if descriptor >= 0:
                os.close(descriptor)


@ordered_record
class Ended:
    """How a process came to its end; `detached` when it was let go of before."""

    exit_code: int
    oom_killed: bool = False
    detached: bool = False


class Contact:
    """A connection. A context manager."""

    keeper = "keeper of containers"
    lost = "try again; tare ps -a says what became of the containers"

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, MESSAGE_BYTES * 2)
        self.keeper_pid = 0

    def greeted(self) -> bool:
        """Whether the keeper has said hello: one that is just ending does not."""
        try:
            words, _ = self.hear()
        except TareError:
            return False
        match words:
            case ("hello", int(version), int(pid)) if version == VERSION:
                self.keeper_pid = pid
                return True
        raise TareError(self.keeper, "it is of another version", "stop all that it keeps, then try again")

    def ask(self, *words: object, descriptors: Sequence[int] = ()) -> None:
        """Say something. Raises TareError when it is too long or nobody listens."""
        message = WORDS + encoded(words)
        if len(message) > MESSAGE_BYTES:
            raise TareError("request", f"{len(message)} bytes are too many", "shorten the command or the environment")
        try:
            socket.send_fds(self._connection, [message], descriptors, socket.MSG_NOSIGNAL)
        except OSError as error:
            raise self._lost() from error

    def hear(self) -> tuple[tuple[Any, ...], list[int]]:
        """The keeper's next words, and the descriptors with them. Raises TareError when it is gone."""
        while True:
            try:
                message, descriptors, _, _ = socket.recv_fds(
                    self._connection, MESSAGE_BYTES, 4, socket.MSG_CMSG_CLOEXEC
                )
            except OSError as error:
                raise self._lost() from error
            if not message:
                raise self._lost()
            if message[:1] == WORDS:
                return decoded(message[1:]), descriptors

    def relay(
        self,
        running: Running,
        streams: tuple[int, int, int],
        *,
        keys: bytes = b"",
        proxy: bool = True,
    ) -> Ended | None:
        """Pass input, output and signals until the process ends: how it did; None when the keeper went first.

        `streams` are our own input, output and error output, each -1 for none. With a terminal on both ends,
        ours is raw meanwhile, and keeps the other's size.
        """
        source = streams[0]
        ours = source if running.console >= 0 and source >= 0 and os.isatty(source) else -1
        with terminal.raw(ours) if ours >= 0 else _nothing(), _signals(running, ours, streams[1], proxy):
            return self.carry(streams, keys if ours >= 0 else b"")

    def carry(self, streams: tuple[int, int, int], keys: bytes = b"") -> Ended | None:
        """The streams only, as they are; `keys` let go."""
        return _Relay(self._connection, streams, KeyWatch(keys)).run()

    def _lost(self) -> TareError:
        return TareError(self.keeper, "it has ended", self.lost)

    def fileno(self) -> int:
        """To wait for what is said."""
        return self._connection.fileno()

    def close(self) -> None:
        """Hang up."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Relay:
    """The loop of `Contact.relay`: nothing is read that could not be passed on."""

    def __init__(self, connection: socket.socket, streams: tuple[int, int, int], keys: KeyWatch) -> None:
        self._connection = connection
        self._source, *outputs = streams
        self._outputs = {number: descriptor for number, descriptor in enumerate(outputs, 1) if descriptor >= 0}
        self._keys = keys
        self._pending = b""
        self._poll = select.poll()
        self._ended: Ended | None = None
        self._failed: TareError | None = None
        self._over = False

    def run(self) -> Ended | None:
        """Until the end. Raises the TareError that the keeper tells of instead."""
        self._connection.setblocking(False)
        self._register()
        with _woken() as woken:
            self._poll.register(woken, select.POLLIN)
            while not self._over:
                for descriptor, events in self._poll.poll():
                    if descriptor == woken:
                        os.read(woken, _CHUNK_BYTES)
                    elif descriptor == self._source:
                        self._read()
                    else:
                        if events & select.POLLOUT:
                            self._send()
                        if events & ~select.POLLOUT:
                            self._receive()
        self._connection.setblocking(True)
        if self._failed is not None:
            raise self._failed
        return self._ended

    def _register(self) -> None:
        events = select.POLLIN | (select.POLLOUT if self._pending else 0)
        self._poll.register(self._connection.fileno(), events)
        if self._source >= 0:
            if self._pending:
                with suppress(KeyError):
                    self._poll.unregister(self._source)
            else:
                self._poll.register(self._source, select.POLLIN)

    def _read(self) -> None:
        try:
            data = os.read(self._source, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._poll.unregister(self._source)
            self._source = -1
            self._pending = INPUT_END
        else:
            passed, detach = self._keys.filter(data)
            if detach:
                self._ended, self._over = Ended(0, detached=True), True
                return
            self._pending = INPUT + passed if passed else b""
        self._send()

    def _send(self) -> None:
        if self._pending:
            try:
                self._connection.send(self._pending, socket.MSG_NOSIGNAL)
                self._pending = b""
            except BlockingIOError:
                pass
            except OSError:
                self._pending = b""  # its last words are still to be read
        self._register()

    def _receive(self) -> None:
        try:
            message, descriptors, _, _ = socket.recv_fds(self._connection, MESSAGE_BYTES, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            message, descriptors = b"", []
        for descriptor in descriptors:
            os.close(descriptor)
        if message[:1] in OUTPUT:
            output = self._outputs.get(OUTPUT[message[:1]])
            if output is not None:
                _write(output, message[1:])
        elif message[:1] == WORDS:
            match decoded(message[1:]):
                case ("ended", int(code), bool(oom)):
                    self._ended, self._over = Ended(code, oom), True
                case words if (failed := failure(words)) is not None:
                    self._failed, self._over = failed, True
        elif not message:
            self._over = True


def failure(words: tuple[Any, ...]) -> TareError | None:
    """The error that a keeper's words tell of, if they do."""
    match words:
        case ("failed", str(what), str(why), str(do), int(code)):
            error = TareError(what, why, do)
            error.exit_code = code
            return error
    return None


def connect(run: Path, kind: type[Contact] = Contact) -> Contact | None:
    """A connection to the keeper of this run directory, or None when there is none."""
    try:
        connection = _connected(run)
    except OSError:
        return None
    contact = kind(connection)
    if contact.greeted():
        return contact
    contact.close()
    return None


def _connected(run: Path) -> socket.socket:
    """Through the directory's descriptor: a socket's address holds 107 bytes only."""
    directory = os.open(run, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(f"/proc/self/fd/{directory}/{SOCKET}")
    except BaseException:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def _answers(run: Path) -> bool:
    return (run / SOCKET).exists()


def _spawn(run: Path) -> int:
    """Start a keeper: the process that ends with 0 once there is one."""
    run.mkdir(parents=True, exist_ok=True, mode=0o700)
    argv = [sys.executable, "-I", "-S", "-c", _BOOT, _SOURCE, str(run)]
    program = sealed_copy(sys.executable)
    try:
        environment = {"PATH": os.environ.get("PATH", os.defpath)}
        return os.posix_spawn(f"/proc/self/fd/{program}", argv, environment, setsid=True)
    finally:
        os.close(program)


@contextmanager
def _signals(running: Running, ours: int, output: int, proxy: bool) -> Iterator[None]:
    """Hand signals on to the process, and the size of our terminal to its."""

    def pass_on(number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(running.pidfd, number)

    def resized() -> None:
        found = terminal.size(ours if ours >= 0 else output)
        if found is not None and running.console >= 0:
            with suppress(OSError):
                terminal.resize(running.console, found)

    with passing(pass_on if proxy else None, resized if running.console >= 0 else None):
        yield


@contextmanager
def passing(pass_on: Callable[[int], None] | None, resized: Callable[[], None] | None) -> Iterator[None]:
    """Tell `pass_on` of signals that are a process's business, and `resized`, first at once, of our terminal's size."""
    before = {}
    if pass_on is not None:
        for number in signal.Signals:
            if number not in _NOT_PASSED_ON:
                before[number] = signal.signal(number, lambda number, _: pass_on(number))
    if resized is not None:
        before[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, lambda *_: resized())
        resized()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


@contextmanager
def _woken() -> Iterator[int]:
    """What becomes readable at each signal: one that comes just before a poll does not interrupt it.

    Python runs handlers in its main thread only, so a relay in another one needs no waking.
    """
    readable, writable = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    before: int | None = None
    with suppress(ValueError):  # not the main thread
        before = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield readable
    finally:
        if before is not None:
            signal.set_wakeup_fd(before)
        os.close(readable)
        os.close(writable)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _write(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            select.select([], [descriptor], [])
