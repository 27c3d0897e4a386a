"""The other end of the launcher: starts it, sends it plans, and knows what became of each instance.

One launcher and one reading thread serve any number of instances and callers.
"""

from __future__ import annotations

import errno
import itertools
import marshal
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from runtime.container.becoming import Execute, Find
from runtime.container.launcher import MESSAGE_BYTES
from runtime.container.plan import Plan
from runtime.errors import TareError
from runtime.linux.pidfd import Pidfd
from runtime.linux.sealed import sealed_copy

_CPUCLOCK_SCHED = 2  # the kernel's clock id of a process's CPU time, as clock_getcpuclockid(3) makes it
_SOURCE = Path(__file__).resolve().parents[2]
_BOOT = (
    "import sys; sys.path.insert(0, sys.argv[1]); from runtime.container.launcher import main;"
    " main(int(sys.argv[2]), sys.argv[3])"
)


class Child:
    """A process that the launcher cloned. `pid` is the host's number of it.

    `console` is the terminal's master where its program has one, else -1; whoever uses it closes it.
    """

    def __init__(self, bury: Callable[[int], None]) -> None:
        self.pid = 0
        self.spawned_ns = 0
        self.executed_ns = 0
        self.exit_code: int | None = None
        self.stopped_ns: int | None = None
        self.pidfd: Pidfd | None = None
        self.console = -1
        self._root = -1
        self._waits = False
        self._bury = bury
        self._failure: tuple[int, int, str] | None = None
        self._answered = threading.Event()
        self._ended = threading.Event()

    def kill(self, number: int) -> None:
        """Send signal `number`; a process that has ended is no error."""
        if self.pidfd is not None and not self._ended.is_set():
            self.pidfd.signal(number)

    def alive(self) -> bool:
        """Whether it still runs."""
        return self.pidfd is not None and not self._ended.is_set() and not self.pidfd.wait(0)

    def wait(self, timeout_s: float) -> bool:
        """Whether it has ended *and* was reaped, waiting up to `timeout_s`."""
        return self._ended.wait(timeout_s)

    def close(self) -> None:
        """Give the pidfd back, and (in a thread of its own) the root file system.

        When an overlay goes, the kernel writes back every dirty page of the file system below it, the
        whole host's. Neither the process's end nor the instance's removal has to wait for that.
        """
        if self.pidfd is not None:
            self.pidfd.close()
        if self._root >= 0:
            self._bury(self._root)
            self._root = -1


class LauncherClient:
    """Owns one launcher process, started at the first use. Thread-safe.

    Capabilities `given_up` are taken from everything that it launches but what is in a user namespace.
    """

    def __init__(self, python: str = sys.executable, *, given_up: Iterable[int] = ()) -> None:
        self._python = python
        self._given_up = ",".join(str(number) for number in sorted(given_up))
        self._lock = threading.Lock()
        self._tokens = itertools.count(1)
        self._children: dict[int, Child] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._reader: threading.Thread | None = None
        self._graves: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._burier: threading.Thread | None = None

    def start(self) -> None:
        """Start the launcher now, so that no launch pays for it."""
        with self._lock:
            self._connect()

    def cpu_s(self) -> float:
        """CPU seconds of the launcher alone, the children it waited for left out; 0 before the first launch."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                return 0.0
            return time.clock_gettime(~self._process.pid << 3 | _CPUCLOCK_SCHED)

    def launch(
        self,
        plan: Plan,
        descriptors: Sequence[int],
        timeout_s: float = 30.0,
        *,
        prepare: Callable[[int], None] | None = None,
    ) -> Child:
        """Carry out `plan` and return once its program is executing.

        `descriptors` are duplicated on the way; the caller keeps its own. When the child waits on the way
        (`Place.waits`), `prepare` is called with its pid, and then it goes on. Raises TareError when a
        step fails (`exit_code` 127 or 126 when it was the last one) or nothing is heard for `timeout_s`.
        """
        child, token = Child(self._bury), next(self._tokens)
        with self._lock:
            control = self._connect()
            self._children[token] = child
        try:
            socket.send_fds(control, [plan.encode(token)], descriptors)
        except OSError as error:
            self._children.pop(token, None)
            raise TareError("launch", f"the launcher takes no plan: {error.strerror}", "shorten the command") from error
        if not child._answered.wait(timeout_s):
            raise TareError("launch", f"no answer from the launcher in {timeout_s:g} s")
        if child._waits:
            self._let_on(child, token, control, prepare, timeout_s)
        if child._failure is not None:
            raise _explained(plan, *child._failure)
        return child

    def _let_on(
        self,
        child: Child,
        token: int,
        control: socket.socket,
        prepare: Callable[[int], None] | None,
        timeout_s: float,
    ) -> None:
        child._answered.clear()
        child._waits = False
        if prepare is not None:
            try:
                prepare(child.pid)
            except BaseException:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)  # it is the launcher's child and not reaped yet
                raise
        control.send(marshal.dumps((token,)))
        if not child._answered.wait(timeout_s):
            raise TareError("launch", f"no answer from the launcher in {timeout_s:g} s")

    def close(self) -> None:
        """End the launcher; instances that were to die with it do."""
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is None or self._process is None or self._reader is None:
            return
        with self._socket as control:
            with suppress(OSError):
                control.shutdown(socket.SHUT_RDWR)
            self._reader.join()
        self._process.wait()
        self._socket = self._process = self._reader = None
        if self._burier is not None:
            self._graves.put(-1)
            self._burier.join()
            self._burier = None

    def _bury(self, descriptor: int) -> None:
        if self._burier is None:
            os.close(descriptor)
        else:
            self._graves.put(descriptor)

    def _bury_all(self) -> None:
        while (descriptor := self._graves.get()) >= 0:
            os.close(descriptor)

    def _connect(self) -> socket.socket:
        if self._socket is not None and self._process is not None and self._process.poll() is None:
            return self._socket
        self._disconnect()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MESSAGE_BYTES)
        program = sealed_copy(self._python)
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [self._python, "-I", "-S", "-c", _BOOT, str(_SOURCE), str(theirs.fileno()), self._given_up],
                    executable=f"/proc/self/fd/{program}",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), program),
                    start_new_session=True,
                )
        finally:
            os.close(program)
        self._socket = ours
        self._reader = threading.Thread(target=self._read, args=(ours,), name="launcher", daemon=True)
        self._reader.start()
        self._burier = threading.Thread(target=self._bury_all, name="burier", daemon=True)
        self._burier.start()
        return ours

    def _read(self, control: socket.socket) -> None:
        while True:
            try:
                message, received, _, _ = socket.recv_fds(control, 65536, 3, socket.MSG_CMSG_CLOEXEC)
            except OSError:
                message, received = b"", []
            if not message:
                break
            token, kind, *words = marshal.loads(message)  # noqa: S302 - our own child wrote it
            self._note(token, kind, words, received)
        for token in list(self._children):
            self._note(token, "failed", [-1, errno.EPIPE, "the launcher has ended"], [])
            self._children.pop(token, None)

    def _note(self, token: int, kind: str, words: list[object], received: list[int]) -> None:
        child = self._children.get(token)
        if child is None:
            for descriptor in received:
                os.close(descriptor)
            return
        match kind, words:
            case "running", [int(pid), int(spawned_ns), int(executed_ns), root, console]:
                child.pid, child.spawned_ns, child.executed_ns = pid, spawned_ns, executed_ns
                child.pidfd = Pidfd(received.pop(0))
                child._root = received.pop(0) if root else -1
                child.console = received.pop(0) if console else -1
            case "waits", [int(pid), str()]:
                child.pid, child._waits = pid, True
            case "failed", [int(index), int(number), str(text)]:
                child._failure = index, number, text
                child._ended.set()
            case "ended", [int(code), int(stopped_ns)]:
                child.exit_code, child.stopped_ns = code, stopped_ns
                child._ended.set()
        child._answered.set()
        if child._ended.is_set():
            self._children.pop(token, None)


def _explained(plan: Plan, index: int, number: int, text: str) -> TareError:
    """The failure of step `index` as a sentence."""
    if index < 0:
        return TareError("launch", text)
    step = plan.steps[index]
    if isinstance(step, Execute | Find):
        name = os.fsdecode(step.argv[0])
        error = TareError(f"command {name!r}", os.strerror(number), "give a program that the image holds")
        error.exit_code = 127 if number in (errno.ENOENT, errno.ENOTDIR) else 126
        return error
    return TareError(f"launch: {step.describe()[:300]}", text)
