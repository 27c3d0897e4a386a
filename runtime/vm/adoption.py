"""Makes this process the parent of the QEMU that embedded libvirt starts detached, and reaps it when it fails to start.

libvirt looks every 200 ms whether a QEMU it has killed is gone, which a zombie is not. Left to init, that
takes as long as init takes to reap, and there are inits that take seconds. libvirt would also wait without
end for a QEMU that does not answer: here its patience is bounded. Once a guest has started, its end is its
owner's business (`guest`).
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic

from runtime.linux import syscalls
from runtime.linux.pidfd import Pidfd

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
STARTED = "started"
"""The FIFO in an instance's run directory to which the emulator script writes its pid."""

_lock = threading.Lock()
_adopters = 0


class Nurse:
    """Looks after one emulator while it starts."""

    def __init__(self, fifo: int, timeout_s: float) -> None:
        self.gave_up = False
        self._fifo = fifo
        self._timeout_s = timeout_s
        self._over = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._look, name="tare-adoption", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """It has started, or failed to."""
        os.eventfd_write(self._over, 1)
        self._thread.join()
        os.close(self._over)

    def _look(self) -> None:
        deadline = monotonic() + self._timeout_s
        if _first_of(self._fifo, self._over) != self._fifo:
            return
        with suppress(ProcessLookupError), Pidfd.of(int(os.read(self._fifo, 32))) as process:
            first = _first_of(process.fileno(), self._over, deadline)
            if first is None:
                self.gave_up = True
                process.signal(signal.SIGKILL)  # libvirt then sees its monitor closed
                first = _first_of(process.fileno(), self._over)
            if first == process.fileno():
                reap(process)


@contextmanager
def adopting(directory: Path, timeout_s: float) -> Iterator[Nurse]:
    """Inside the block the emulator of the instance that `directory` belongs to becomes our child.

    Only inside, so that no other orphan comes here. Should it end before the block does, it is reaped; should the
    block last longer than `timeout_s`, it is killed, which the block's `gave_up` tells.
    """
    os.mkfifo(directory / STARTED, 0o600)
    fifo = os.open(directory / STARTED, os.O_RDWR | os.O_CLOEXEC)  # so that neither end waits for the other
    _count(+1)
    nurse = Nurse(fifo, timeout_s)
    try:
        yield nurse
    finally:
        _count(-1)
        nurse.close()
        os.close(fifo)


def ending(process: Pidfd) -> str:
    """How a dead child of ours ended, which it stays until it is reaped; nothing of what is not ours or still lives."""
    try:
        ended = os.waitid(os.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return ""
    if ended is None:
        return ""
    if ended.si_code == os.CLD_EXITED:
        return f"QEMU exited with {ended.si_status}"
    return f"QEMU was ended by {signal.Signals(ended.si_status).name}"


@contextmanager
def reaping(process: Pidfd) -> Iterator[None]:
    """Reap `process` as soon as it ends inside the block: where libvirt is to end it, it waits for that."""
    over = os.eventfd(0, os.EFD_CLOEXEC)
    nurse = threading.Thread(target=_reap_first, args=(process, over), name="tare-adoption", daemon=True)
    nurse.start()
    try:
        yield
    finally:
        os.eventfd_write(over, 1)
        nurse.join()
        os.close(over)


def _reap_first(process: Pidfd, over: int) -> None:
    if _first_of(process.fileno(), over) == process.fileno():
        reap(process)


def _first_of(descriptor: int, over: int, deadline: float | None = None) -> int | None:
    """Which of the two can be read first, the former if both can; None at the deadline (monotonic)."""
    poller = select.poll()
    for one in (descriptor, over):
        poller.register(one, select.POLLIN)
    ready = {one for one, _ in poller.poll(None if deadline is None else max(0.0, deadline - monotonic()) * 1000)}
    return next((one for one in (descriptor, over) if one in ready), None)


def reap(process: Pidfd) -> None:
    """Take a dead child off the process table; what is not ours, or still lives, is left as it is."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG)


def _count(change: int) -> None:
    global _adopters  # noqa: PLW0603 - it counts for an attribute of the process
    with _lock:
        _adopters += change
        syscalls.prctl(PR_SET_CHILD_SUBREAPER, int(_adopters > 0))
