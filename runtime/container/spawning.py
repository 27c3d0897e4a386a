"""Cloning a child that carries out a plan, and hearing from it: for the launcher and every other lean process.

The caller has one thread and has called `get_ready` once. It becomes the child's parent and must wait for it.
"""

from __future__ import annotations

import errno
import marshal
import os
from _signal import (  # type: ignore[import-not-found]
    SIG_DFL,
    SIG_IGN,
    SIG_SETMASK,
    SIGCHLD,
    SIGINT,
    SIGKILL,
    getsignal,
    pthread_sigmask,
    signal,
    valid_signals,
)
from _socket import AF_UNIX, MSG_NOSIGNAL, SOCK_SEQPACKET, socketpair

from runtime.container import child, idmap
from runtime.container.outside import Outside
from runtime.container.program import Entry, program
from runtime.container.stepping import JOINED, Step
from runtime.linux import syscalls
from runtime.linux.netlink import Netlink
from runtime.linux.passing import receive, send
from runtime.network.links import Pair
from runtime.record import ordered_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterable, Sequence
    from typing import Any, Final

GO: Final = b"go"
_FILES: Final = {
    syscalls.CLONE_NEWNET: "net",
    syscalls.CLONE_NEWUTS: "uts",
    syscalls.CLONE_NEWIPC: "ipc",
    syscalls.CLONE_NEWPID: "pid_for_children",
    syscalls.CLONE_NEWCGROUP: "cgroup",
    syscalls.CLONE_NEWTIME: "time",
}


@ordered_record
class Flat:
    """A plan as the child's parent needs it: nothing left to encode or to look up.

    `entries` are the steps as `program` makes them, where the caller has them already. `namespaces` are clone3's
    flags, `cgroup` the v2 directory to be born in, `streams` pairs of a position in the descriptors given to `spawn`
    and the program's number for it. `enter` are namespaces to be born in, each as its file and flag. `outside` is the
    row of an `Outside`: what the child waits for its parent to do. `user` is the file of a user namespace to be born
    in, the others being made in it. `target` is a process whose namespaces a step joins. `links` are requests of
    `runtime.network.links.Pair`: a link that is born in the child's network namespace while the child goes on, and
    that a step waits for.
    """

    steps: tuple[Step, ...]
    entries: tuple[Entry, ...] = ()
    namespaces: int = 0
    cgroup: str | None = None
    streams: tuple[tuple[int, int], ...] = ()
    enter: tuple[tuple[str, int], ...] = ()
    outside: tuple[Any, ...] | None = None
    target: int = 0
    links: tuple[bytes, ...] = ()
    user: str = ""


@ordered_record
class Outcome:
    """What a child has come to: `waits`, or its program runs, or `failure` (index of the step, errno, text).

    `waits` names what for: `hooks` (then `Spawned.go_on` lets it continue) or `start` (then the FIFO of
    `Place.hold` does). `root` and `console` are descriptors that now belong to the caller, or -1.
    """

    failure: tuple[int, int, str] | None = None
    root: int = -1
    console: int = -1
    waits: str = ""


class Spawned:
    """A cloned child: `pid` and `pidfd` are the parent's to wait for and to close.

    One that joins the namespaces of a process ends when it has cloned another child of its parent's there: from then
    on `pid` and `pidfd` are that one's.
    """

    __slots__ = ("_before", "_console", "_failure", "_root", "_waits", "done", "pid", "pidfd", "reports")

    def __init__(self, pid: int, pidfd: int, reports: socket) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.reports = reports
        self.done = False
        self._failure: tuple[int, int, str] | None = None
        self._root = self._console = self._before = -1
        self._waits = ""

    def advance(self) -> bool:
        """Take one message (waiting for it): whether there is an outcome now. For a loop that polls `reports`."""
        message, descriptors = receive(self.reports, 65536, 1)
        match message:
            case b"":
                self.done = True
            case b"root":
                self._root = descriptors[0]
            case b"console":
                self._console = descriptors[0]
            case b"hooks" | b"start":
                self._waits = message.decode()
            case _ if message.startswith(JOINED):
                self._before, self.pid, self.pidfd = self.pidfd, int(message[len(JOINED) :]), descriptors[0]
            case _:
                self._failure = marshal.loads(message)  # noqa: S302 - our own child wrote it
        return self.done or bool(self._waits)

    def take(self) -> Outcome:
        """The outcome `advance` has announced. Closes `reports` when it was the last."""
        if self.done:
            self.reports.close()
            if self._before >= 0:  # it has closed its end of the socket, so it ends now
                os.waitid(os.P_PIDFD, self._before, os.WEXITED)
                self._close(self._before)
                self._before = -1
        if self._failure is not None:
            self._close(self._root, self._console)
            self._root = self._console = -1
        said = Outcome(self._failure, self._root, self._console, self._waits)
        self._root = self._console = -1
        self._waits = ""
        return said

    def go_on(self) -> None:
        """Let a child that waits for `hooks` continue; a further `outcome` tells how."""
        self.reports.send(GO, MSG_NOSIGNAL)

    @staticmethod
    def _close(*descriptors: int) -> None:
        for descriptor in descriptors:
            if descriptor >= 0:
                os.close(descriptor)


def get_ready(given_up: Iterable[int] = ()) -> None:
    """Prepare the calling process for cloning, once: what it ignores or masks, every child would.

    Modes are made as a plan says them. Capabilities `given_up` go from the bounding set: no child has to drop them
    again. The caller keeps its own; plans must know (`HostFacts`).
    """
    for number in given_up:
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    default_signals()
    os.umask(0)


def default_signals() -> None:
    """Ignore and block no signal: Python ignores some, a shell two of what it has in the background, nohup one."""
    for number in valid_signals():
        if number == SIGINT or getsignal(number) == SIG_IGN:
            signal(number, SIG_DFL)
    pthread_sigmask(SIG_SETMASK, ())


def spawn(flat: Flat, descriptors: Sequence[int] = ()) -> Spawned:
    """Clone a child that carries out `flat`. Raises OSError; `descriptors` stay the caller's."""
    held: list[int] = []
    reports, told = socketpair(AF_UNIX, SOCK_SEQPACKET)
    try:
        into = None
        if flat.cgroup is not None:
            held.append(into := os.open(flat.cgroup, os.O_PATH | os.O_DIRECTORY))
        target = -1
        if flat.target:
            held.append(target := os.pidfd_open(flat.target))
        entries = flat.entries or program(flat.steps)
        with _Entered(flat.enter):
            if flat.user:
                pid, pidfd = _clone_below(flat, into)
            else:
                pid, pidfd = syscalls.clone3(flat.namespaces, SIGCHLD, into)
            if pid == 0:
                streams = [(descriptors[at], number) for at, number in flat.streams]
                child.run(flat.steps, entries, streams, told, target, flat.outside is not None)
        spawned = Spawned(pid, pidfd, reports)
        if flat.outside is not None or flat.links:
            _settle(spawned, flat)
    except OSError:
        reports.close()
        raise
    finally:
        told.close()
        for descriptor in held:
            os.close(descriptor)
    return spawned


def _clone_below(flat: Flat, into: int | None) -> tuple[int, int]:
    """As clone3, in the user namespace `flat.user`: by a child that enters it and clones another child of ours.

    There is no way back out of a user namespace, so the caller cannot go there itself.
    """
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    try:
        user = os.open(flat.user, os.O_RDONLY | os.O_CLOEXEC)
        pid, pidfd = syscalls.clone3(0, SIGCHLD)
        if pid == 0:
            words: tuple[int, str] = (0, "")
            try:
                syscalls.setns(user, syscalls.CLONE_NEWUSER)
                # CLONE_PARENT: it ends as its parent's other children do, and with their signal.
                pid, pidfd = syscalls.clone3(flat.namespaces | syscalls.CLONE_PARENT, 0, into)
                if pid == 0:
                    return 0, -1
                send(theirs, b"%d" % pid, [pidfd])
                os._exit(0)
            except OSError as error:
                words = (error.errno or 0, str(error))
            theirs.send(marshal.dumps(words))
            os._exit(1)
        os.close(user)
        theirs.close()
        try:
            message, descriptors = receive(ours, 4096, 1)
        finally:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
    finally:
        ours.close()
        theirs.close()
    if descriptors:
        return int(message), descriptors[0]
    raise OSError(*(marshal.loads(message) if message else (errno.EIO, "died")))  # noqa: S302 - our own child wrote it


class _Entered:
    """Being in other namespaces for a moment, so that a child is born there.

    Never a mount or user namespace, from which there is no way back. A caller that cannot return ends at once:
    it would do everything that follows in the wrong place.
    """

    def __init__(self, namespaces: Sequence[tuple[str, int]]) -> None:
        self._namespaces = namespaces
        self._home: list[tuple[int, int]] = []

    def __enter__(self) -> None:
        try:
            for path, flag in self._namespaces:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    self._home.append((os.open(f"/proc/self/ns/{_FILES[flag]}", os.O_RDONLY | os.O_CLOEXEC), flag))
                    syscalls.setns(descriptor, flag)
                finally:
                    os.close(descriptor)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        for descriptor, flag in self._home:
            try:
                syscalls.setns(descriptor, flag)
            except OSError:
                os._exit(70)
            os.close(descriptor)


def _settle(spawned: Spawned, flat: Flat) -> None:
    """Do what only the parent may, while the child waits for it, and make its links. One that gets none is no more."""
    try:
        if flat.outside is not None:
            _prepare(spawned, Outside.from_row(flat.outside))
        if flat.links:
            before, after, *rest = flat.links
            with Netlink() as wire:
                wire.ask(Pair(before, after, tuple(rest)).messages(spawned.pid), "making a veth pair")
    except OSError:
        os.kill(spawned.pid, SIGKILL)
        os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
        os.close(spawned.pidfd)
        raise


def _prepare(spawned: Spawned, outside: Outside) -> None:
    if outside.uid_map:
        idmap.write_maps(spawned.pid, outside.uid_map, outside.gid_map)
    for number, soft, hard in outside.limits:
        syscalls.prlimit(spawned.pid, number, soft, hard)
    if outside.oom_score_adj is not None:
        descriptor = os.open(f"/proc/{spawned.pid}/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
        os.write(descriptor, b"%d" % outside.oom_score_adj)
        os.close(descriptor)
    trees = idmap.detached(outside, spawned.pid) if outside.trees or outside.overlay else []
    try:
        send(spawned.reports, GO, trees)
    finally:
        for descriptor in trees:
            os.close(descriptor)


def outcome(spawned: Spawned) -> Outcome:
    """Wait until the child executes its program, fails, or waits to be let on."""
    while not spawned.advance():
        pass
    return spawned.take()


def release(hold: str) -> None:
    """Let the child that waits at the FIFO `hold` (`Place.hold`) execute its program. Raises OSError when none does."""
    descriptor = os.open(hold, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"\0")
    finally:
        os.close(descriptor)
