"""The keeper, a real one, keeping plain processes: streams, back-pressure, ends written before told, its own end."""

from __future__ import annotations

import json
import marshal
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from runtime.container import contact as contacts
from runtime.container.becoming import Execute
from runtime.container.contact import Contact, Ended, Running, Summons
from runtime.container.logs import read
from runtime.container.spawning import Flat
from runtime.container.steps import to_row
from runtime.errors import TareError
from runtime.protocol import INPUT, INPUT_END

OUTPUT_BYTES = 3_000_000


def plan(*argv: str) -> bytes:
    env = ((b"PATH", b"/usr/bin:/bin"),)
    program = Execute(paths=(argv[0].encode(),), argv=tuple(word.encode() for word in argv), env=env)
    flat = Flat(namespaces=0, streams=((0, 0), (1, 1), (2, 2)), steps=())
    fields = [value for name, value in vars(flat).items() if name not in ("steps", "entries")]
    return marshal.dumps((0, *fields, ((to_row(program),),)))


def request(directory: Path, *argv: str, **changes: Any) -> dict[str, Any]:
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    return {
        "id": directory.name,
        "plan": plan(*argv),
        "steps": 1,
        "terminal": False,
        "size": None,
        "input": False,
        "input_once": True,
        "output": True,
        "writes": True,
        "directory": str(directory),
        "log": (1 << 20, 2),
        "run": {"restarts": 0},
        "groups": (),
        "oom_file": "",
        "durable": False,
        "page": str(directory / "page"),
        "after": (),
        "again": False,
        "restart": ("no", 0),
        "restarter": (),
        "environment": {},
        "events": str(directory.parent),
        "attributes": {"name": "x"},
    } | changes


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run directory whose keeper, if there is one, ends with the test."""
    directory = tmp_path / "run"
    yield directory
    contact = contacts.connect(directory)
    if contact is not None:
        with suppress(ProcessLookupError):
            os.kill(contact.keeper_pid, signal.SIGKILL)
        contact.close()


@pytest.fixture
def keeper(run: Path) -> Iterator[Contact]:
    with Summons(run).connect() as contact:
        yield contact


def started(keeper: Contact, request: dict[str, Any]) -> Running:
    keeper.ask("start", request)
    words, descriptors = keeper.hear()
    assert words[0] == "running", words
    return Running(words[1], *descriptors)


def relayed(keeper: Contact, running: Running, data: bytes = b"") -> tuple[Ended | None, bytes, bytes]:
    """What came of it, standard output and errors, with `data` as input."""
    source, typed = os.pipe()
    output, output_end = os.pipe()
    errors, errors_end = os.pipe()
    found = {output: b"", errors: b""}

    def feed() -> None:
        with os.fdopen(typed, "wb") as file, suppress(BrokenPipeError):
            file.write(data)

    def gather(descriptor: int) -> None:
        with os.fdopen(descriptor, "rb") as file:
            found[descriptor] = file.read()

    threads = [threading.Thread(target=feed), *(threading.Thread(target=gather, args=(at,)) for at in found)]
    for thread in threads:
        thread.start()
    try:
        ended = keeper.relay(running, (source, output_end, errors_end), proxy=False)
    finally:
        for descriptor in (source, output_end, errors_end):
            os.close(descriptor)
        for thread in threads:
            thread.join()
        running.close()
    return ended, found[output], found[errors]


def run_file(directory: Path) -> dict[str, Any]:
    words: dict[str, Any] = json.loads((directory / "run.json").read_text())
    return words


def test_output_exit_code_log_and_record(keeper: Contact, tmp_path: Path) -> None:
    box = tmp_path / "box"
    running = started(keeper, request(box, "/bin/sh", "-c", "echo out; echo err >&2; exit 7"))
    ended, output, errors = relayed(keeper, running)
    assert (ended, output, errors) == (Ended(7), b"out\n", b"err\n")
    assert {(entry.stream, entry.data) for entry in read(str(box / "logs"))} == {
        ("stdout", b"out\n"),
        ("stderr", b"err\n"),
    }
    found = run_file(box)
    assert (found["exit_code"], found["pid"], found["oom_killed"]) == (7, running.pid, False)
    assert found["started_at"] < found["finished_at"]
    actions = [json.loads(line)["Action"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert actions == ["start", "die"]


def test_a_signal_is_128_more(keeper: Contact, tmp_path: Path) -> None:
    running = started(keeper, request(tmp_path / "box", "/bin/sleep", "60"))
    signal.pidfd_send_signal(running.pidfd, signal.SIGTERM)
    assert relayed(keeper, running)[0] == Ended(143)


def test_input_comes_through_whatever_its_size(keeper: Contact, tmp_path: Path) -> None:
    data = os.urandom(OUTPUT_BYTES)
    box = tmp_path / "box"
    running = started(keeper, request(box, "/bin/cat", input=True, log=(1 << 20, 1)))
    assert relayed(keeper, running, data)[:2] == (Ended(0), data)


def test_a_process_that_reads_nothing_ends_all_the_same(keeper: Contact, tmp_path: Path) -> None:
    running = started(keeper, request(tmp_path / "box", "/bin/true", input=True))
    assert relayed(keeper, running, b"x" * OUTPUT_BYTES)[0] == Ended(0)


def test_who_does_not_read_is_waited_for_and_others_are_served(keeper: Contact, run: Path, tmp_path: Path) -> None:
    script = f"head -c {OUTPUT_BYTES} /dev/zero; exit 3"
    running = started(keeper, request(tmp_path / "box", "/bin/sh", "-c", script))
    with Summons(run).connect() as other:  # while the first one's output is stuck
        quick = started(other, request(tmp_path / "other", "/bin/echo", "hello"))
        assert relayed(other, quick)[1] == b"hello\n"
    assert not select.select([running.pidfd], [], [], 0)[0]
    ended, output, _ = relayed(keeper, running)
    assert (ended, len(output)) == (Ended(3), OUTPUT_BYTES)


def test_a_client_that_dies_leaves_it_running(keeper: Contact, run: Path, tmp_path: Path) -> None:
    box = tmp_path / "box"
    running = started(keeper, request(box, "/bin/sh", "-c", "while echo line; do sleep 0.01; done"))
    keeper.close()
    with Summons(run).connect() as other:
        other.ask("attach", "box", True, False)
        words, descriptors = other.hear()
        assert words == ("attached", running.pid, False)
        os.close(descriptors[0])
        signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)
        ended, output, _ = relayed(other, running)
    assert ended == Ended(137)
    assert set(output.splitlines()) <= {b"line"}
    assert run_file(box)["exit_code"] == 137


def test_the_end_of_the_one_who_types_is_the_end_of_input(keeper: Contact, run: Path, tmp_path: Path) -> None:
    running = started(keeper, request(tmp_path / "box", "/bin/cat", input=True))
    with Summons(run).connect() as other:
        other.ask("wait", "box", False)
        keeper.close()
        assert other.hear()[0] == ("ended", 0, False)
    running.close()


def test_input_that_is_for_many_outlives_one(keeper: Contact, run: Path, tmp_path: Path) -> None:
    running = started(keeper, request(tmp_path / "box", "/bin/cat", input=True, input_once=False))
    keeper._connection.send(INPUT + b"one\n")
    keeper._connection.send(INPUT_END)
    assert keeper._connection.recv(100) == b"1one\n"
    assert not select.select([running.pidfd], [], [], 0.05)[0]
    signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)
    running.close()


def test_what_cannot_be_executed_is_said_and_written(keeper: Contact, tmp_path: Path) -> None:
    keeper.ask("start", request(tmp_path / "box", "/no/such/program"))
    words, _ = keeper.hear()
    assert words[:3] == ("failed", 0, 2)
    assert run_file(tmp_path / "box")["exit_code"] == 127
    assert not run_file(tmp_path / "box").get("started_at")


def test_the_end_is_written_before_it_is_told_and_the_page_struck_out(
    keeper: Contact, run: Path, tmp_path: Path
) -> None:
    box = tmp_path / "box"
    for _ in range(20):
        wanted = request(box, "/bin/true", output=False, writes=False)
        (box / "page").touch()
        with Summons(run).connect() as starter:
            started(starter, wanted).close()
            keeper.ask("wait", "box", False)
            words, _ = keeper.hear()
        if words[0] == "ended":
            assert run_file(box)["exit_code"] == 0
        else:
            assert words == ("refused", "it does not run")
        assert not (box / "page").exists()


def test_its_groups_are_removed_before_its_end_is_told(keeper: Contact, tmp_path: Path) -> None:
    group = tmp_path / "group"
    group.mkdir()
    running = started(keeper, request(tmp_path / "box", "/bin/true", groups=(str(group), str(tmp_path / "absent"))))
    assert relayed(keeper, running)[0] == Ended(0)
    assert not group.exists()


def test_running_out_of_memory_is_noticed(keeper: Contact, tmp_path: Path) -> None:
    (tmp_path / "oom").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    running = started(keeper, request(tmp_path / "box", "/bin/true", oom_file=str(tmp_path / "oom")))
    assert relayed(keeper, running)[0] == Ended(0, oom_killed=True)


def test_help_comes_for_what_the_keeper_cannot_remove(keeper: Contact, run: Path, tmp_path: Path) -> None:
    box = tmp_path / "box"
    made = tmp_path / "made"
    os.mkfifo(made)
    box.mkdir()
    (box / "page").touch()
    helper = ("/bin/sh", "-c", f"echo $WHO > {made}")
    wanted = request(box, "/bin/sleep", "60", after=helper, environment={"WHO": "me"}, output=True)
    running = started(keeper, wanted)
    keeper.close()
    signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)
    assert made.read_text() == "me\n"
    running.close()


def test_it_ends_when_it_keeps_nothing(run: Path, tmp_path: Path) -> None:
    with Summons(run).connect() as contact:
        process = os.pidfd_open(contact.keeper_pid)
        assert not select.select([process], [], [], 0)[0]
    assert select.select([process], [], [], 30)[0]
    os.close(process)
    assert not (run / "keeper.sock").exists()


def test_two_that_come_at_once_get_the_same(run: Path) -> None:
    first, second = Summons(run), Summons(run)
    with first.connect() as one, second.connect() as other:
        assert one.keeper_pid == other.keeper_pid


def test_many_that_come_and_go_are_all_served(run: Path, tmp_path: Path) -> None:
    failures = []

    def come_and_go(number: int) -> None:
        try:
            for _ in range(5):
                with Summons(run).connect() as contact:
                    running = started(contact, request(tmp_path / f"box{number}", "/bin/true", output=False))
                    running.close()
        except (AssertionError, TareError) as error:
            failures.append(error)

    threads = [threading.Thread(target=come_and_go, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_after_it_was_killed_another_takes_its_place(run: Path, tmp_path: Path) -> None:
    with Summons(run).connect() as contact:
        running = started(contact, request(tmp_path / "box", "/bin/sleep", "60"))
        os.kill(contact.keeper_pid, signal.SIGKILL)
        assert contact.relay(running, (-1, 1, 2), proxy=False) is None
        signal.pidfd_send_signal(running.pidfd, signal.SIGKILL)  # an orphan here; a container would die with it
        running.close()
    with Summons(run).connect() as other:
        other.ask("kept")
        assert other.hear()[0] == ("kept", ())


def test_one_that_is_stopped_with_a_long_path_is_reached(tmp_path: Path) -> None:
    run = tmp_path / ("x" * 120)
    with Summons(run).connect() as contact:
        assert contact.keeper_pid


def test_nonsense_is_refused(keeper: Contact) -> None:
    keeper.ask("dance")
    assert keeper.hear()[0][0] == "refused"


def test_a_request_too_long_is_refused_at_once(keeper: Contact, tmp_path: Path) -> None:
    with pytest.raises(TareError, match="too many"):
        keeper.ask("start", request(tmp_path / "box", "/bin/true", "x" * (1 << 20)))


def test_its_descriptors_do_not_leak_into_what_it_starts(keeper: Contact, tmp_path: Path) -> None:
    running = started(keeper, request(tmp_path / "box", "/bin/ls", "/proc/self/fd"))
    assert relayed(keeper, running)[1].split() == [b"0", b"1", b"2", b"3"]


def test_it_holds_nothing_of_what_has_ended(keeper: Contact, run: Path, tmp_path: Path) -> None:
    def descriptors() -> int:
        return len(list(Path(f"/proc/{keeper.keeper_pid}/fd").iterdir()))

    before = descriptors()
    for number in range(3):
        with Summons(run).connect() as other:
            running = started(other, request(tmp_path / f"box{number}", "/bin/echo", "x", input=True))
            relayed(other, running)
    deadline = time.monotonic() + 10
    while descriptors() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() <= before


def test_the_socket_is_root_s_own(run: Path) -> None:
    with Summons(run).connect():
        assert (run / "keeper.sock").stat().st_mode & 0o777 == 0o600
        assert socket.AF_UNIX  # a file, nothing abstract


def test_signal_that_interrupts_no_poll_is_passed_on() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    passed: list[int] = []
    in_time: list[bool] = []
    heard = threading.Event()

    def pass_on(number: int) -> None:
        passed.append(number)
        heard.set()

    def take_it_elsewhere() -> None:  # the poll of the main thread does not return then
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGUSR1)
        in_time.append(heard.wait(5))
        theirs.close()

    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    thread = threading.Thread(target=take_it_elsewhere)
    try:
        with Contact(ours) as contact, contacts.passing(pass_on, None):
            thread.start()
            contact.carry((-1, 1, 2))
    finally:
        thread.join()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert (passed, in_time) == ([signal.SIGUSR1], [True])
