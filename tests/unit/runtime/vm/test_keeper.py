"""The keeper of guests without libvirt: its guests are stand-ins, its socket, lock and records real."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtime.driver import Host
from runtime.errors import TareError
from runtime.instance import Timeline
from runtime.ledger import make_directory
from runtime.protocol import MESSAGE_BYTES, SOCKET, WORDS, decoded, encoded
from runtime.vm import keeper as module
from runtime.vm.keeper import Keeper
from runtime.vm.keeperplace import directory, held, retire
from runtime.vm.records import Record, Records
from runtime.vm.uri import EMBEDDED, VARIABLE

WANTED: dict[str, Any] = {
    "image": "tare/debian:bookworm",
    "disk": None,
    "argv": (),
    "name": "one",
    "driver": "microvm",
    "detach": True,
    "interactive": False,
    "size": None,
    "rm": False,
    "env": (),
    "limits": {},
    "tuning": {},
    "network": "none",
    "ports": (),
    "hostname": None,
    "uri": EMBEDDED,
}


class Command:
    """What runs inside: prints, and ends with a code or by its guest's end."""

    def __init__(self, guest: Guest, output: Callable[[int, bytes], None]) -> None:
        self._guest = guest
        self._output = output
        self.killed = threading.Event()

    def wait(self) -> int:
        self._output(1, b"out\n")
        if self._guest.trouble is not None:
            raise TareError("guest agent", f"connection lost: {self._guest.trouble}")
        return 7

    def kill(self) -> None:
        self.killed.set()

    def grant(self, size: int) -> None:
        """Nothing waits."""


class Guest:
    """As `runtime.vm.guest.Guest`, of nothing."""

    def __init__(self, number: int) -> None:
        self.id = f"tare-{number:012x}"
        self.timeline = Timeline()
        self.address = None
        self.ports = ()
        self.stop_timeout_s = 2.0
        self.trouble: str | None = None
        self.fate = ""
        self.plan = SimpleNamespace(env=(), memory_bytes=1, vcpus=1)
        self.channel = self
        self.closed = threading.Event()
        self.lives = True

    def alive(self) -> bool:
        return self.lives

    def wait_ready(self, timeout_s: float) -> None:
        assert timeout_s > 0

    @contextmanager
    def running(self, argv: Any, output: Callable[[int, bytes], None], env: Any, streams: Any) -> Iterator[Command]:
        yield Command(self, output)

    def mishap(self) -> str:
        return self.trouble or self.fate

    def console(self) -> str:
        return "its console"

    def close(self) -> None:
        self.lives = False
        self.closed.set()

    def pause(self) -> None:
        """Nothing to pause."""

    resume = pause


class Fake:
    """Finds, is and prepares the driver of such guests."""

    def __init__(self) -> None:
        self.guests: list[Guest] = []
        self.failure: TareError | None = None
        self.closed = False

    def __call__(self, *_: object) -> Any:
        return lambda *_: self

    def prepare(self, spec: Any) -> Any:
        if self.failure is not None:
            raise self.failure
        plan = SimpleNamespace(memory_bytes=1, vcpus=1)
        return SimpleNamespace(spec=spec, plan=plan, accelerator=SimpleNamespace(name="tcg", reason="so"))

    def launch(self, _: Any) -> Guest:
        time.sleep(0.02)  # long enough for others to ask for the same
        self.guests.append(Guest(len(self.guests)))
        return self.guests[-1]

    def close(self) -> None:
        self.closed = True


class Ground:
    """A keeper that serves in a thread."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.fake = Fake()
        where = directory(host)
        make_directory(where)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with at(where) as here:
            listener.bind(f"{here}/{SOCKET}")
        listener.listen(128)
        self.thread = threading.Thread(target=Keeper(host, listener, self.fake).serve)
        self.thread.start()

    def ask(self, *words: object) -> tuple[Any, ...]:
        """The last words of the answer, which begins with a greeting."""
        *_, last = self.told(*words)
        return last

    def told(self, *words: object) -> Iterator[tuple[Any, ...]]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as ours:
            with at(directory(self.host)) as here:
                ours.connect(f"{here}/{SOCKET}")
            ours.send(WORDS + encoded(words))
            while message := ours.recv(MESSAGE_BYTES):
                if message[:1] == WORDS:
                    yield decoded(message[1:])

    def run(self, **changes: object) -> tuple[Any, ...]:
        return self.ask("run", WANTED | changes)

    def records(self) -> dict[str, Record]:
        return {record.name: record for record in Records(self.host).all()}


@contextmanager
def at(where: Path) -> Iterator[str]:
    """A short name for a directory: a socket's address holds 107 bytes only."""
    descriptor = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(module, "LINGER_S", 0.01)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.5)
    ground = Ground(Host(root=tmp_path / "lib", run=tmp_path / "run"))
    yield ground
    for guest in ground.fake.guests:
        guest.lives = False
    ground.thread.join(30)
    assert not ground.thread.is_alive()


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_a_detached_guest_is_kept_and_written_down(ground: Ground) -> None:
    assert ground.run() == ("running", "tare-000000000000")
    assert ground.records()["one"].status == "running"
    assert ground.ask("stop", "tare-000000000000", 3.0) == ("done",)
    (guest,) = ground.fake.guests
    assert (guest.closed.is_set(), guest.stop_timeout_s) == (True, 3.0)
    record = ground.records()["one"]
    assert (record.status, record.exit_code, record.error) == ("exited", 0, "")
    assert (Records(ground.host).directory(record) / "console.log").read_text() == "its console"


def test_a_command_gives_its_code_and_ends_its_guest(ground: Ground) -> None:
    assert ground.run(argv=("true",), detach=False) == ("ended", 7, False)
    assert ground.records()["one"].exit_code == 7
    assert (Records(ground.host).base / "tare-000000000000/output.log").read_bytes() == b"out\n"


def test_a_guest_to_be_forgotten_leaves_no_record(ground: Ground) -> None:
    ground.run(argv=("true",), detach=False, rm=True)
    assert ground.records() == {}
    assert list(Records(ground.host).base.iterdir()) == []


def test_a_name_in_use_is_refused_before_anything_is_launched(ground: Ground) -> None:
    ground.run()
    assert ground.run()[:3] == ("failed", "name one", "taken by a virtual machine")
    assert len(ground.fake.guests) == 1


def test_one_of_many_who_ask_for_a_name_at_once_gets_it(ground: Ground) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [answer[0] for answer in pool.map(lambda _: ground.run(), range(8))]
    assert sorted(answers) == ["failed"] * 7 + ["running"]
    assert len(ground.fake.guests) == 1


def test_a_failure_to_prepare_is_told_as_it_is_and_frees_the_name(ground: Ground) -> None:
    ground.fake.failure = TareError("QEMU", "it is not there", "install it")
    assert ground.run() == ("failed", "QEMU", "it is not there", "install it", 1)
    ground.fake.failure = None
    assert ground.run()[0] == "running"


def test_a_record_that_cannot_be_written_ends_the_guest(ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patch:
        patch.setattr(Records, "write", full)
        assert ground.run()[:2] == ("failed", "record of a virtual machine")
    assert ground.fake.guests[0].closed.is_set()
    assert ground.run()[0] == "running"


@pytest.mark.parametrize("fate", ["it ends", "it is killed", "it stands still"])
def test_a_guest_that_ends_by_itself_is_written_down_with_why(ground: Ground, fate: str) -> None:
    ground.run()
    (guest,) = ground.fake.guests
    if fate == "it stands still":
        guest.trouble = "the host's disk is full"
    else:
        guest.fate = "QEMU was killed or failed" if fate == "it is killed" else ""
        guest.lives = False
    until(lambda: ground.records()["one"].status == "exited")
    record = ground.records()["one"]
    assert (record.error, record.exit_code) == (guest.mishap(), 0 if fate == "it ends" else 137)
    assert guest.closed.is_set()
    assert ground.ask("exec", guest.id, ("true",), (), False, None)[:3] == (
        "failed",
        f"virtual machine {guest.id}",
        "it does not run",
    )


def test_pausing_twice_and_commands_in_a_paused_guest_are_refused(ground: Ground) -> None:
    ground.run()
    assert ground.ask("pause", "tare-000000000000") == ("done",)
    assert ground.records()["one"].status == "paused"
    assert ground.ask("pause", "tare-000000000000")[2] == "it is paused"
    assert ground.ask("exec", "tare-000000000000", ("true",), (), False, None)[2] == "it is paused"
    assert ground.ask("unpause", "tare-000000000000") == ("done",)
    assert ground.ask("exec", "tare-000000000000", ("true",), (), False, None) == ("ended", 7, False)


def test_guests_on_another_libvirt_are_refused_while_some_run(ground: Ground) -> None:
    assert ground.run(uri="qemu:///system")[:2] == ("failed", "libvirt qemu:///system")
    assert ground.fake.guests == []


def test_requests_that_make_no_sense_harm_nobody(ground: Ground) -> None:
    assert ground.ask("nonsense")[:2] == ("failed", "keeper of virtual machines")
    assert ground.ask("run", {})[:2] == ("failed", "keeper of virtual machines")
    assert ground.run()[0] == "running"


def test_it_ends_after_the_last_guest_and_leaves_no_socket(ground: Ground) -> None:
    ground.run(argv=("true",), detach=False)
    ground.thread.join(30)
    assert not ground.thread.is_alive()
    assert ground.fake.closed
    assert [path.name for path in directory(ground.host).iterdir()] == ["keeper.lock"]


def test_what_a_keeper_left_is_retired_only_when_there_is_none(ground: Ground) -> None:
    ground.run()
    assert retire(ground.host) == []
    ground.fake.guests[0].lives = False
    ground.thread.join(30)
    assert retire(ground.host) == [str(directory(ground.host))]
    assert not directory(ground.host).exists()
    assert retire(ground.host) == []


def test_the_lock_is_one_however_often_it_is_removed(tmp_path: Path) -> None:
    """Who waits for a lock that is removed meanwhile takes the new one."""
    host = Host(root=tmp_path / "lib", run=tmp_path / "run")
    inside: list[int] = []
    most = 0

    def hold(_: int) -> None:
        nonlocal most
        with held(directory(host)):
            inside.append(1)
            most = max(most, len(inside))
            time.sleep(0.0002)
            inside.pop()

    with ThreadPoolExecutor(9) as pool:
        holders = [pool.submit(hold, number) for number in range(80)]
        while not all(holder.done() for holder in holders):
            retire(host)
        for holder in holders:
            holder.result()
    assert most == 1
