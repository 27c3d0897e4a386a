"""The launcher: a lean process that clones instances for a fat one, reaps them, and ends with it.

It imports little, has one thread and holds nothing but sockets and pidfds, so that a clone copies few
pages. Plans come in over a SOCK_SEQPACKET socket, one message each, with the descriptors they need;
what became of them goes back the same way. No shell, no polling, no process per instance.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import Final

from runtime.container import child
from runtime.container.steps import Row, Step, from_row
from runtime.linux import syscalls

MESSAGE_BYTES: Final = 1 << 20
MAX_DESCRIPTORS: Final = 16
MAX_KNOWN: Final = 64


def spawn(
    namespaces: int, cgroup: str | None, steps: Sequence[Step], streams: Sequence[tuple[int, int]]
) -> tuple[int, int, socket.socket]:
    """Clone a child that carries out `steps`: (pid, pidfd, the socket it reports to). Raises OSError.

    `cgroup` is the v2 directory to be born in; `streams` pairs of a descriptor here and one of the program.
    """
    into = None if cgroup is None else os.open(cgroup, os.O_PATH | os.O_DIRECTORY)
    reports, told = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        pid, pidfd = syscalls.clone3(namespaces, signal.SIGCHLD, into)
        if pid == 0:
            child.run(steps, streams, told)
    except OSError:
        reports.close()
        raise
    finally:
        told.close()
        if into is not None:
            os.close(into)
    return pid, pidfd, reports


def outcome(reports: socket.socket) -> tuple[tuple[int, int, str] | None, int]:
    """Wait until the child executes its program or fails, and close `reports`.

    Returns (None, descriptor of its root directory) or ((index of the step, errno, text), -1).
    """
    root, failure = -1, None
    with reports:
        while True:
            message, descriptors, _, _ = socket.recv_fds(reports, 65536, 1, socket.MSG_CMSG_CLOEXEC)
            if descriptors:
                root = descriptors[0]
            elif message:
                failure = marshal.loads(message)  # noqa: S302 - our own child wrote it
            else:
                break
    if failure is not None and root >= 0:
        os.close(root)
        root = -1
    return failure, root


class Launcher:
    """The loop around `spawn`, serving one socket."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._known: dict[bytes, list[Step]] = {}
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
        message, descriptors, _, _ = socket.recv_fds(
            self._control, MESSAGE_BYTES, MAX_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
        )
        if not message:
            self._forget(self._control.fileno())
            return
        token, namespaces, cgroup, streams, parts = marshal.loads(message)  # noqa: S302 - our own parent wrote it
        try:
            self._launch(token, namespaces, cgroup, [(descriptors[at], target) for at, target in streams], parts)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _launch(
        self,
        token: int,
        namespaces: int,
        cgroup: str | None,
        streams: list[tuple[int, int]],
        parts: list[bytes | tuple[Row, ...]],
    ) -> None:
        steps = [step for part in parts for step in self._decode(part)]
        try:
            pid, pidfd, reports = spawn(namespaces, cgroup, steps, streams)
        except OSError as error:
            self._tell(token, "failed", -1, error.errno, str(error))
            return
        spawned_ns = time.monotonic_ns()
        self._watch(reports.fileno(), lambda: self._settle(token, pid, pidfd, reports, spawned_ns))

    def _decode(self, part: bytes | tuple[Row, ...]) -> list[Step]:
        """The steps of a part. One that comes as bytes is the same in many plans and kept."""
        if not isinstance(part, bytes):
            return [from_row(row) for row in part]
        steps = self._known.get(part)
        if steps is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            rows = marshal.loads(part)  # noqa: S302 - our own parent wrote it
            steps = self._known[part] = [from_row(row) for row in rows]
        return steps

    def _settle(self, token: int, pid: int, pidfd: int, reports: socket.socket, spawned_ns: int) -> None:
        """The child reports: its program runs, or this is why it does not."""
        self._forget(reports.fileno())
        failure, root = outcome(reports)
        executed_ns = time.monotonic_ns()
        if failure is not None:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            self._tell(token, "failed", *failure)
            return
        self._watch(pidfd, lambda: self._reap(token, pidfd))
        descriptors = [pidfd] if root < 0 else [pidfd, root]
        self._tell(token, "running", pid, spawned_ns, executed_ns, descriptors=descriptors)
        if root >= 0:
            os.close(root)

    def _reap(self, token: int, pidfd: int) -> None:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        stopped_ns = time.monotonic_ns()
        self._forget(pidfd)
        os.close(pidfd)
        assert ended is not None  # the call waits
        code = ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
        self._tell(token, "ended", code, stopped_ns)

    def _tell(self, token: int, *words: int | str | None, descriptors: Sequence[int] = ()) -> None:
        try:
            socket.send_fds(self._control, [marshal.dumps((token, *words))], descriptors, socket.MSG_NOSIGNAL)
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
