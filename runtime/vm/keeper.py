"""The keeper of guests: one process per state root that holds libvirt and every guest of `tare vm`.

Started on demand. A thread serves each command, so that a slow boot keeps nobody waiting. What it keeps is written
down (`records`) before anybody is told. Should it be killed, its guests are leftovers: `tare clean` removes them.
The protocol's framing is the containers' keeper's (`runtime.protocol`); each connection makes one request.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.channel import Command, Streams
from runtime.driver import Host, find_driver
from runtime.errors import TareError
from runtime.images import cloud
from runtime.ledger import make_directory
from runtime.protocol import SOCKET, VERSION
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkMode, NetworkSpec, Ready
from runtime.vm import nocloud, uri
from runtime.vm.attached import Attached, environment
from runtime.vm.domain import MIB, Firmware, Tuning
from runtime.vm.guest import Guest
from runtime.vm.plan import Plan, on_image
from runtime.vm.records import CONSOLE, EXITED, OUTPUT, PAUSED, RUNNING, Record, Records, own_keeper
from runtime.vm.room import room_for
from runtime.vm.session import Session

DISK = ImageRef("disk")
"""Stands for a cloud image, which no store knows by name."""
DISK_MEMORY_BYTES = 1024 * MIB
_MACHINE = ImageRef.parse("tare/debian:bookworm")
_LOCK = "keeper.lock"
LINGER_S = 1.0
_PATIENCE_S = 10.0
"""How long it waits for whoever had it started."""
READY_TIMEOUT_S = 600.0
OUTPUT_KEPT_BYTES = 1 << 20


def directory(host: Host) -> Path:
    """Where its socket, lock and log lie."""
    return host.run / "guests"


class Kept:
    """A live guest, its record, and what its command has printed."""

    def __init__(self, guest: Guest, record: Record) -> None:
        self.guest = guest
        self.record = record
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.output = bytearray()
        self.main: Command | None = None
        """What it was started for, while that runs."""

    def note(self, _stream: int, data: bytes) -> None:
        """Keep the latest of a command's output."""
        self.output += data
        if len(self.output) > 2 * OUTPUT_KEPT_BYTES:
            del self.output[:-OUTPUT_KEPT_BYTES]


class Keeper:
    """All guests of `host`. `driver_of` finds a driver of virtual machines by name."""

    def __init__(self, host: Host, listener: socket.socket, driver_of: Callable[[str], Any] = find_driver) -> None:
        self._host = host
        self._listener = listener
        self._driver_of = driver_of
        self._records = Records(host)
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._drivers: dict[tuple[str, Tuning | None], Any] = {}
        self._drivers_lock = threading.Lock()
        self._kept: dict[str, Kept] = {}
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
        for driver in self._drivers.values():
            driver.close()

    def _accept(self) -> socket.socket | None:
        try:
            connection, _ = self._listener.accept()
        except TimeoutError:
            return None
        connection.setblocking(True)
        return connection

    def _idle(self) -> bool:
        with self._lock:
            return not (self._busy or self._kept) and time.monotonic() >= self._until

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
                self._exec(session, self._find(guest_id), argv, env, attached)
            case ("signal", str(guest_id), int(number)):
                main = self._find(guest_id).main
                if main is not None:
                    main.signal(number)
                session.tell("done", main is not None)
            case ("console", str(guest_id)):
                self._console(session, self._find(guest_id))
            case ("stop", str(guest_id), timeout_s):
                self._close(self._find(guest_id), timeout_s)
                session.tell("done")
            case ("pause", str(guest_id)):
                self._pause(self._find(guest_id), True)
                session.tell("done")
            case ("unpause", str(guest_id)):
                self._pause(self._find(guest_id), False)
                session.tell("done")
            case ("look", str(guest_id)):
                session.tell("seen", self._look(self._find(guest_id)))
            case ("wait", str(guest_id)):
                self._wait(session, self._find(guest_id))
            case _:
                raise TareError("keeper of virtual machines", f"no such request: {words[:1]!r}")

    def _find(self, guest_id: str) -> Kept:
        with self._lock:
            kept = self._kept.get(guest_id)
        if kept is None:
            raise TareError(f"virtual machine {guest_id}", "it does not run", "see: tare vm ls -a")
        return kept

    # --- a guest's life

    def _run(self, session: Session, wanted: dict[str, Any]) -> None:
        spec, tuning = spec_of(wanted), Tuning(**wanted["tuning"]) if wanted["tuning"] else None
        if wanted["uri"] != (ours := uri.chosen()):
            why = f"the virtual machines that run are on {ours}"
            raise TareError(f"libvirt {wanted['uri']}", why, "stop them first, or name the same")
        attached = Attached(session, interactive=wanted["interactive"] and bool(wanted["argv"]), size=wanted["size"])
        with self._named(wanted["name"]):
            kept = self._launch(spec, tuning, wanted)
        detach, argv = wanted["detach"], tuple(wanted["argv"])
        threading.Thread(target=self._watch, args=(kept,), name="tare-watch", daemon=True).start()
        if not detach and argv:
            session.gone = lambda: self._close(kept, None)
            if session.over.is_set():
                self._close(kept, None)
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

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Nobody else takes the name meanwhile. Raises TareError when somebody has it."""
        with self._lock:
            if name in self._names or any(record.name == name for record in self._records.all()):
                raise TareError(f"name {name}", "taken by a virtual machine", "choose another, or remove that one")
            self._names.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._names.discard(name)

    def _launch(self, spec: InstanceSpec, tuning: Tuning | None, wanted: dict[str, Any]) -> Kept:
        name = wanted["driver"]
        with self._drivers_lock:  # preparing is quick once it was done; a launch, which is slow, holds nobody up
            if (name, tuning) not in self._drivers:
                self._drivers[name, tuning] = self._driver_of(name)(self._host, tuning)
            driver = self._drivers[name, tuning]
            # A cloud image's machine is like one of ours, on another disk.
            prepared: Any = driver.prepare(spec if wanted["disk"] is None else replace(spec, image=_MACHINE))
            chosen = prepared.accelerator
            if wanted["disk"] is not None:
                prepared = replace(prepared, plan=self._on_disk(prepared.plan, spec, wanted["disk"]))
        created_s = time.time()
        guest: Any = driver.launch(prepared)
        record = Record(
            id=guest.id,
            name=wanted["name"],
            image=wanted["image"],
            driver=name,
            argv=tuple(wanted["argv"]),
            accelerator=chosen.name,
            accelerator_reason=chosen.reason,
            created_s=created_s,
            address=guest.address or "",
            ports=tuple(("", host, inside, "tcp") for host, inside in spec.network.ports),
            memory_bytes=prepared.plan.memory_bytes,
            vcpus=prepared.plan.vcpus,
            auto_remove=wanted["rm"],
            keeper=own_keeper(),
        )
        kept = Kept(guest, record)
        try:
            with room_for(self._host, "record of a virtual machine"):
                self._records.write(record)
        except BaseException:
            guest.close()
            raise
        with self._lock:
            self._kept[record.id] = kept
        return kept

    def _on_disk(self, plan: Plan, spec: InstanceSpec, disk: dict[str, Any]) -> Plan:
        """`plan` for a user's cloud image; without a limit with more memory, as such a system starts more."""
        assert isinstance(plan.boot, Firmware)  # the only driver for it boots so
        image = cloud.open(Path(disk["path"]))
        cloud.require_uefi(image)
        seed = nocloud.Seed(nocloud.agent_program(self._host), disk["user_data"], tuple(disk["ssh_keys"]))
        memory_bytes = DISK_MEMORY_BYTES if spec.limits.memory_bytes is None else plan.memory_bytes
        ours = replace(plan, spec=spec, env=spec.env, memory_bytes=memory_bytes)
        return on_image(ours, image, seed, plan.boot)

    def _watch(self, kept: Kept) -> None:
        """See the guest end by itself, or stand still for ever: a full disk of the host, a crash."""
        while kept.guest.alive() and kept.guest.trouble is None and not kept.ended.wait(0.2):
            pass
        self._close(kept, 0.0, error=kept.guest.trouble or "")

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
            self._close(kept, None, code=code, error=why)
        return code

    def _close(self, kept: Kept, timeout_s: float | None, *, code: int | None = None, error: str = "") -> None:
        """End the guest, within `timeout_s` (its driver's), and write down that it has; once."""
        with kept.lock:
            if kept.ended.is_set():
                return
            guest, record = kept.guest, kept.record
            if timeout_s is not None:
                guest.stop_timeout_s = timeout_s
            try:
                guest.close()
            except TareError as failure:
                error = error or str(failure)
            timeline, console = guest.timeline, guest.console()
            kept.record = replace(
                record,
                status=EXITED,
                exit_code=code if code is not None else (0 if not record.argv else 137),
                error=error,
                ended_s=time.time(),
                address="",
                ports=(),
                details={"timeline": [list(event) for event in timeline]},
            )
            with suppress(OSError):  # a full disk keeps nobody from ending
                self._records.write(kept.record)
                where = self._records.directory(kept.record)
                (where / CONSOLE).write_text(console)
                (where / OUTPUT).write_bytes(kept.output)
            if record.auto_remove:
                self._records.remove(record)
            with self._lock:
                self._kept.pop(record.id, None)
                self._until = time.monotonic() + LINGER_S
            kept.ended.set()

    def _pause(self, kept: Kept, pause: bool) -> None:
        with kept.lock:
            if kept.ended.is_set() or (kept.record.status == PAUSED) is pause:
                state = "it does not run" if kept.ended.is_set() else f"it is {kept.record.status}"
                raise TareError(f"virtual machine {kept.record.name}", state, "see: tare vm ls -a")
            (kept.guest.pause if pause else kept.guest.resume)()
            kept.record = replace(kept.record, status=PAUSED if pause else RUNNING)
            self._records.write(kept.record)

    # --- in and around one

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

    def _look(self, kept: Kept) -> dict[str, Any]:
        """What only a look at the live guest tells."""
        guest, usage = kept.guest, kept.guest.usage()
        return {
            "xml": guest.xml(),
            "pids": list(guest.host_pids()),
            "timeline": [list(event) for event in guest.timeline],
            "usage": {name: value for name, value in vars(usage).items() if value is not None},
            "limits": [
                {"name": one.name, "asked": one.asked, "read": one.read, "source": one.source, "holds": one.holds}
                for one in guest.limit_readings()
            ],
            "disk": {
                "shared": [str(path) for path in guest.disk_paths().shared],
                "exclusive": [str(path) for path in guest.disk_paths().exclusive],
            },
            "console": guest.console(),
            "output": bytes(kept.output),
        }


def spec_of(wanted: dict[str, Any]) -> InstanceSpec:
    """The instance that a request asks for. Raises UsageError."""
    return InstanceSpec(
        image=ImageRef.parse(wanted["image"]) if wanted["disk"] is None else DISK,
        env=tuple(tuple(pair) for pair in wanted["env"]),
        limits=Limits(**wanted["limits"]),
        network=NetworkSpec(mode=NetworkMode(wanted["network"]), ports=tuple(tuple(p) for p in wanted["ports"])),
        ready=Ready.SERVICE,
        hostname=wanted["hostname"],
    )


@contextmanager
def held(where: Path) -> Iterator[None]:
    """Hold the lock under which keepers begin and end; `where` is there then, and stays."""
    path = where / _LOCK
    while True:
        make_directory(where)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _is_at(descriptor, path):
                yield
                return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether `path` is still what was opened, and not gone or another's since (`retire`)."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def retire(host: Host) -> list[str]:
    """Remove what keepers leave for the next one, lock and log, unless there is one; returns what went."""
    where = directory(host)
    if not where.exists():
        return []
    with held(where):
        if _listens(where):
            return []
        for path in where.iterdir():
            if path.name != _LOCK:
                path.unlink()
        (where / _LOCK).unlink()  # last: from here on somebody may begin anew
        with suppress(OSError):
            where.rmdir()
            return [str(where)]
    return []


def _listens(where: Path) -> bool:
    """Whether there is a keeper. A socket's address holds 107 bytes only, so it is named through a descriptor."""
    descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
            return probe.connect_ex(f"/proc/self/fd/{descriptor}/{SOCKET}") == 0
    finally:
        os.close(descriptor)


def main(root: str, run: str) -> None:
    """Become the keeper of this state, unless there is one. The end of standard output says that one listens."""
    host = Host(Path(root), Path(run))
    where = directory(host)
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    with held(where):
        if _listens(where):
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
