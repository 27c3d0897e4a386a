"""The keeper of guests: one process per state root that holds libvirt and every guest of `tare vm`.

Started on demand. A thread serves each command, so that a slow boot keeps nobody waiting. Should it be killed, its
guests are leftovers: `tare clean` removes them. What is here serves requests; the guests themselves are `kept`'s.
The protocol's framing is the containers' keeper's (`runtime.protocol`); each connection makes one request.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from runtime.driver import Host, find_driver
from runtime.errors import TareError
from runtime.frames import Streams
from runtime.protocol import SOCKET, VERSION
from runtime.vm import uri
from runtime.vm.attached import Attached, environment
from runtime.vm.keeperplace import directory, held, listens
from runtime.vm.kept import Guests, Kept
from runtime.vm.records import PAUSED
from runtime.vm.session import Session

LINGER_S = 1.0
_PATIENCE_S = 10.0
"""How long it waits for whoever had it started."""
READY_TIMEOUT_S = 600.0


class Keeper:
    """All guests of `host`. `driver_of` finds a driver of virtual machines by name."""

    def __init__(self, host: Host, listener: socket.socket, driver_of: Callable[[str], Any] = find_driver) -> None:
        self._host = host
        self._listener = listener
        self._guests = Guests(host, driver_of)
        self._lock = threading.Lock()
        self._busy = 0
        self._until = time.monotonic() + _PATIENCE_S

    def serve(self) -> None:
        """Until there is no guest and nobody asks for one."""
        self._listener.settimeout(0.2)
        while True:
            connection = self._accept()
            if connection is not None:
                self._begin(connection)
            elif self._idle():
                with held(directory(self._host)):
                    connection = self._accept()  # who came before the lock is served still
                    if connection is None:
                        (directory(self._host) / SOCKET).unlink(missing_ok=True)
                        self._listener.close()
                        break
                self._begin(connection)
        self._guests.close_drivers()

    def _accept(self) -> socket.socket | None:
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return None
        connection.setblocking(True)
        return connection

    def _idle(self) -> bool:
        """Asked between two connections: when nobody is served now, nobody can have another guest launched."""
        with self._lock:
            if self._busy or time.monotonic() < self._until:
                return False
        emptied_s = self._guests.emptied_s()
        return emptied_s is not None and time.monotonic() >= emptied_s + LINGER_S

    def _begin(self, connection: socket.socket) -> None:
        with self._lock:
            self._busy += 1
        threading.Thread(target=self._attend, args=(Session(connection),), name="tare-command", daemon=True).start()

    def _attend(self, session: Session) -> None:
        try:
            session.tell("hello", VERSION, os.getpid())
            words = session.request()
            if words:
                session.listen()
                self._answer(session, words)
        except TareError as error:
            session.tell("failed", error.what, error.why, error.do, error.exit_code)
        except Exception as error:  # noqa: BLE001 - the other guests must not die of it
            traceback.print_exc()
            sys.stderr.flush()
            session.tell("failed", "keeper of virtual machines", repr(error), "its keeper.log says more", 1)
        finally:
            session.close()
            with self._lock:
                self._busy -= 1
                self._until = time.monotonic() + LINGER_S

    def _answer(self, session: Session, words: tuple[Any, ...]) -> None:
        match words:
            case ("run", dict(wanted)):
                self._run(session, wanted)
            case ("exec", str(guest_id), tuple(argv), tuple(env), bool(interactive), size):
                attached = Attached(session, interactive=interactive, size=size)
                self._exec(session, self._guests.find(guest_id), argv, env, attached)
            case ("signal", str(guest_id), int(number)):
                main = self._guests.find(guest_id).main
                if main is not None:
                    main.signal(number)
                session.tell("done", main is not None)
            case ("console", str(guest_id)):
                self._console(session, self._guests.find(guest_id))
            case ("stop", str(guest_id), timeout_s):
                self._guests.close(self._guests.find(guest_id), timeout_s)
                session.tell("done")
            case ("pause", str(guest_id)):
                self._guests.pause(self._guests.find(guest_id), True)
                session.tell("done")
            case ("unpause", str(guest_id)):
                self._guests.pause(self._guests.find(guest_id), False)
                session.tell("done")
            case ("look", str(guest_id)):
                session.tell("seen", self._guests.find(guest_id).look())
            case ("wait", str(guest_id)):
                self._wait(session, self._guests.find(guest_id))
            case _:
                raise TareError("keeper of virtual machines", f"no such request: {words[:1]!r}")

    def _run(self, session: Session, wanted: dict[str, Any]) -> None:
        if wanted["uri"] != (ours := uri.chosen()):
            why = f"the virtual machines that run are on {ours}"
            raise TareError(f"libvirt {wanted['uri']}", why, "stop them first, or name the same")
        attached = Attached(session, interactive=wanted["interactive"] and bool(wanted["argv"]), size=wanted["size"])
        kept = self._guests.launch(wanted)
        detach, argv = wanted["detach"], tuple(wanted["argv"])
        if not detach and argv:
            session.gone = lambda: self._guests.close(kept, None)
            if session.over.is_set():
                self._guests.close(kept, None)
        session.tell("running", kept.record.id)
        if not argv:
            if not detach:
                self._console(session, kept)
        elif detach:
            streams = Streams(input=wanted["interactive"], terminal=wanted["size"])
            threading.Thread(target=self._command, args=(kept, argv, streams), name="tare-main", daemon=True).start()
        else:
            code = self._command(kept, argv, attached, session)
            session.tell("ended", code, False)

    def _command(
        self, kept: Kept, argv: tuple[str, ...], streams: Streams | Attached, session: Session | None = None
    ) -> int:
        """Run what was asked for in the guest, then end the guest: the command's exit code."""
        code, why = 125, ""

        def output(stream: int, data: bytes) -> None:
            kept.note(stream, data)
            if session is not None:
                session.show(stream, data)

        try:
            kept.guest.wait_ready(READY_TIMEOUT_S)
            env = dict(kept.guest.plan.env)
            if isinstance(streams, Attached):
                running = streams.running(kept.guest.channel, argv, env, output)
            else:
                env = environment(env, terminal=streams.terminal is not None)
                running = kept.guest.channel.running(argv, output, env=env, streams=streams)
            with running as kept.main:
                code = kept.main.wait()
        except TareError as error:
            why = str(error)
            if session is not None and not session.over.is_set():
                raise
        finally:
            kept.main = None
            self._guests.close(kept, None, code=code, error=why)
        return code

    def _exec(
        self,
        session: Session,
        kept: Kept,
        argv: tuple[str, ...],
        env: tuple[tuple[str, str], ...],
        attached: Attached,
    ) -> None:
        if kept.record.status == PAUSED:
            name = kept.record.name
            raise TareError(f"virtual machine {name}", "it is paused", f"tare vm unpause {name}")
        kept.guest.wait_ready(READY_TIMEOUT_S)
        together = dict(kept.guest.plan.env) | dict(env)
        with attached.running(kept.guest.channel, argv, together) as command:
            session.gone = command.kill
            session.tell("running", kept.record.id)
            if session.over.is_set():
                command.kill()
            code = command.wait()
        session.tell("ended", code, False)

    def _console(self, session: Session, kept: Kept) -> None:
        over = threading.Event()
        session.gone = over.set

        def listener(data: bytes) -> None:
            if data:
                session.show(1, data)
            elif kept.guest.serial.ended:
                over.set()

        serial = kept.guest.serial
        session.typed = serial.send
        session.tell("attached", kept.record.id)
        serial.listen(listener)
        if session.over.is_set():
            over.set()
        over.wait()
        serial.unlisten(listener)
        session.tell("ended", 0, False)

    def _wait(self, session: Session, kept: Kept) -> None:
        while not kept.ended.wait(0.2):
            if session.over.is_set():
                return
        session.tell("code", kept.record.exit_code)


def main(root: str, run: str) -> None:
    """Become the keeper of this state, unless there is one. The end of standard output says that one listens."""
    host = Host(Path(root), Path(run))
    where = directory(host)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    with held(where):
        if listens(where):
            return
        os.chdir(where)  # a socket's address holds 107 bytes only
        Path(SOCKET).unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        listener.bind(SOCKET)
        listener.listen(128)
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.close(null)
    Keeper(host, listener).serve()
