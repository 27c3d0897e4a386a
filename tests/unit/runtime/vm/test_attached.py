"""Commands with a user at their streams, from the command line's end to the compiled agent, with no guest around."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import socket
import tarfile
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from runtime.channel import Channel
from runtime.commands import vm, vmcopy
from runtime.commands.vmcontact import VmContact
from runtime.container import terminal
from runtime.container.contact import Ended
from runtime.errors import TareError
from runtime.vm.attached import Attached, environment
from runtime.vm.session import Session
from tests.agent import Agent, build, gone

Dial = Callable[[], VmContact]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def channel(program: Path) -> Iterator[Channel]:
    with Agent(program) as agent:
        yield agent.talk()


@pytest.fixture
def dial(channel: Channel) -> Iterator[Dial]:
    """Calls somebody who carries out one request to execute, as the keeper does."""
    threads = []

    def serve(session: Session) -> None:
        words: Any = session.request()
        if words:
            _, _, argv, env, interactive, size = words
            attached = Attached(session, interactive=interactive, size=size)
            session.listen()
            with attached.running(channel, argv, dict(env)) as command:
                session.gone = command.kill
                session.tell("running", "it")
                code = command.wait()
            session.tell("ended", code, False)
        session.close()

    def act() -> VmContact:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        thread = threading.Thread(target=serve, args=(Session(theirs),))
        thread.start()
        threads.append(thread)
        return VmContact(ours)

    yield act
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


def begin(contact: VmContact, *argv: str, interactive: bool = False, size: tuple[int, int] | None = None) -> None:
    contact.ask("exec", "it", argv, (), interactive, size)
    contact.heard("running")


def carried(contact: VmContact, data: bytes = b"", *, slow: bool = False) -> tuple[Ended | None, bytes]:
    """What comes of it, with `data` as input."""
    pipes = [os.pipe() for _ in range(2)]
    (source, typed), (shown, sink) = pipes
    ended: list[Ended | None] = []

    def carry() -> None:
        ended.append(contact.carry((source, sink, sink)))
        os.close(sink)

    def type_all() -> None:
        with os.fdopen(typed, "wb") as stream:
            stream.write(data)

    threads = [threading.Thread(target=carry), threading.Thread(target=type_all)]
    for thread in threads:
        thread.start()
    with os.fdopen(shown, "rb") as stream:
        output = b"".join(iter(lambda: stream.read(1 << 12 if slow else 1 << 20), b""))
    for thread in threads:
        thread.join(20)
    os.close(source)
    return ended[0], output


def test_input_goes_in_and_comes_out_whole(dial: Dial) -> None:
    data = os.urandom(3 << 20)
    with dial() as contact:
        begin(contact, "cat", interactive=True)
        assert carried(contact, data) == (Ended(0), data)


def test_input_without_i_is_not_passed_on(dial: Dial) -> None:
    with dial() as contact:
        begin(contact, "cat")
        assert carried(contact, b"lost") == (Ended(0), b"")


def test_slow_reader_loses_nothing_and_is_not_hung_up_on(dial: Dial) -> None:
    size = 40 << 20  # more than a session lets wait
    with dial() as contact:
        begin(contact, "head", "-c", str(size), "/dev/zero")
        ended, output = carried(contact, slow=True)
    assert (ended, len(output)) == (Ended(0), size)


def test_who_hangs_up_takes_the_command_along(dial: Dial, channel: Channel, tmp_path: Path) -> None:
    fifo = tmp_path / "pid"
    os.mkfifo(fifo)
    with dial() as contact:
        begin(contact, "sh", "-c", f"echo $$ > {fifo}; exec sleep 1000", interactive=True)
        pidfd = os.pidfd_open(int(fifo.read_text()))
        contact.ask("resize", 1, 1)
        contact._connection.send(b"i" + bytes(100_000))  # which nobody reads
    assert gone(pidfd)
    os.close(pidfd)


def test_terminal_inside_follows_ours(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    terminal.resize(theirs, (33, 99))
    saved = [os.dup(number) for number in (0, 1)]
    program = "stty size; trap 'stty size; exit 7' WINCH; echo on; while :; do sleep 0.05; done"
    try:
        for number in (0, 1):
            os.dup2(theirs, number)
        with dial() as contact:
            begin(contact, "sh", "-c", program, interactive=True, size=vm._size(True))

            def resize() -> None:
                seen = b""
                while b"on\r\n" not in seen:
                    seen += os.read(ours, 4096)
                seen_all.append(seen)
                terminal.resize(theirs, (44, 88))
                os.kill(os.getpid(), 28)

            seen_all: list[bytes] = []
            thread = threading.Thread(target=resize)
            thread.start()
            code = vm._carried(contact, True, True)
            thread.join()
    finally:
        for number, descriptor in enumerate(saved):
            os.dup2(descriptor, number)
            os.close(descriptor)
    fcntl.fcntl(ours, fcntl.F_SETFL, os.O_NONBLOCK)
    rest = os.read(ours, 4096)
    assert termios.tcgetattr(theirs)[3] & termios.ECHO, "it is raw no more"
    os.close(ours)
    os.close(theirs)
    assert code == 7
    assert (b"33 99\r\n" in seen_all[0], rest) == (True, b"44 88\r\n")


@pytest.mark.parametrize(
    ("env", "tty", "made"),
    [
        ({}, False, {}),
        ({"A": "b"}, False, {"A": "b", "PATH": "*"}),
        ({"PATH": "/x", "TERM": "vt"}, True, {"PATH": "/x", "TERM": "vt"}),
        ({}, True, {"PATH": "*", "TERM": "xterm"}),
    ],
)
def test_environment_is_what_a_command_needs(env: dict[str, str], tty: bool, made: dict[str, str]) -> None:
    found = environment(env, terminal=tty)
    assert {name: "*" if value.startswith("/usr/local/sbin:") else value for name, value in found.items()} == made


# --- tare vm cp


@pytest.fixture
def cp(dial: Dial, monkeypatch: pytest.MonkeyPatch) -> Callable[..., bytes]:
    """`tare vm cp`, the agent's files being the host's own; the output of a `-`."""
    record = SimpleNamespace(id="it", name="v")
    monkeypatch.setattr(vmcopy, "Records", lambda _: SimpleNamespace(find=lambda _: record))
    monkeypatch.setattr(vmcopy, "reached", lambda *_: dial())

    def act(*words: str, data: bytes = b"") -> bytes:
        result = CliRunner().invoke(vmcopy.cp, words, input=data, catch_exceptions=True)
        if result.exception is not None:
            raise result.exception
        return result.stdout_bytes

    return act


def test_copies_in_and_out_by_dockers_rules(cp: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_bytes(os.urandom(2 << 20))
    cp(f"{tmp_path}/a", f"v:{tmp_path}/new")
    cp(f"{tmp_path}/a", f"v:{tmp_path}/new")
    cp(f"{tmp_path}/a/.", f"v:{tmp_path}/poured")
    cp(f"v:{tmp_path}/new/a/b/f", f"{tmp_path}/out")
    wanted = (tmp_path / "a/b/f").read_bytes()
    for path in ("new/b/f", "new/a/b/f", "poured/b/f", "out"):
        assert (tmp_path / path).read_bytes() == wanted


def test_archives_go_both_ways(cp: Callable[..., bytes], tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/f").write_text("content")
    data = cp(f"v:{tmp_path}/a", "-")
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames() == ["a", "a/f"]
    (tmp_path / "in").mkdir()
    cp("-", f"v:{tmp_path}/in", data=data)
    assert (tmp_path / "in/a/f").read_text() == "content"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("v:{}/none", "{}/x"), "v:.*/none: no such file or directory"),
        (("{}/none", "v:{}/x"), "none: no such file or directory"),
        (("{}/f", "v:{}/none/x"), "the directory to copy into must exist"),
        (("{}/f", "v:{}/f/x"), "not a directory"),
        (("{}/d", "v:{}/f"), "a directory cannot be copied onto a file"),
        (("{}/f", "v:{}/over"), "over: f: a directory is there"),
        (("v:{}/f", "{}/none/x"), "the directory to copy into must exist"),
        (("v:{}/d", "{}/f"), "a directory cannot be copied onto a file"),
        (("v:/proc/self/status", "{}/x"), "holds no files"),
        (("v:{}/null", "{}/x"), "v:.*/null: a device"),
        (("-", "v:{}/d"), "not a whole tar"),
        (("v:{}/f", "v:{}/x"), "both are in virtual machines"),
        (("{}/f", "{}/x"), "neither is in a virtual machine"),
    ],
)
def test_what_cannot_be_copied_is_told_in_one_line(
    cp: Callable[..., bytes], tmp_path: Path, words: tuple[str, str], why: str
) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "over/f").mkdir(parents=True)
    os.mknod(tmp_path / "null", 0o020666, os.makedev(1, 3))
    with pytest.raises(TareError, match=why) as caught:
        cp(*(word.format(tmp_path) for word in words), data=b"no archive" * 1000)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()
