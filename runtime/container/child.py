"""The child's own short life, from clone to execute: take the descriptors, carry out the steps, tell what failed.

Runs in a copy of the launcher. Never returns into it.
"""

from __future__ import annotations

import marshal
import os
from collections.abc import Sequence

from runtime.container.steps import Step
from runtime.linux.syscalls import CLOSE_RANGE_CLOEXEC, close_range

FIRST_SPARE = 16
"""Descriptors below this are free for the instance: the launcher keeps all of its own at or above it."""


def run(steps: Sequence[Step], streams: Sequence[tuple[int, int]], errors: int) -> None:
    """Duplicate each (source, target) of `streams`, execute `steps`; the last one replaces this program.

    What fails is written to `errors`, a close-on-exec pipe, as a marshalled (index of the step, errno,
    text); an end of file there without a word means that the program runs, or that there was none
    and every step was done: then the child ends with 0.
    """
    index = -1
    try:
        os.setsid()
        for source, target in streams:
            os.dup2(source, target)
        close_range(max((2, *(target for _, target in streams))) + 1, 0xFFFFFFFF, CLOSE_RANGE_CLOEXEC)
        for index, step in enumerate(steps):  # noqa: B007 - reported below
            step.execute()
        os._exit(0)
    except OSError as error:
        report = (index, error.errno or 0, str(error))
    except BaseException as error:  # noqa: BLE001 - a copy of the launcher must end here, whatever happens
        report = (index, 0, repr(error))
    os.write(errors, marshal.dumps(report))
    os._exit(127)
