"""A console is a socket that somebody prints into."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from runtime.instance import Timeline
from runtime.vm.console import KEPT_BYTES, Console


class Line:
    """A console and QEMU's end of it."""

    def __init__(self, marks: dict[str, bytes]) -> None:
        self.timeline = Timeline()
        self.qemu, ours = socket.socketpair()
        self.console = Console(ours, self.timeline, marks)

    def prints(self, data: bytes, until: str) -> None:
        self.qemu.sendall(data)
        deadline = time.monotonic() + 10
        while until not in self.console.text():
            assert time.monotonic() < deadline
            time.sleep(0.001)


@pytest.fixture
def line() -> Iterator[Line]:
    line = Line({"firmware": b"Bds", "kernel": b"EFI stub"})
    yield line
    line.qemu.close()
    line.console.close()


def test_phases_are_stamped_once_even_when_cut_in_two(line: Line) -> None:
    line.prints(b"..Bds", "Bds")
    first = dict(line.timeline)["firmware"]
    line.prints(b"\nEFI st", "EFI st")
    assert "kernel" not in line.timeline
    line.prints(b"ub Bds.", "stub Bds.")
    assert "kernel" in line.timeline
    assert dict(line.timeline)["firmware"] == first


def test_an_endless_printer_is_kept_within_bounds(line: Line) -> None:
    for _ in range(40):
        line.console.feed(b"x" * (64 << 10))
        assert len(line.console._kept) <= 2 * KEPT_BYTES + (64 << 10)
    line.console.feed(b"end")
    assert line.console.text().endswith("xend")
    assert len(line.console.text()) <= KEPT_BYTES


def test_tail_is_one_printable_line(line: Line) -> None:
    line.console.feed(b"\x1b[2Jfirst\r\n\r\nKernel panic \xff\n")
    assert line.console.tail() == "[2Jfirst | Kernel panic �"


def test_an_empty_console_says_so(line: Line) -> None:
    assert line.console.tail() == "its console is empty"


def test_text_stays_after_qemu_is_gone_and_closing_twice_is_no_error(line: Line) -> None:
    line.prints(b"bye", "bye")
    line.qemu.close()
    line.console.close()
    line.console.close()
    assert line.console.text() == "bye"
