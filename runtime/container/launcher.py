"""The launcher: a lean process that clones instances for a fat one, reaps them, and ends with it.

It imports little, has one thread and holds nothing but sockets and pidfds, so that a clone copies few
pages. Plans come in over a SOCK_SEQPACKET socket, one message each, with the descriptors they need;
what became of them goes back the same way. No shell, no polling, no process per instance.

How a child is cloned and heard is `spawning`, which serves other lean processes too.
"""

from __future__ import annotations

import gc
import marshal
import os
import select
import sys
import time
from _socket import socket

from runtime.container import child
from runtime.container.program import Entry, entries_of, program
from runtime.container.spawning import Flat, Spawned, get_ready, spawn
from runtime.container.stepping import Step
from runtime.container.steps import Row, from_row
from runtime.linux.passing import receive, send

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any, Final, TypeAlias

MESSAGE_BYTES: Final = 1 << 20
MAX_DESCRIPTORS: Final = 16
MAX_KNOWN: Final = 64


Decoded: TypeAlias = "tuple[list[Step], tuple[Entry, ...]]"
"""Steps, and the same as a child carries them out."""


class Launcher:
    """The loop around `spawn`, serving one socket."""

    def __init__(self, control: socket) -> None:
        self._control = control
        self._poll = select.epoll()
        self._handlers: dict[int, Callable[[], None]] = {}
        self._known: dict[bytes, Decoded] = {}
        self._waiting: dict[int, Spawned] = {}
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
        message, descriptors = receive(self._control, MESSAGE_BYTES, MAX_DESCRIPTORS)
        if not message:
            self._forget(self._control.fileno())
            return
        token, *words = marshal.loads(message)  # noqa: S302 - our own parent wrote it
        try:
            if words:
                self._launch(token, words, descriptors)
            elif token in self._waiting:
                self._waiting.pop(token).go_on()
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _launch(self, token: int, words: list[Any], descriptors: Sequence[int]) -> None:
        *fields, parts = words
        try:
            steps: list[Step] = []
            entries: list[Entry] = []
            for part in parts:
                some, their_entries = self._decode(part)
                steps += some
                entries += their_entries
            spawned = spawn(Flat(tuple(steps), tuple(entries), *fields), descriptors)
        except OSError as error:
            self._tell(token, "failed", -1, error.errno, str(error))
            return
        spawned_ns = time.monotonic_ns()
        self._watch(spawned.reports.fileno(), lambda: self._settle(token, spawned, spawned_ns))

    def _decode(self, part: bytes | tuple[Row, ...]) -> Decoded:
        """The steps of a part. One that comes as bytes is the same in many plans and kept."""
        if not isinstance(part, bytes):
            steps = [from_row(row) for row in part]
            return steps, tuple([entry for step in steps for entry in entries_of(step)])
        known = self._known.get(part)
        if known is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            steps = [from_row(row) for row in marshal.loads(part)]  # noqa: S302 - our own parent wrote it
            known = self._known[part] = steps, program(steps)
        return known

    def _settle(self, token: int, spawned: Spawned, spawned_ns: int) -> None:
        """The child reports: its program runs, or it waits, or this is why it does not run."""
        if not spawned.advance():
            return
        if spawned.done:
            self._forget(spawned.reports.fileno())
        said = spawned.take()
        if said.waits:
            if said.waits == "hooks":
                self._waiting[token] = spawned
            self._tell(token, "waits", spawned.pid, said.waits)
            return
        self._waiting.pop(token, None)
        executed_ns = time.monotonic_ns()
        pidfd = spawned.pidfd
        if said.failure is not None:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
            self._tell(token, "failed", *said.failure)
            return
        self._watch(pidfd, lambda: self._reap(token, pidfd))
        extra = [descriptor for descriptor in (said.root, said.console) if descriptor >= 0]
        kinds = (said.root >= 0, said.console >= 0)
        self._tell(token, "running", spawned.pid, spawned_ns, executed_ns, *kinds, descriptors=[pidfd, *extra])
        for descriptor in extra:
            os.close(descriptor)

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
            send(self._control, marshal.dumps((token, *words)), descriptors)
        except OSError:
            # Nobody listens any more; the end of file that ends the loop is on its way.
            return


def main(descriptor: int, given_up: str = "") -> None:
    """Serve the socket `descriptor`, inherited from the process that wants instances.

    `given_up` are numbers of capabilities, separated by commas, that no child will have: see `spawning.get_ready`.
    """
    control = socket(fileno=descriptor)
    while (last := os.open(os.devnull, os.O_RDWR)) < child.FIRST_SPARE:
        pass
    os.close(last)
    get_ready(int(word) for word in given_up.split(",") if word)
    gc.disable()
    gc.freeze()
    Launcher(control).serve()


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
