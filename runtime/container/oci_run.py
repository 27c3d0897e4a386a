"""`tare oci run` and `exec` in the foreground: stay, pass signals and the terminal on, end as the program ends.

With `detach` they leave like `create` and `start` do. What is made here is removed here, unless it is to be kept.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from runtime.container import oci, oci_create, oci_exec
from runtime.container.oci_create import Making
from runtime.container.oci_exec import Asked

BLOCK_BYTES = 32768
KEPT_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGURG})
"""Signals that are about this process and not passed on."""


def run(
    runtime: oci.Runtime, container_id: str, bundle: Path, making: Making, *, detach: bool, keep: bool = False
) -> int:
    """Create and start; unless `detach`, wait, and delete unless `keep`: the program's exit code, 128 and a signal."""
    oci_create.ready_for_clone()
    spawned, console = oci_create.create(runtime, container_id, bundle, making)
    try:
        runtime.start(container_id)
        if detach:
            return 0
        code = attend(spawned.pidfd, console)
    except BaseException:
        runtime.delete(container_id, force=True)
        raise
    if not keep:
        runtime.delete(container_id, force=True)
    return code


def execute(runtime: oci.Runtime, container_id: str, what: Asked, making: Making, *, detach: bool) -> int:
    """Run a further process; unless `detach`, wait for it: its exit code, 128 and a signal."""
    oci_create.ready_for_clone()
    spawned, console = oci_exec.spawn(runtime, container_id, what, making)
    return 0 if detach else attend(spawned.pidfd, console)


def attend(pidfd: int, console: int) -> int:
    """Wait for a child, passing on signals and, with a `console` (its terminal's master end), what is typed."""
    with _signals_passed_on(pidfd, console):
        if console < 0:
            _until_ended(pidfd)
        else:
            with _raw_terminal(console):
                _relay(pidfd, console)
    ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    assert ended is not None  # the call waits
    return ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status


def _until_ended(pidfd: int) -> None:
    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    poller.poll()


def _relay(pidfd: int, console: int) -> None:
    """Carry bytes both ways until the child has ended and its last words are out."""
    poller = select.poll()
    for descriptor in (pidfd, console, sys.stdin.fileno()):
        poller.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poller.poll()}
        if sys.stdin.fileno() in ready and not _carry(sys.stdin.fileno(), console):
            poller.unregister(sys.stdin.fileno())
        if console in ready and not _carry(console, sys.stdout.fileno()):
            poller.unregister(console)
        if pidfd in ready and console not in ready:
            return


def _carry(source: int, target: int) -> bool:
    """Move one block: whether there may be more. A terminal whose last user has gone reads as EIO."""
    try:
        block = os.read(source, BLOCK_BYTES)
    except OSError:
        return False
    while block:
        written = os.write(target, block)
        block = block[written:]
        if not block:
            return True
    return False


@contextmanager
def _signals_passed_on(pidfd: int, console: int) -> Iterator[None]:
    def pass_on(number: int, _: object) -> None:
        if number == signal.SIGWINCH and console >= 0:
            _copy_size(console)
        else:
            with suppress(OSError):
                signal.pidfd_send_signal(pidfd, number)

    caught = [number for number in signal.valid_signals() if number not in KEPT_SIGNALS and number < signal.SIGRTMIN]
    before = {number: signal.signal(number, pass_on) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _raw_terminal(console: int) -> Iterator[None]:
    """Make our own terminal, if we have one, a mere wire to the container's."""
    import termios
    import tty

    stdin = sys.stdin.fileno()
    if not os.isatty(stdin):
        yield
        return
    _copy_size(console)
    before = termios.tcgetattr(stdin)
    tty.setraw(stdin)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _copy_size(console: int) -> None:
    import termios

    with suppress(OSError, termios.error):
        termios.tcsetwinsize(console, termios.tcgetwinsize(sys.stdin.fileno()))
