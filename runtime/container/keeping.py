# ruff: noqa: PTH104, PTH106, PTH108, PTH123
# Paths are strings here: the keeper is lean.
"""What the keeper does for one process from the request to its end: a container's, or a command's run in one. Lean.

An end is written down before anybody is told of it; before that the control group goes, so that a container shown
as ended can be started again. Streams are `kept`'s; the process that does this for all is `keeper`.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, Protocol

from runtime.container import events
from runtime.container.kept import Kept, Session
from runtime.container.logs import LogWriter, now
from runtime.container.loop import Loop
from runtime.container.restarts import NO, Restarts, is_due, next_delay_s
from runtime.container.spawning import Outcome, Spawned

GROUP_PATIENCE_S: Final = 5.0
_PAUSE_S: Final = 0.0005


class House(Protocol):
    """What a process needs of the keeper."""

    loop: Loop
    restarts: Restarts

    def clone(self, plan: bytes, descriptors: list[int]) -> Spawned:
        """Make the child of an encoded plan. Raises OSError."""

    def keep(self, process: Process) -> None:
        """Do not end before this has."""

    def release(self, process: Process) -> None:
        """It is over."""

    def enter(self, container: Container) -> None:
        """A container begins."""

    def leave(self, container: Container) -> None:
        """A container's process has ended, and everybody may know."""

    def run_of(self, pid: int) -> dict[str, Any]:
        """What tells process `pid` from every other, for `run.json`."""

    def bury(self, descriptor: int) -> None:
        """Let go of a root file system, without waiting for the kernel."""

    def help(self, argv: list[str], environment: Mapping[str, str], done: Callable[[], None]) -> None:
        """Run a program of ours that sees to what is not the keeper's to do; `done` is called at its end."""


class Process:
    """A process from its request to its end: what an exec is, and a container too."""

    def __init__(self, keeper: House, session: Session, request: Mapping[str, Any]) -> None:
        self.keeper = keeper
        self.request = request
        self.waiting: list[Session] = []
        self.followers: list[Session] = []
        """Who is to be told when the last output is in the log, too."""
        self._starter: Session | None = session
        self._spawned: Spawned | None = None
        self._code = 0
        self._oom = False
        self.kept = Kept(keeper.loop, (), -1, None)

    def begin(self, descriptors: list[int]) -> None:
        """Make its streams and clone it."""
        request = self.request
        theirs: list[int] = []
        self.keeper.keep(self)
        try:
            theirs, ours, sink = self._streams()
            self.kept = Kept(self.keeper.loop, tuple(ours), sink, self._log())
            self.kept.input_once = bool(request["input_once"])
            spawned = self._spawned = self.keeper.clone(request["plan"], theirs + descriptors)
        except OSError as error:
            self._fail((-1, error.errno or 0, str(error)))
            return
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        self.kept.pid = spawned.pid
        self.keeper.loop.watch(spawned.reports.fileno(), lambda _: self._report())
        if self._starter is not None:
            self._starter.gone = _both(self._starter.gone, self._abandoned)

    def _streams(self) -> tuple[list[int], list[tuple[int, int]], int]:
        """The process's ends of its three streams, ours of its output, and ours of its input (or -1)."""
        if self.request["terminal"]:
            return [], [], -1
        sink = -1
        if self.request["input"]:
            source, sink = os.pipe()
        else:
            source = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        output, output_end = os.pipe()
        errors, errors_end = os.pipe()
        return [source, output_end, errors_end], [(output, 1), (errors, 2)], sink

    def _log(self) -> LogWriter | None:
        return None

    def _abandoned(self) -> None:
        """Whoever began this is gone before it ran: nobody will say `go`."""
        if self._spawned is not None and not self._spawned.done:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._spawned.pidfd, signal.SIGKILL)
        self._starter = None

    def _report(self) -> None:
        spawned = self._spawned
        assert spawned is not None
        reports = spawned.reports.fileno()
        if not spawned.advance():
            return
        said = spawned.take()
        if said.waits:
            self._wait_for_word(spawned)
            return
        self.keeper.loop.forget(reports)
        if said.failure is not None:
            os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
            os.close(spawned.pidfd)
            self._fail(said.failure)
        else:
            self._runs(spawned, said)

    def _wait_for_word(self, spawned: Spawned) -> None:
        if self._starter is None:
            self._abandoned()
            return
        self._starter.tell("waits", spawned.pid)
        self._starter.heard = self._go_on

    def _go_on(self) -> None:
        if self._spawned is not None and not self._spawned.done:
            with suppress(OSError):
                self._spawned.go_on()

    def _runs(self, spawned: Spawned, said: Outcome) -> None:
        kept = self.kept
        kept.pid, kept.pidfd, kept.root = spawned.pid, spawned.pidfd, said.root
        if said.console >= 0:
            kept.adopt_console(said.console)
            _resize(said.console, self.request["size"])
        self.note_start()
        starter = self._starter
        if starter is not None:
            starter.heard = lambda: None
            kept.attach(starter, output=bool(self.request["output"]), writes=bool(self.request["writes"]))
            self.tell_running(starter, "running")
        kept.finished = self._finish
        kept.proceed()
        self.keeper.loop.watch(kept.pidfd, lambda _: self._ended())

    def tell_running(self, session: Session, word: str) -> None:
        """To who is attached: the process by its pidfd, and its terminal, if it has one."""
        console = (self.kept.console,) if self.kept.console >= 0 else ()
        session.tell(word, self.kept.pid, bool(console), descriptors=(self.kept.pidfd, *console))

    def _ended(self) -> None:
        """The main process is dead: learn how, before it is reaped."""
        self.keeper.loop.forget(self.kept.pidfd)
        ended = os.waitid(os.P_PIDFD, self.kept.pidfd, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # the call waits
        self._code = ended.si_status if ended.si_code == os.CLD_EXITED else 128 + ended.si_status
        self._clear_away()

    def _clear_away(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """Everything of it is gone: it may be reaped, and its end told."""
        os.waitid(os.P_PIDFD, self.kept.pidfd, os.WEXITED)
        os.close(self.kept.pidfd)
        self.kept.pidfd = -1
        self.keeper.bury(self.kept.root)
        self.kept.root = -1
        for session in self.waiting:
            self.end_of(session)
        self.kept.end()

    def _finish(self) -> None:
        """Everything it printed has been passed on."""
        sessions = list(self.kept.sessions)
        self._over()
        for session in (*sessions, *self.followers):
            self.end_of(session)

    def end_of(self, session: Session) -> None:
        """Tell a session how it ended."""
        session.tell("ended", self._code, self._oom)

    def _fail(self, failure: tuple[int, int, str]) -> None:
        """It never ran."""
        self.note_failure(failure)
        for session in (*self.waiting, *self.followers, *([self._starter] if self._starter is not None else ())):
            session.tell("failed", *failure)
        self._over()

    def _over(self) -> None:
        self.kept.close()
        self.keeper.release(self)

    def note_start(self) -> None:
        """Write down that it runs."""

    def note_failure(self, failure: tuple[int, int, str]) -> None:
        """Write down that it does not."""


class Container(Process):
    """A container: what becomes of it is written down, and its control group removed at its end."""

    def __init__(self, keeper: House, session: Session, request: Mapping[str, Any], delay_s: float = 0.0) -> None:
        super().__init__(keeper, session, request)
        self.id = str(request["id"])
        self.policy: tuple[str, int] = request["restart"]
        self._delay_s = delay_s
        self._began_s = 0.0
        self._run: dict[str, Any] = dict(request["run"])
        self._patience = 0.0
        keeper.enter(self)

    def _log(self) -> LogWriter | None:
        max_bytes, files = self.request["log"]
        return LogWriter(f"{self.request['directory']}/logs", max_bytes, files)

    def note_start(self) -> None:
        """In `run.json`, with what tells the process from any other."""
        self._began_s = time.monotonic()
        self._run |= {**self.keeper.run_of(self.kept.pid), "started_at": now(), "keeper": os.getpid()}
        self._write()
        self._tell("start")

    def note_failure(self, failure: tuple[int, int, str]) -> None:
        """In `run.json`: the end, and why."""
        self._remove_groups()
        code = failure_code(failure, int(self.request["steps"]))
        self._run |= {"exit_code": code, "error": failure[2], "finished_at": now()}
        self._write()
        self._tell("die", exitCode=str(code))
        self._strike()
        self.keeper.leave(self)

    def _clear_away(self) -> None:
        """Remove the control group, and try again while a last task is leaving it: v1 announces that nowhere."""
        if not self._patience:
            self._patience = time.monotonic() + GROUP_PATIENCE_S
            self._oom = _oom_kills(self.request["oom_file"]) > 0
        if not self._remove_groups() and time.monotonic() < self._patience:
            self.keeper.loop.after(_PAUSE_S, self._clear_away)
            return
        self._run |= {"exit_code": self._code, "oom_killed": self._oom, "finished_at": now()}
        if is_due(self.policy, self._code, self._run["restarts"]):
            self._run["restarter"] = self.keeper.run_of(os.getpid())["start"]
            self.keeper.restarts.enter(self, next_delay_s(self._delay_s, time.monotonic() - self._began_s))
        self._write(durable=bool(self.request["durable"]))
        if self._oom:
            self._tell("oom")
        self._tell("die", exitCode=str(self._code))
        self._strike()
        self.keeper.leave(self)
        self._settle()

    def _remove_groups(self) -> bool:
        """Whether every directory of the control group is gone now."""
        gone = True
        for directory in self.request["groups"]:
            try:
                os.rmdir(directory)
            except FileNotFoundError:
                continue
            except OSError:
                gone = False
                _kill_members(directory)
        return gone

    def _strike(self) -> None:
        """Strike out the ledger's page, unless there is more to give back than the keeper may."""
        if not self.request["after"]:
            with suppress(FileNotFoundError):
                os.unlink(self.request["page"])

    @property
    def finished_at(self) -> str:
        """When it ended, as written down."""
        return str(self._run.get("finished_at", ""))

    def start_again(self, done: Callable[[], None]) -> None:
        """By a program of ours, as a start takes more than a keeper has."""
        self.keeper.help(list(self.request["restarter"]), dict(self.request["environment"]), done)

    def change(self, changes: Mapping[str, Any]) -> None:
        """Go by this from now on, instead of what the start was asked with."""
        self.request = {**self.request, **changes}
        self.policy = self.request["restart"]

    def stay_ended(self, why: str = "") -> None:
        """It is not started again: `stop` has said so, or it failed for the reason `why`."""
        self.policy = NO, 0
        if self._run.get("restarter"):
            self._run |= {"restarter": 0, "error": why}
            self._write()
            if why:  # else whoever has said so sees to the rest
                self._help()

    def _over(self) -> None:
        super()._over()
        if self.keeper.restarts.begin(self, self.followers):
            self.followers = []  # they go on with its next life
        elif self.request["after"]:
            self._give_back()

    def _give_back(self) -> None:
        """Have the rest given back by whoever began it, if that still lives, or by a program of ours."""
        owner = self._starter
        if owner is not None and owner.open and self.request["output"]:
            owner.gone = _both(owner.gone, self._help)  # it sees to the rest, if it lives to do it
        else:
            self._help()

    def _help(self) -> None:
        """Have what is left done by a program of ours."""
        if self.request["after"] and os.path.lexists(self.request["page"]):
            self.keeper.help(list(self.request["after"]), dict(self.request["environment"]), lambda: None)

    def _tell(self, action: str, **attributes: str) -> None:
        events.append(str(self.request["events"]), action, self.id, {**self.request["attributes"], **attributes})

    def _write(self, durable: bool = False) -> None:
        """Replace `run.json`; what is `durable` outlives the host's power. A full disk must not end the keeper."""
        path = f"{self.request['directory']}/run.json"
        partial = f"{self.request['directory']}/.run-{os.getpid()}"
        with suppress(OSError):
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, json.dumps(self._run).encode())
                if durable:
                    os.fdatasync(descriptor)
            finally:
                os.close(descriptor)
            os.rename(partial, path)


def failure_code(failure: tuple[int, int, str], steps: int) -> int:
    """The exit code of what could not be started, as Docker's: 127 not found, 126 not executable, else 125."""
    index, number, _ = failure
    if index != steps - 1:
        return 125
    return 127 if number in (2, 20) else 126  # ENOENT, ENOTDIR


def _oom_kills(path: str) -> int:
    """How often memory ran out in a group: the same words in v1's memory.oom_control and v2's memory.events."""
    rows = (line.split() for line in text_of(path).splitlines()) if path else ()
    return next((int(row[1]) for row in rows if len(row) == 2 and row[0] == "oom_kill"), 0)


def _kill_members(directory: str) -> None:
    """Kill what lives on in a group whose main process has ended; thawed, as a frozen one cannot die on v1."""
    for word in text_of(f"{directory}/cgroup.procs").split():
        with suppress(ProcessLookupError):
            os.kill(int(word), signal.SIGKILL)
    with suppress(OSError):
        descriptor = os.open(f"{directory}/freezer.state", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, b"THAWED")
        finally:
            os.close(descriptor)


def _resize(console: int, size: tuple[int, int] | None) -> None:
    if size is not None:
        fcntl.ioctl(console, termios.TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))


def _both(first: Callable[[], None], second: Callable[[], None]) -> Callable[[], None]:
    def call() -> None:
        first()
        second()

    return call


def text_of(path: str) -> str:
    """What a file says; nothing when it cannot be read."""
    try:
        with open(path, errors="replace") as file:
            return file.read()
    except OSError:
        return ""
