"""The child's own short life, from clone to execute: take the descriptors, carry out the steps, tell what failed.

Runs in a copy of the launcher. Never returns into it. Every module it needs is imported before: once the root is the
container's, there are none to be found.
"""

from __future__ import annotations

import fcntl
import marshal
import os
from _socket import MSG_NOSIGNAL, socket

from runtime.container.program import Entry, position
from runtime.container.stepping import Context, Step, Talking
from runtime.linux.passing import receive, send
from runtime.linux.syscalls import close_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

FIRST_SPARE = 16
"""Descriptors below this are free for the instance: the launcher keeps all of its own at or above it."""
MAX_TREES = 253  # the kernel's SCM_MAX_FD


def run(
    steps: Sequence[Step],
    entries: Sequence[Entry],
    streams: Sequence[tuple[int, int]],
    report: socket,
    target: int,
    waits: bool,
) -> None:
    """Duplicate each (source, target) of `streams`, execute `steps`; the last one replaces this program.

    `entries` are the steps as `program` has them, which is how they are carried out. `target` is the pidfd that a
    step may join, or -1. With `waits` a first message of the parent is waited for, which may bring mounts. Before the
    last step, a message `root` on `report`, a close-on-exec socket, carries a descriptor of the root directory. What
    fails is told there as a marshalled (index of the step, errno, text). An end of file without such words means that
    the program runs; a plan without one ends with 0.
    """
    at, context = -1, Context(report)
    try:
        os.setsid()
        if streams:
            report, target = _arrange(streams, report, target)
        context.report, context.target = report, target
        _close_others(max([2, *[number for _, number in streams]]), sorted([report.fileno(), target]))
        if waits:
            message, trees = receive(report, 16, MAX_TREES)
            if not message:
                os._exit(127)
            context.trees = tuple(trees)
        last = len(entries) - 1
        for at, (function, given) in enumerate(entries):
            if at == last:
                _show_root(report)
            if function is not None:
                if function(*given) == -1:
                    steps[position(steps, at)].recover()  # type: ignore[attr-defined]
            elif isinstance(given, Talking):
                given.talk(context)
            else:
                given.execute()
        os._exit(0)
    except OSError as error:
        words = (position(steps, at), error.errno or 0, str(error))
    except BaseException as error:  # noqa: BLE001 - a copy of the launcher must end here, whatever happens
        words = (position(steps, at), 0, repr(error))
    _tell(words, context)
    os._exit(127)


def _tell(words: tuple[int, int, str], context: Context) -> None:
    """Say what failed to the parent, or, when it has gone since the child was held, to whoever starts it."""
    try:
        context.report.send(marshal.dumps(words), MSG_NOSIGNAL)
    except OSError:
        if context.hold >= 0:
            os.write(context.hold, marshal.dumps(words))


def _arrange(streams: Sequence[tuple[int, int]], report: socket, target: int) -> tuple[socket, int]:
    """Put every stream at its number and nothing else below the highest; ours move out of the way."""
    targets = [number for _, number in streams]
    spare = max(FIRST_SPARE, *targets) + 1
    if report.fileno() < spare:
        report = socket(fileno=fcntl.fcntl(report.detach(), fcntl.F_DUPFD_CLOEXEC, spare))
    if 0 <= target < spare:
        target = fcntl.fcntl(target, fcntl.F_DUPFD_CLOEXEC, spare)
    # A source may be the target of another: those are moved first.
    sources = [fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, spare) if source < spare else source for source, _ in streams]
    for source, number in zip(sources, targets, strict=True):
        os.dup2(source, number)
    for number in range(3, max(targets)):
        if number not in targets:
            close_range(number, number, 0)
    return report, target


def _close_others(last: int, kept: Sequence[int]) -> None:
    """Close every descriptor above `last` but those `kept`, the lowest first: no path may lead out through one."""
    first = last + 1
    for number in kept:
        if number >= first:
            if number > first:
                close_range(first, number - 1, 0)
            first = number + 1
    close_range(first, 0xFFFFFFFF, 0)


def _show_root(report: socket) -> None:
    """Let the launcher hold the root file system, so that its end need not wait for the kernel to let go of it."""
    descriptor = os.open(b"/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:  # noqa: SIM105 - a context manager is more to run
        send(report, b"root", (descriptor,))
    except BrokenPipeError:  # whoever created a held container need not stay for its start
        pass
    os.close(descriptor)
