"""Input, terminals, signals and output that waits for its taker: the agent's T frames, against the compiled agent."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from runtime.channel import WINDOW_BYTES, Channel, Command
from runtime.frames import Streams
from tests.agent import Agent, build

PLAIN = Streams(input=True)
TERMINAL = Streams(input=True, terminal=(30, 90))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def channel(program: Path) -> Iterator[Channel]:
    with Agent(program) as agent:
        yield agent.talk()


class Said:
    """What a command prints, by stream; a test waits for words of it."""

    def __init__(self) -> None:
        self.streams = {1: bytearray(), 2: bytearray()}
        self._news = threading.Condition()

    def __call__(self, stream: int, data: bytes) -> None:
        with self._news:
            self.streams[stream] += data
            self._news.notify_all()

    def wait(self, word: bytes, stream: int = 1) -> None:
        with self._news:
            assert self._news.wait_for(lambda: word in self.streams[stream], 20), self.streams


@contextmanager
def started(channel: Channel, argv: Sequence[str], streams: Streams) -> Iterator[tuple[Command, Said]]:
    said = Said()
    with channel.running(argv, said, streams=streams) as command:
        yield command, said


def test_input_comes_whole_and_ends(channel: Channel) -> None:
    data = bytes(range(256)) * 4000
    with started(channel, ["cat"], PLAIN) as (command, said):
        assert command.type(data)
        command.type(b"")
        assert command.wait() == 0
    assert said.streams[1] == data


def test_input_that_nobody_reads_holds_up_its_giver_and_nobody_else(channel: Channel) -> None:
    asked = iter([False, False, True])
    with started(channel, ["sleep", "1000"], PLAIN) as (command, _):
        assert not command.type(bytes(1 << 20), lambda: next(asked))
        assert channel.exec(["echo", "alive"], 20).stdout == b"alive\n"


def test_input_for_a_command_that_has_closed_it_is_dropped(channel: Channel) -> None:
    with started(channel, ["sh", "-c", "exec <&-; echo closed; read -r word; sleep 1000"], PLAIN) as (command, said):
        said.wait(b"closed")
        assert command.type(bytes(1 << 20))


def test_input_for_a_command_that_has_ended_says_so(channel: Channel) -> None:
    with started(channel, ["true"], PLAIN) as (command, _):
        assert command.wait() == 0
        assert not command.type(b"late")


def test_without_input_it_reads_nothing(channel: Channel) -> None:
    with started(channel, ["cat"], Streams()) as (command, _):
        assert command.wait() == 0


def test_terminal_has_a_size_that_changes_and_both_streams_on_it(channel: Channel) -> None:
    program = "trap 'stty size' WINCH; stty size; echo err >&2; tty; while :; do sleep 0.05; done"
    with started(channel, ["sh", "-c", program], TERMINAL) as (command, said):
        said.wait(b"30 90\r\nerr\r\n/dev/pts/")
        command.resize(40, 100)
        said.wait(b"40 100\r\n")
        assert command.type(b"\x03")
        assert command.wait() == 130
    assert not said.streams[2]


def test_terminal_is_the_controlling_one_and_job_control_works(channel: Channel) -> None:
    with started(channel, ["sh", "-i"], TERMINAL) as (command, said):
        command.type(b"echo $((6 * 7))\n")
        said.wait(b"42\r\n")
        command.type(b"sleep 1000 & kill %1; exit 9\n")
        assert command.wait() == 9
    assert b"job control" not in bytes(said.streams[1])


def test_last_words_on_a_terminal_are_not_lost(channel: Channel) -> None:
    with started(channel, ["sh", "-c", "seq 1 20000"], TERMINAL) as (command, said):
        assert command.wait() == 0
    assert bytes(said.streams[1]) == b"".join(b"%d\r\n" % number for number in range(1, 20001))


@pytest.mark.parametrize("holder", ["sleep 1000", "yes"])
def test_end_of_a_terminals_command_is_told_though_another_session_holds_it(channel: Channel, holder: str) -> None:
    with started(channel, ["sh", "-c", f"setsid {holder} & sleep 0.1; seq 1 3000; exit 3"], TERMINAL) as (command, _):
        assert command.wait() == 3


@pytest.mark.parametrize("streams", [PLAIN, TERMINAL])
def test_signal_reaches_the_process_alone(channel: Channel, streams: Streams) -> None:
    child = "trap 'echo child' USR1; echo up; while :; do sleep 0.02; done"
    program = f"trap 'sleep 0.3; echo caught; exit 5' USR1; sh -c \"{child}\" & wait"
    with started(channel, ["sh", "-c", program], streams) as (command, said):
        said.wait(b"up")
        command.signal(10)
        assert command.wait() == 5
    assert b"caught" in said.streams[1]
    assert b"child" not in said.streams[1]


def test_output_waits_until_it_is_granted(channel: Channel) -> None:
    size = 3 * WINDOW_BYTES
    with started(channel, ["head", "-c", str(size), "/dev/zero"], Streams(window_bytes=WINDOW_BYTES)) as (
        command,
        said,
    ):
        before = -1
        while before != (before := len(said.streams[1])) or not before:
            time.sleep(0.3)
        assert before == WINDOW_BYTES
        for _ in range(8):
            command.grant(WINDOW_BYTES // 4)
        assert command.wait() == 0
    assert len(said.streams[1]) == size


def test_many_terminals_leave_no_descriptor_behind(program: Path) -> None:
    with Agent(program) as agent:
        channel = agent.talk()
        counts = []
        for _ in range(2):
            for streams in (PLAIN, TERMINAL) * 5:
                with started(channel, ["cat"], streams) as (command, _):
                    command.type(b"one\n")
                    command.kill()
                    assert command.wait() == 137
            counts.append(len(list(Path(f"/proc/{agent.process.pid}/fd").iterdir())))
    assert counts[0] == counts[1]
