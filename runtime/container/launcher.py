"""The launcher: a lean process that clones instances for a fat one, reaps them, and ends with it.

It imports little, has one thread and holds nothing but sockets and pidfds, so that a clone copies few
pages. Plans come in over a SOCK_SEQPACKET socket, one message each, with the descriptors they need;
what became of them goes back the same way. No shell, no polling, no process per instance.
"""

from __future__ import annotations

import array
import gc
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Final

from runtime.container import child
from runtime.container.steps import Row, Step, from_row
from runtime.linux import syscalls

MESSAGE_BYTES: Final = 1 << 20
MAX_DESCRIPTORS: Final = 16


def spawn(
    namespaces: int, cgroup: str | None, steps: list[Step], streams: list[tuple[int, int]]
) -> tuple[int, int, int]:
    """Clone a child that carries out `steps`: (pid, pidfd, read end of its error pipe). Raises OSError.

    `cgroup` is the v2 directory to be born in; `streams` pairs of a descriptor here and one of the program.
    """
    into = None if cgroup is None else os.open(cgroup, os.O_PATH | os.O_DIRECTORY)
    errors, told = os.pipe2(os.O_CLOEXEC)
    try:
        pid, pidfd = syscalls.clone3(namespaces, signal.SIGCHLD, into)
        if pid == 0:
            child.run(steps, streams, told)
    except OSError:
        os.close(errors)
        raise
    finally:
        os.close(told)
        if into is not None:
            os.close(into)
    return pid, pidfd, errors


class Launcher:
    """The loop around `spawn`, serving one socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._watch(control.fileno(), self._receive)

    def serve(self) -> None:
        """Until the other end of the socket is closed."""
        while self._control.fileno() in self._handlers:
            for descriptor, _ in self._poll.poll():
                handler = self._handlers.get(descriptor)
                if handler is not None:
                    handler()

    def _watch(self, descriptor: int, handler: Callable[[], None]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.EPOLLIN)

    def _forget(self, descriptor: int) -> None:
        del self._handlers[descriptor]
        self._poll.unregister(descriptor)

    def _receive(self) -> None:
        space = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
        message, ancillary, _, _ = self._control.recvmsg(MESSAGE_BYTES, space, socket.MSG_CMSG_CLOEXEC)
        if not message:
            self._forget(self._control.fileno())
            return
        received = array.array("i")
        for _, _, data in ancillary:
            received.frombytes(data[: len(data) - len(data) % received.itemsize])
        token, namespaces, cgroup, streams, rows = marshal.loads(message)  # noqa: S302 - our own parent wrote it
        try:
            self._launch(token, namespaces, cgroup, [(received[at], target) for at, target in streams], rows)
        finally:
            for descriptor in received:
                os.close(descriptor)

    def _launch(
        self, token: int, namespaces: int, cgroup: str | None, streams: list[tuple[int, int]], rows: list[Row]
    ) -> None:
        steps = [from_row(row) for row in rows]
        try:
            pid, pidfd, errors = spawn(namespaces, cgroup, steps, streams)
        except OSError as error:
            self._tell(token, "failed", -1, error.errno, str(error))
            return
        spawned_ns = time.monotonic_ns()
        self._watch(errors, lambda: self._executed(token, pid, pidfd, errors, spawned_ns))

    def _executed(self, token: int, pid: int, pidfd: int, errors: int, spawned_ns: int) -> None:
        """The error pipe ended: the program runs, or the child said why it does not."""
        executed_ns = time.monotonic_ns()
        self._forget(errors)
        report = os.read(errors, 65536)
        os.close(errors)
        if report:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            self._tell(token, "failed", *marshal.loads(report))  # noqa: S302 - our own child wrote it
            return
        self._watch(pidfd, lambda: self._reap(token, pidfd))
        self._tell(token, "running", pid, spawned_ns, executed_ns, descriptor=pidfd)

    def _reap(self, token: int, pidfd: int) -> None:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        stopped_ns = time.monotonic_ns()
        self._forget(pidfd)
        os.close(pidfd)
        assert ended is not None  # the call waits
        code = ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
        self._tell(token, "ended", code, stopped_ns)

    def _tell(self, token: int, *words: int | str | None, descriptor: int | None = None) -> None:
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        try:
            self._control.sendmsg([marshal.dumps((token, *words))], rights, socket.MSG_NOSIGNAL)
        except OSError:
            # Nobody listens any more; the end of file that ends the loop is on its way.
            return


def main(descriptor: int) -> None:
    """Serve the socket `descriptor`, inherited from the process that wants instances."""
    control = socket.socket(fileno=descriptor)
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):
        # Python ignores or handles these; what is ignored here would be ignored in every instance.
        signal.signal(number, signal.SIG_DFL)
    while (last := os.open(os.devnull, os.O_RDWR)) < child.FIRST_SPARE:
        pass
    os.close(last)
    os.umask(0)
    gc.disable()
    gc.freeze()
    Launcher(control).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]))
