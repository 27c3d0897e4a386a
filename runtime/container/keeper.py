# ruff: noqa: PTH101, PTH108
# Paths are strings here: the keeper is lean.
"""The keeper: one process for all of a user's containers, their parent, from the first start to the last end.

Started on demand, it clones what commands have planned, keeps output in logs, passes streams to who is attached,
and writes down each end *before* anybody is told. It ends when it keeps nothing and nobody is connected. No
process of ours exists per container. What it keeps dies with it, by the kernel's hand (PDEATHSIG): a container
never runs unnoticed, and its end is then shown as 137, not seen. How commands talk to it is `contact`.
"""

from __future__ import annotations

import errno
import fcntl
import gc
import marshal
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from runtime.container import child
from runtime.container.keeping import Container, Process, text_of
from runtime.container.kept import Session
from runtime.container.loop import Loop
from runtime.container.restarts import Restarts
from runtime.container.spawning import Flat, Spawned, default_signals, spawn
from runtime.container.steps import from_row
from runtime.linux import syscalls
from runtime.protocol import SOCKET, VERSION

_LISTEN: Final = 512
_PATIENCE_S: Final = 10.0
"""How long it waits for whoever had it started."""
_LINGER_S: Final = 1.0
"""How long it stays for a next command after the last: a start costs as much as the rest of a short run."""


class Keeper:
    """The loop around it all. `clone` makes a child of a plan."""

    def __init__(self, listener: socket.socket, directory: str, clone: Callable[..., Spawned] = spawn) -> None:
        self.loop = Loop(_trouble)
        self._listener = listener
        self._directory = directory
        self._clone = clone
        self._sessions: set[Session] = set()
        self._containers: dict[str, Container] = {}
        self._alive: set[Process] = set()
        self.restarts = Restarts(self.loop, self._linger)
        self._stays_until = time.monotonic() + _PATIENCE_S
        self._boot = text_of("/proc/sys/kernel/random/boot_id").strip()
        listener.setblocking(False)
        self.loop.watch(listener.fileno(), lambda _: self._accept())

    def serve(self) -> None:
        """Until nothing is kept, nobody is connected and nobody is about to be."""
        self.loop.after(_PATIENCE_S, _look)
        while True:
            self.loop.run(lambda: self._idle() and time.monotonic() >= self._stays_until)
            with _held(self._directory):
                if not self._accept():
                    os.unlink(f"{self._directory}/{SOCKET}")
                    self._listener.close()
                    return

    def _idle(self) -> bool:
        return not (self._sessions or self._alive or self.restarts)

    def _linger(self) -> None:
        if self._idle():
            self._stays_until = time.monotonic() + _LINGER_S
            self.loop.after(_LINGER_S, _look)

    def _left(self, session: Session) -> None:
        self._sessions.discard(session)
        self._linger()

    def _accept(self) -> bool:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return False
        session = Session(self.loop, connection, self._said)
        self._sessions.add(session)
        session.gone = lambda: self._left(session)
        session.tell("hello", VERSION, os.getpid())
        return True

    def _said(self, session: Session, words: tuple[Any, ...], descriptors: list[int]) -> None:
        try:
            match words:
                case ("start", dict(request)):
                    self._start(session, request, descriptors)
                case ("exec", dict(request)):
                    Process(self, session, request).begin(descriptors)
                case ("attach", str(container_id), bool(output), bool(writes)):
                    self._attach(session, container_id, output, writes)
                case ("wait", str(container_id), bool(drained)):
                    self._wait(session, container_id, drained)
                case ("forgo", str(container_id)):
                    self._forgo(session, container_id)
                case ("change", str(container_id), dict(changes)):
                    if container_id in self._containers:
                        self._containers[container_id].change(changes)
                    session.tell("changed")
                case ("gave-up", str(container_id), str(finished_at), str(why)):
                    self.restarts.fail(container_id, finished_at, why)
                    session.tell("forgone")
                case ("go",):
                    session.heard()
                case ("kept",):
                    session.tell("kept", tuple(self._containers))
                case _:
                    session.tell("refused", f"no such request: {words[:1]!r}")
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _start(self, session: Session, request: dict[str, Any], descriptors: list[int]) -> None:
        waiting = self.restarts.take(str(request["id"]))
        if waiting is None and request["again"]:
            session.tell("failed", -1, errno.ECANCELED, "it is not to be started again any more")
            return
        container = Container(
            self, session, request, waiting.delay_s if waiting is not None and request["again"] else 0
        )
        if waiting is not None:
            container.followers += waiting.followers
        container.begin(descriptors)

    def _forgo(self, session: Session, container_id: str) -> None:
        """Start it no more, whether it runs, waits, or is just being started."""
        container = self._containers.get(container_id)
        if container is not None:
            container.stay_ended()
        self.restarts.forgo(container_id)
        session.tell("forgone")

    def _attach(self, session: Session, container_id: str, output: bool, writes: bool) -> None:
        container = self._containers.get(container_id)
        if container is None or container.kept.pidfd < 0:
            session.tell("refused", "it does not run")
            return
        container.kept.attach(session, output=output, writes=writes)
        container.tell_running(session, "attached")

    def _wait(self, session: Session, container_id: str, drained: bool) -> None:
        container, waiting = self._containers.get(container_id), self.restarts.find(container_id)
        if container is None and waiting is not None and drained:
            waiting.followers.append(session)
        elif container is None:
            session.tell("refused", "it does not run")
        else:
            (container.followers if drained else container.waiting).append(session)

    # --- for the processes kept

    def clone(self, plan: bytes, descriptors: list[int]) -> Spawned:
        """Make the child of an encoded plan. Raises OSError."""
        return self._clone(flat(plan), descriptors)

    def keep(self, process: Process) -> None:
        """Do not end before this has."""
        self._alive.add(process)

    def release(self, process: Process) -> None:
        """It is over."""
        self._alive.discard(process)
        self._linger()

    def enter(self, container: Container) -> None:
        """A container begins."""
        self._containers[container.id] = container

    def leave(self, container: Container) -> None:
        """A container's process has ended, and everybody may know."""
        if self._containers.get(container.id) is container:
            del self._containers[container.id]

    def run_of(self, pid: int) -> dict[str, Any]:
        """What tells process `pid` from every other, for `run.json`."""
        stat = text_of(f"/proc/{pid}/stat")
        return {"pid": pid, "start": int(stat[stat.rindex(")") + 2 :].split()[19]), "boot": self._boot}

    def bury(self, descriptor: int) -> None:
        """Let go of a root file system in a process of its own: the kernel may write back a whole disk meanwhile."""
        if descriptor < 0:
            return
        pid = os.fork()
        if pid == 0:
            os.dup2(descriptor, 3)
            syscalls.close_range(4, 0xFFFFFFFF, 0)
            os._exit(0)
        os.close(descriptor)
        self._reap_later(os.pidfd_open(pid))

    def help(self, argv: list[str], environment: Mapping[str, str], done: Callable[[], None]) -> None:
        """Run a program of ours that sees to what is not the keeper's to do; `done` is called at its end."""
        pid = os.posix_spawn(argv[0], argv, environment, setsid=True)
        self._reap_later(os.pidfd_open(pid), done)

    def _reap_later(self, pidfd: int, done: Callable[[], None] = lambda: None) -> None:
        def reap(_: int) -> None:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            self.loop.forget(pidfd)
            os.close(pidfd)
            done()

        self.loop.watch(pidfd, reap)


def _look() -> None:
    """Nothing to do but to wake the loop, which then looks at the time."""


def flat(plan: bytes) -> Flat:
    """A plan as `Plan.encode` writes it."""
    _, *fields, parts = marshal.loads(plan)  # noqa: S302 - the socket is root's own
    rows = (marshal.loads(part) if isinstance(part, bytes) else part for part in parts)  # noqa: S302
    steps = tuple(from_row(row) for part in rows for row in part)
    return Flat(steps, (), *fields)


class _held:  # noqa: N801 - used as a function
    """Hold the lock under which keepers begin and end."""

    def __init__(self, directory: str) -> None:
        self._path = f"{directory}/keeper.lock"
        self._descriptor = -1

    def __enter__(self) -> None:
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def main(directory: str) -> None:
    """Become the keeper of the run directory `directory`, unless there is one; the caller's end says that it listens.

    The process that was called ends as soon as the keeper can be connected to.
    """
    syscalls.close_range(3, 0xFFFFFFFF, 0)
    _detach(directory)
    os.chdir(directory)
    with _held("."):
        if _answers():
            os._exit(0)
        with suppress(FileNotFoundError):
            os.unlink(SOCKET)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(SOCKET)
        os.chmod(SOCKET, 0o600)
        listener.listen(_LISTEN)
        if os.fork():
            os._exit(0)
    keeper = Keeper(listener, directory)
    os.chdir("/")
    gc.freeze()
    keeper.serve()


def _detach(directory: str) -> None:
    """Stand by itself: no terminal, no streams, no signals of whoever needed it first."""
    os.setsid() if os.getsid(0) != os.getpid() else None
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    trouble = os.open(f"{directory}/keeper.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    for source, target in ((null, 0), (null, 1), (trouble, 2)):
        os.dup2(source, target)
    while os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC) < child.FIRST_SPARE:  # below is the instances' room
        pass
    default_signals()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE):
        signal.signal(number, lambda *_: None)  # handled, not ignored: an ignored one would be so in every container
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    os.umask(0)


def _trouble() -> None:
    """Into keeper.log: what should not have happened."""
    import traceback

    traceback.print_exc()
    sys.stderr.flush()


def _answers() -> bool:
    """Whether a keeper listens already."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        try:
            probe.connect(SOCKET)
        except OSError:
            return False
    return True


if __name__ == "__main__":
    main(sys.argv[1])
