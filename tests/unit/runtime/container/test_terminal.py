"""Our own terminal: raw and back, its size, the keys that let go."""

from __future__ import annotations

import os
import termios

import pytest

from runtime.container import terminal
from runtime.container.terminal import KeyWatch
from runtime.errors import UsageError


def test_raw_is_undone_whatever_happens() -> None:
    master, slave = os.openpty()
    before = termios.tcgetattr(slave)

    def fail() -> None:
        with terminal.raw(slave):
            assert termios.tcgetattr(slave)[3] & (termios.ECHO | termios.ICANON) == 0
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)


def test_what_is_no_terminal_stays_as_it_is() -> None:
    source, sink = os.pipe()
    with terminal.raw(source):
        assert terminal.size(source) is None
    os.close(source)
    os.close(sink)


def test_a_size_is_given_and_read() -> None:
    master, slave = os.openpty()
    assert terminal.size(slave) is None  # 0 by 0: nobody has said
    terminal.resize(master, (33, 99))
    assert terminal.size(slave) == (33, 99)
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("text", "keys"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("a,B", b"aB"), ("ctrl-@,ctrl-[", b"\0\x1b"), ("", b"")]
)
def test_keys_as_docker_writes_them(text: str, keys: bytes) -> None:
    assert terminal.parse_keys(text) == keys


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-pp", "xy", "ctrl-1"])
def test_what_is_no_key(text: str) -> None:
    with pytest.raises(UsageError, match="not a key"):
        terminal.parse_keys(text)


def test_the_sequence_is_seen_across_reads_and_nothing_else_is_lost() -> None:
    watch = KeyWatch(b"\x10\x11")
    assert watch.filter(b"ab\x10") == (b"ab", False)
    assert watch.filter(b"c") == (b"\x10c", False)
    assert watch.filter(b"\x10\x10") == (b"\x10", False)
    assert watch.filter(b"\x11rest") == (b"", True)
    assert KeyWatch(b"").filter(b"\x10\x11") == (b"\x10\x11", False)
