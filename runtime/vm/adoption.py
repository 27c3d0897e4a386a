"""Makes this process the parent of the QEMU that embedded libvirt starts detached, and reaps it when it fails to start.

libvirt looks every 200 ms whether a QEMU it has killed is gone, which a zombie is not. Left to init, that
takes as long as init takes to reap, and there are inits that take seconds. Once a guest has started, its
end is its owner's business (`guest`).
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.linux import syscalls
from runtime.linux.pidfd import Pidfd

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
STARTED = "started"
"""The FIFO in an instance's run directory to which the emulator script writes its pid."""

_lock = threading.Lock()
_adopters = 0


@contextmanager
def adopting(directory: Path) -> Iterator[None]:
    """Inside the block the emulator of the instance that `directory` belongs to becomes our child.

    Only inside, so that no other orphan comes here. Should it end before the block does, it is reaped.
    """
    os.mkfifo(directory / STARTED, 0o600)
    fifo = os.open(directory / STARTED, os.O_RDWR | os.O_CLOEXEC)  # so that neither end waits for the other
    over = os.eventfd(0, os.EFD_CLOEXEC)
    nurse = threading.Thread(target=_nurse, args=(fifo, over), name="tare-adoption", daemon=True)
    nurse.start()
    _count(+1)
    try:
        yield
    finally:
        _count(-1)
        os.eventfd_write(over, 1)
        nurse.join()
        os.close(fifo)
        os.close(over)


def reap(process: Pidfd) -> None:
    """Take a dead child off the process table; what is not ours, or still lives, is left as it is."""
    with suppress(ChildProcessError):
        os.waitid(os.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG)


def _nurse(fifo: int, over: int) -> None:
    if _first_of(fifo, over) == fifo:
        with suppress(ProcessLookupError), Pidfd.of(int(os.read(fifo, 32))) as process:
            if _first_of(process.fileno(), over) == process.fileno():
                reap(process)


def _first_of(*descriptors: int) -> int:
    """Wait until one of them can be read, and return it; the earlier one if several can."""
    poller = select.poll()
    for descriptor in descriptors:
        poller.register(descriptor, select.POLLIN)
    ready = {descriptor for descriptor, _ in poller.poll()}
    return next(descriptor for descriptor in descriptors if descriptor in ready)


def _count(change: int) -> None:
    global _adopters  # noqa: PLW0603 - it counts for an attribute of the process
    with _lock:
        _adopters += change
        syscalls.prctl(PR_SET_CHILD_SUBREAPER, int(_adopters > 0))
