"""The host's end of the agent's channel, against a scripted peer."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import channel
from runtime.channel import Channel
from runtime.errors import TareError
from runtime.frames import Decoder, encode, encode_exec
from runtime.identity import Identity, encode_configure
from runtime.instance import ExecResult, Timeline

KINDS = st.sampled_from("UAR!OEXPC")
FRAMES = st.lists(st.tuples(KINDS, st.integers(0, 2**32 - 1), st.binary(max_size=300)), max_size=8)
WORDS = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=20)


class Peer:
    """The agent's part, played by hand."""

    def __init__(self, on_loss: Callable[[], str] | None = None, identity: Identity | None = None) -> None:
        ours, self.sock = socket.socketpair()
        self.sock.settimeout(20)
        self.timeline = Timeline()
        self.channel = Channel(ours, self.timeline, on_loss, identity=identity)
        self._pool = ThreadPoolExecutor()

    def send(self, kind: str, number: int = 0, payload: bytes = b"") -> None:
        self.sock.sendall(encode(kind, number, payload))

    def take(self) -> tuple[str, int, bytes]:
        kind, number, length = struct.unpack("<BII", self._exactly(9))
        return chr(kind), number, self._exactly(length)

    def exec(self, *argv: str, timeout_s: float = 20) -> Future[ExecResult]:
        return self._pool.submit(self.channel.exec, argv, timeout_s)

    def end(self) -> None:
        self.channel.close()
        self._pool.shutdown()
        self.sock.close()

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self.sock.recv(size - len(data)) or pytest.fail("the channel closed")
        return data


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer(lambda: "kernel panic\n")
    yield peer
    peer.end()


def exit_payload(code: int) -> bytes:
    return struct.pack("<i", code)


@given(frames=FRAMES, cuts=st.lists(st.integers(0, 3000)))
def test_decoder_gives_the_same_frames_however_the_stream_is_split(
    frames: list[tuple[str, int, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(encode(*frame) for frame in frames)
    edges = [0, *sorted(cut for cut in cuts if cut < len(stream)), len(stream)]
    decoder = Decoder()
    found = [frame for low, high in itertools.pairwise(edges) for frame in decoder.feed(stream[low:high])]
    assert found == frames


@given(st.binary(max_size=200))
def test_decoder_meets_garbage_with_frames_or_value_error_only(data: bytes) -> None:
    try:
        frames = list(Decoder().feed(data))
    except ValueError:
        return
    stream = b"".join(encode(*frame) for frame in frames)
    assert data[: len(stream)] == stream
    assert len(data) - len(stream) < 9 or data[len(stream)] in b"UAR!OEXPC"


@pytest.mark.parametrize("bad", [b"?" + bytes(8), struct.pack("<BII", ord("O"), 1, (1 << 20) + 1)])
def test_decoder_delivers_what_came_before_a_malformed_frame(bad: bytes) -> None:
    frames = Decoder().feed(encode("U", 0) + bad)
    assert next(frames) == ("U", 0, b"")
    with pytest.raises(ValueError, match="type"):
        next(frames)


@given(argv=st.lists(WORDS, min_size=1, max_size=5), env=st.dictionaries(WORDS.filter(lambda w: "=" not in w), WORDS))
def test_execute_payload_holds_the_words_in_order(argv: list[str], env: dict[str, str]) -> None:
    payload = encode_exec(argv, env)
    words = payload[4:].decode().split("\0")
    assert struct.unpack_from("<I", payload) == (len(argv),)
    assert words == [*argv, *(f"{name}={value}" for name, value in env.items()), ""]


@pytest.mark.parametrize("argv", [[], ["a\0b"]])
def test_execute_payload_refuses_an_empty_command_and_nul(argv: list[str]) -> None:
    with pytest.raises(TareError, match="empty or holds a NUL"):
        encode_exec(argv, {})


def test_request_larger_than_a_frame_is_refused_before_sending(peer: Peer) -> None:
    with pytest.raises(TareError, match="at most 1048576"):
        peer.channel.exec(["x" * (1 << 20)], 20)
    peer.exec("true")
    assert b"true" in peer.take()[2]


def test_events_are_stamped_when_they_arrive_and_the_first_stands(peer: Peer) -> None:
    before = time.monotonic_ns()
    peer.send("U")
    peer.channel.wait("userland", 20)
    between = time.monotonic_ns()
    peer.send("U")
    peer.send("R", 0, struct.pack("<H", 8080))
    peer.channel.wait("ready", 20)
    after = time.monotonic_ns()
    stamps = dict(peer.timeline)
    assert before <= stamps["userland"] <= between <= stamps["ready"] <= after
    assert peer.channel.service_port == 8080


def test_the_first_answer_to_a_command_or_ping_is_stamped_and_configuring_is_none(peer: Peer) -> None:
    configured = threading.Thread(target=peer.channel.configure, args=(Identity(),))
    configured.start()
    peer.send("C", peer.take()[1])
    configured.join(20)
    assert "answered" not in peer.timeline
    done = peer.exec("true")
    peer.send("X", peer.take()[1], exit_payload(0))
    done.result(20)
    first = dict(peer.timeline.events())["answered"]
    done = peer.exec("true")
    peer.send("X", peer.take()[1], exit_payload(0))
    done.result(20)
    assert dict(peer.timeline.events())["answered"] == first


def test_wait_times_out_with_the_last_words(peer: Peer) -> None:
    with pytest.raises(TareError, match=r"not ready after 0\.01 s; last words: kernel panic"):
        peer.channel.wait("ready", 0.01)


def test_loss_wakes_every_waiter_with_the_last_words(peer: Peer) -> None:
    with ThreadPoolExecutor() as pool:
        waiters: list[Future[object]] = [pool.submit(peer.channel.wait, "ready", 60)]
        waiters += [pool.submit(peer.channel.exec, ["sleep", "9"], 60), pool.submit(peer.channel.ping, b"", 60)]
        peer.take(), peer.take()
        peer.sock.shutdown(socket.SHUT_RDWR)
        for waiter in waiters:
            with pytest.raises(TareError, match="connection lost: the agent is gone; last words: kernel panic"):
                waiter.result(20)
    with pytest.raises(TareError, match="connection lost"):
        peer.channel.exec(["true"], 60)


def test_event_seen_before_the_loss_still_counts(peer: Peer) -> None:
    peer.send("U")
    peer.sock.shutdown(socket.SHUT_RDWR)
    with pytest.raises(TareError, match="connection lost"):
        peer.channel.wait("ready", 20)
    peer.channel.wait("userland", 0)


def test_failed_service_is_an_error_with_its_reason(peer: Peer) -> None:
    peer.send("!", 0, b"connect: Network is unreachable")
    with pytest.raises(TareError, match="service inside the instance: connect: Network is unreachable"):
        peer.channel.wait("ready", 20)


def test_concurrent_commands_get_their_own_output_and_code(peer: Peer) -> None:
    first = peer.exec("first")
    one = peer.take()[1]
    second = peer.exec("second")
    two = peer.take()[1]
    peer.send("O", one, b"1a")
    peer.send("O", two, b"2a")
    peer.send("E", one, b"oops")
    peer.send("X", two, exit_payload(0))
    peer.send("O", one, b"1b")
    peer.send("X", one, exit_payload(137))
    done = first.result(20)
    assert (done.argv, done.exit_code, done.stdout, done.stderr) == (("first",), 137, b"1a1b", b"oops")
    assert (second.result(20).exit_code, second.result(20).stdout) == (0, b"2a")
    assert done.elapsed_ns > 0


def test_command_over_its_time_is_killed(peer: Peer) -> None:
    command = peer.exec("sleep", "1 h", timeout_s=0.01)
    kind, number, _ = peer.take()
    assert (kind, peer.take()) == ("X", ("K", number, b""))
    peer.send("X", number, exit_payload(137))
    with pytest.raises(TareError, match=r"command sleep '1 h': not done after 0\.01 s; killed$"):
        command.result(20)


def test_command_that_outlives_its_kill_does_not_block(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "KILL_TIMEOUT_S", 0.01)
    command = peer.exec("stuck", timeout_s=0.01)
    with pytest.raises(TareError, match=r"killed, but not dead after 0\.01 s"):
        command.result(20)
    number = peer.take()[1]
    peer.send("O", number, b"late")
    peer.send("X", number, exit_payload(0))
    after = peer.exec("next")
    assert peer.take()[0] == "K"
    peer.send("X", peer.take()[1], exit_payload(0))
    assert after.result(20).stdout == b""


def test_command_with_too_much_output_is_killed(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "OUTPUT_MAX", 1000)
    command = peer.exec("yes")
    number = peer.take()[1]
    for _ in range(5):
        peer.send("O", number, bytes(501))
    assert peer.take() == ("K", number, b"")
    peer.send("O", number, bytes(501))
    with pytest.raises(TimeoutError):
        command.result(0.1)  # its death is awaited, not another frame
    peer.send("X", number, exit_payload(137))
    with pytest.raises(TareError, match=r"printed more than 1000 bytes; killed$"):
        command.result(20)


def test_too_much_output_is_no_result_though_the_command_ended_at_once(
    peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "OUTPUT_MAX", 1000)
    command = peer.exec("head")
    number = peer.take()[1]
    peer.sock.sendall(encode("O", number, bytes(1001)) + encode("X", number, exit_payload(0)))
    with pytest.raises(TareError, match=r"printed more than 1000 bytes; (it has ended|killed)$"):
        command.result(20)


def test_malformed_frame_ends_the_talk(peer: Peer) -> None:
    peer.send("U")
    peer.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n")
    with pytest.raises(TareError, match="connection lost: malformed frame: type 72"):
        peer.channel.wait("ready", 20)
    assert "userland" in peer.timeline


def test_ping_measures_and_compares(peer: Peer) -> None:
    with ThreadPoolExecutor() as pool:
        ping = pool.submit(peer.channel.ping, b"abc")
        peer.send(*peer.take())
        assert ping.result(20) > 0
        ping = pool.submit(peer.channel.ping, b"abc")
        peer.send("P", peer.take()[1], b"abd")
        with pytest.raises(TareError, match="not what was sent"):
            ping.result(20)
    with pytest.raises(TareError, match=r"no answer after 0\.01 s"):
        peer.channel.ping(b"", 0.01)


def test_agent_that_does_not_read_is_taken_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "SEND_TIMEOUT_S", 1)
    peer = Peer()
    with pytest.raises(TareError, match="connection lost: sending failed"):
        peer.channel.ping(bytes(1 << 20), 20)
    while peer.sock.recv(1 << 20):
        pass  # to the end: the channel hung up, as half a frame is out
    with pytest.raises(TareError, match="connection lost: sending failed"):
        peer.channel.ping(b"", 20)
    peer.end()


def test_stop_tells_the_agent_and_forgives_its_absence(peer: Peer) -> None:
    peer.channel.stop()
    assert peer.take() == ("S", 0, b"")
    peer.sock.shutdown(socket.SHUT_RD)
    peer.channel.stop()
    with pytest.raises(TareError, match="connection lost"):
        peer.channel.wait("ready", 20)
    peer.channel.stop()


def test_close_wakes_waiters_and_may_be_repeated(peer: Peer) -> None:
    command = peer.exec("sleep", "9")
    peer.take()
    peer.channel.close()
    peer.channel.close()
    with pytest.raises(TareError, match="the channel was closed"):
        command.result(20)
    assert peer.sock.recv(1) == b""


def test_one_thread_serves_all_channels() -> None:
    peers = [Peer() for _ in range(20)]
    for peer in peers:
        peer.send("R", 0, b"\1\0")
    for peer in peers:
        peer.channel.wait("ready", 20)
    assert [thread.name for thread in threading.enumerate()].count("tare-channels") == 1
    for peer in peers:
        peer.end()


NAMED = Identity(hostname="web")


@pytest.fixture
def named() -> Iterator[Peer]:
    peer = Peer(identity=NAMED)
    yield peer
    peer.end()


def test_a_guest_is_told_its_identity_once_when_it_hears_and_is_ready_when_it_has_it(named: Peer) -> None:
    named.send("U")
    named.send("A")
    named.send("A")
    kind, number, payload = named.take()
    assert (kind, payload) == ("C", encode_configure(NAMED))
    named.send("R", 0, struct.pack("<H", 8080))
    with pytest.raises(TareError, match="not ready after"):
        named.channel.wait("ready", 0.05)
    between = time.monotonic_ns()
    named.send("C", number)
    named.channel.wait("ready", 20)
    assert dict(named.timeline)["ready"] >= between
    named.channel.stop()
    assert named.take()[0] == "S", "nothing was sent twice"


def test_a_guest_that_has_its_identity_before_its_service_answers_is_ready_with_the_service(named: Peer) -> None:
    named.send("A")
    named.send("C", named.take()[1])
    with pytest.raises(TareError, match="not ready after"):
        named.channel.wait("ready", 0.05)
    named.send("R", 0, struct.pack("<H", 8080))
    named.channel.wait("ready", 20)


def test_a_guest_that_cannot_take_its_identity_is_never_ready(named: Peer) -> None:
    named.send("A")
    named.send("C", named.take()[1], b"eth0: setting the MTU: Invalid argument")
    named.send("R", 0, struct.pack("<H", 8080))
    with pytest.raises(TareError, match="configuring the instance: eth0: setting the MTU"):
        named.channel.wait("ready", 20)


def test_a_guest_without_an_identity_is_told_nothing(peer: Peer) -> None:
    peer.send("A")
    peer.send("R", 0, struct.pack("<H", 8080))
    peer.channel.wait("ready", 20)
    peer.channel.stop()
    assert peer.take()[0] == "S"


def test_configuring_again_sends_time_and_entropy_that_are_new_each_time(peer: Peer) -> None:
    seen = []
    with ThreadPoolExecutor() as pool:
        for _ in range(2):
            before, done = time.time_ns(), pool.submit(peer.channel.configure, NAMED, 20, renew=True)
            kind, number, payload = peer.take()
            words = dict(word.split(b"=", 1) for word in payload.split(b"\0") if word)
            assert kind == "C"
            assert before <= int(words[b"time"]) <= time.time_ns()
            seen.append(words[b"entropy"])
            sent = time.monotonic_ns()
            peer.send("C", number)
            assert done.result(20) >= sent
    assert len(set(seen)) == 2
    assert len(bytes.fromhex(seen[0].decode())) == channel.ENTROPY_BYTES


def test_a_hostile_complaint_is_cut_and_does_nothing_to_a_terminal(peer: Peer) -> None:
    with ThreadPoolExecutor() as pool:
        done = pool.submit(peer.channel.configure, NAMED)
        peer.send("C", peer.take()[1], b"\x1b[2J\xff" * 100_000)
        with pytest.raises(TareError) as caught:
            done.result(20)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 2000


def test_a_guest_that_does_not_answer_its_configuration_is_given_up(peer: Peer) -> None:
    with pytest.raises(TareError, match=r"configuring the instance: not done after 0\.01 s; last words: kernel panic"):
        peer.channel.configure(NAMED, 0.01)
