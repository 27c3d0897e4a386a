# Lean, as the child of a clone uses it too: paths are text, and to execute is what this is for.
"""Run a configuration's hooks: programs at fixed points of the life cycle, with the state on their standard input.

What the runtime-spec says of each point (runtime.md, config.md#posix-platform-hooks) is decided by the caller; here
one hook runs, in turn, with its own environment and time-out. Used in the runtime's namespaces and, by the child
between clone and execute, in the container's. The standard library only, and little of it.
"""

from __future__ import annotations

import os
import select
from _signal import SIGKILL, SIGPIPE, SIGXFSZ  # type: ignore[import-not-found]

from runtime.errors import TareError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

OUTPUT_BYTES = 400
"""How much of a failing hook's output its error shows."""


def run(
    point: str, number: int, argv: Sequence[str], env: Sequence[str], *, timeout_s: int | None, state: bytes
) -> None:
    """Run one hook: `argv` is its path and then its arguments (the first of which names it), `env` NAME=VALUE words.

    `point` and `number` (from 0) say in errors which one it was. Raises TareError when it cannot be executed, ends
    with anything but 0, or still runs after `timeout_s` (it is killed then).
    """
    what = f"{point} hook #{number} {argv[0]}"
    output = os.memfd_create("hook output")
    try:
        status = _spawn(what, argv, env, timeout_s, state, output)
        if status != 0:
            tail = os.pread(output, OUTPUT_BYTES, max(0, os.fstat(output).st_size - OUTPUT_BYTES))
            said = tail.decode(errors="replace").strip()
            raise TareError(what, _ending(status) + (f", it said: {said}" if said else ""))
    finally:
        os.close(output)


def _spawn(what: str, argv: Sequence[str], env: Sequence[str], timeout_s: int | None, state: bytes, output: int) -> int:
    """Execute, feed and wait: the exit code, negative for a signal. Standard output and error go to `output`."""
    stdin = os.memfd_create("hook state")
    try:
        os.write(stdin, state)
        os.lseek(stdin, 0, os.SEEK_SET)
        actions = [(os.POSIX_SPAWN_DUP2, stdin, 0)] + [(os.POSIX_SPAWN_DUP2, output, target) for target in (1, 2)]
        pid = os.posix_spawn(
            argv[0],
            list(argv[1:] or argv[:1]),
            dict(word.partition("=")[::2] for word in env),
            file_actions=actions,
            setsigdef=(SIGPIPE, SIGXFSZ),
        )
    except OSError as error:
        raise TareError(what, error.strerror or str(error), "give the absolute path of a program") from error
    finally:
        os.close(stdin)
    if timeout_s is not None:
        _end_in_time(what, pid, timeout_s)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _end_in_time(what: str, pid: int, timeout_s: int) -> None:
    pidfd = os.pidfd_open(pid)
    try:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        if not poller.poll(timeout_s * 1000):
            os.kill(pid, SIGKILL)
            os.waitpid(pid, 0)
            raise TareError(what, f"not done after {timeout_s} s")
    finally:
        os.close(pidfd)


def _ending(code: int) -> str:
    return f"exit status {code}" if code >= 0 else f"signal {-code}"


def run_all(
    point: str, hooks: Iterable[dict[str, object]], state: bytes, failed: Callable[[TareError], None] | None = None
) -> None:
    """Run the hooks of one `point` as config.json has them, in order, until one fails. Raises TareError.

    With `failed` none stops the others: it is told of each failure.
    """
    for number, hook in enumerate(hooks):
        path, args, env = str(hook["path"]), hook.get("args") or (), hook.get("env") or ()
        timeout = hook.get("timeout")
        assert isinstance(args, list | tuple)
        assert isinstance(env, list | tuple)
        assert timeout is None or isinstance(timeout, int)
        try:
            run(point, number, (path, *args), env, timeout_s=timeout, state=state)
        except TareError as error:
            if failed is None:
                raise
            failed(error)
