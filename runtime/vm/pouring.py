"""Give libvirt a saved state to restore under another name: a header of ours, then the bytes that QEMU wrote.

virDomainRestore reads a path from its beginning to its end, and a FIFO is one: no copy of the state is made.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.vm.saved import Saved, header

_POLL_MS = 100  # how soon a restore that failed is noticed; not how fast one that works goes
_PIECE_BYTES = 1 << 20


@contextmanager
def pouring(saved: Saved, xml: str, fifo: Path) -> Iterator[None]:
    """Within, whoever opens `fifo` reads `saved` as the domain `xml`. The writer ends with the block."""
    os.mkfifo(fifo, 0o600)
    done = threading.Event()
    # Opened for both, so that neither end waits for the other; the pipe closes behind the last byte.
    pipe = os.open(fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    writer = threading.Thread(target=_pour, args=(saved, header(xml), pipe, done), name="tare-restore", daemon=True)
    writer.start()
    try:
        yield
    finally:
        done.set()
        writer.join()
        fifo.unlink(missing_ok=True)


def _pour(saved: Saved, head: bytes, pipe: int, done: threading.Event) -> None:
    poll = select.poll()
    poll.register(pipe, select.POLLOUT)
    try:
        with saved.state.open("rb") as state:
            rest, at = memoryview(head), saved.offset
            while at < saved.size_bytes and not done.is_set():
                if not poll.poll(_POLL_MS):
                    continue
                try:
                    if rest:
                        rest = rest[os.write(pipe, rest) :]
                    else:
                        at += os.sendfile(pipe, state.fileno(), at, min(_PIECE_BYTES, saved.size_bytes - at))
                except BlockingIOError:
                    continue
    finally:
        os.close(pipe)
