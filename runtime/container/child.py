"""The child's own short life, from clone to execute: take the descriptors, carry out the steps, tell what failed.

Runs in a copy of the launcher. Never returns into it.
"""

from __future__ import annotations

import marshal
import os
import socket
from collections.abc import Sequence

from runtime.container.steps import Step
from runtime.linux.syscalls import CLOSE_RANGE_CLOEXEC, close_range

FIRST_SPARE = 16
"""Descriptors below this are free for the instance: the launcher keeps all of its own at or above it."""


def run(steps: Sequence[Step], streams: Sequence[tuple[int, int]], report: socket.socket) -> None:
    """Duplicate each (source, target) of `streams`, execute `steps`; the last one replaces this program.

    Before that one, an empty-handed message on `report`, a close-on-exec socket, carries a descriptor of
    the root directory. What fails is told there as a marshalled (index of the step, errno, text). An end
    of file without such words means that the program runs; a plan without one ends with 0.
    """
    index = -1
    try:
        os.setsid()
        for source, target in streams:
            os.dup2(source, target)
        close_range(max((2, *(target for _, target in streams))) + 1, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)
        last = len(steps) - 1
        for index, step in enumerate(steps):
            if index == last:
                _show_root(report)
            step.execute()
        os._exit(0)
    except OSError as error:
        words = (index, error.errno or 0, str(error))
    except BaseException as error:  # noqa: BLE001 - a copy of the launcher must end here, whatever happens
        words = (index, 0, repr(error))
    report.send(marshal.dumps(words))
    os._exit(127)


def _show_root(report: socket.socket) -> None:
    """Let the launcher hold the root file system, so that its end need not wait for the kernel to let go of it."""
    socket.send_fds(report, [b"root"], [os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)])
