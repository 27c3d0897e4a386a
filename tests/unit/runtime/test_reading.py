"""The thread that reads many sockets: each source is told of its own, and let go once, by that thread alone."""

from __future__ import annotations

import os
import socket
import threading

from runtime.reading import Reader, reader

TIMEOUT_S = 20


class Source:
    """Keeps what comes until the other end closes."""

    def __init__(self, by: Reader) -> None:
        ours, self.peer = socket.socketpair()
        self.sock = ours
        self.got = b""
        self.threads: set[str] = set()
        self.arrived = threading.Event()
        self.released = threading.Event()
        by.add(self, ours.fileno())

    def receive(self, buffer: memoryview) -> bool:
        size = self.sock.recv_into(buffer, 0, socket.MSG_DONTWAIT)
        self.got += buffer[:size]
        self.threads.add(threading.current_thread().name)
        self.arrived.set()
        return size > 0

    def release(self) -> None:
        assert not self.released.is_set()
        self.sock.close()
        self.released.set()


def test_a_source_that_ends_is_let_go_and_the_others_are_read_on() -> None:
    by = Reader("tare-test")
    sources = [Source(by) for _ in range(50)]
    for source in sources[::2]:
        source.peer.close()
        assert source.released.wait(TIMEOUT_S)
    for number, source in enumerate(sources[1::2]):
        source.peer.sendall(b"%d" % number)
        assert source.arrived.wait(TIMEOUT_S)
        assert source.got == b"%d" % number
        assert not source.released.is_set()
    assert set().union(*(source.threads for source in sources)) == {"tare-test"}
    for source in sources[1::2]:
        source.peer.close()
        assert source.released.wait(TIMEOUT_S)


def test_a_descriptor_that_was_closed_may_be_anothers_next() -> None:
    by = Reader("tare-test")
    for number in range(100):
        source = Source(by)
        source.peer.sendall(b"%d" % number)
        source.peer.close()
        assert source.released.wait(TIMEOUT_S)
        assert source.got == b"%d" % number


def test_there_is_one_by_name_and_process() -> None:
    assert reader("tare-test") is reader("tare-test")
    assert reader("tare-test") is not reader("tare-other")
    before = reader("tare-test")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            by = reader("tare-test")
            source = Source(by)
            source.peer.close()
            code = 0 if by is not before and source.released.wait(TIMEOUT_S) else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
