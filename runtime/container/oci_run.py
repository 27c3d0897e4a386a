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
from typing import Self

from runtime.container import oci, oci_create, oci_exec, spawning
from runtime.container.oci_create import Making
from runtime.container.oci_exec import Asked

BLOCK_BYTES = 32768
KEPT_SIGNALS = frozenset({signal.SIGCHLD, signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGURG})
"""Signals that are about this process and not passed on."""


def run(
    runtime: oci.Runtime, container_id: str, bundle: Path, making: Making, *, detach: bool, keep: bool = False
) -> int:
    """Create and start; unless `detach`, wait, and delete unless `keep`: the program's exit code, 128 and a signal."""
    spawning.default_signals()
    with Signals() as signals:
        spawned, console = oci_create.create(runtime, container_id, bundle, making)
        try:
            runtime.start(container_id)
            if detach:
                return 0
            code = attend(spawned.pidfd, console, signals)
        except BaseException:
            runtime.delete(container_id, force=True)
            raise
    if not keep:
        runtime.delete(container_id, force=True)
    return code


def execute(runtime: oci.Runtime, container_id: str, what: Asked, making: Making, *, detach: bool) -> int:
    """Run a further process; unless `detach`, wait for it: its exit code, 128 and a signal."""
    spawning.default_signals()
    with Signals() as signals:
        spawned, console = oci_exec.spawn(runtime, container_id, what, making)
        return 0 if detach else attend(spawned.pidfd, console, signals)


class Signals:
    """Pass signals on to a child, once there is one: those that come before are kept for it.

    Caught, not blocked: the child inherits what is blocked, but execve forgets what is caught.
    """

    def __init__(self) -> None:
        self._pidfd = self._console = -1
        self._kept: list[int] = []

    def __enter__(self) -> Self:
        caught = signal.valid_signals() - KEPT_SIGNALS
        self._before = {number: signal.signal(number, self._pass_on) for number in caught if number < signal.SIGRTMIN}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def pass_to(self, pidfd: int, console: int) -> None:
        """From now on to this child, whose terminal follows the size of ours."""
        self._pidfd, self._console = pidfd, console
        while self._kept:
            self._pass_on(self._kept.pop(0), None)

    def _pass_on(self, number: int, _: object) -> None:
        if self._pidfd < 0:
            self._kept.append(number)
        elif number == signal.SIGWINCH and self._console >= 0:
            _copy_size(self._console)
        else:
            with suppress(OSError):
                signal.pidfd_send_signal(self._pidfd, number)


def attend(pidfd: int, console: int, signals: Signals) -> int:
    """Wait for a child, passing on signals and, with a `console` (its terminal's master end), what is typed."""
    signals.pass_to(pidfd, console)
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
