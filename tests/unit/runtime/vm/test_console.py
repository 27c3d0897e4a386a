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
        self.ends: list[str] = []
        self.console = Console(ours, self.timeline, marks, self.ends.append)

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


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (
            b"!!!! X64 Exception Type - 0D(#GP - General Protection)  CPU Apic ID - 0 !!!!",
            "the firmware crashed",
        ),
        (b"[    1.2] ---[ end Kernel panic - not syncing: No working init found. ]---", "the kernel panicked"),
    ],
)
def test_a_guest_that_stands_still_after_a_crash_is_told_of_once(line: Line, words: bytes, why: str) -> None:
    line.console.feed(words[:20])
    assert line.ends == []
    line.console.feed(words[20:])
    line.console.feed(words)
    assert line.ends == [why]


def test_a_panic_that_reboots_is_not_an_end_that_the_console_tells(line: Line) -> None:
    line.console.feed(b"[    1.2] Kernel panic - not syncing: Attempted to kill init!\r\nRebooting in 1 seconds..")
    assert line.ends == []


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


def test_tail_of_a_panic_is_its_beginning_and_not_the_registers_behind(line: Line) -> None:
    line.console.feed(b"before\nKernel panic - not syncing: sysrq triggered crash\n" + b"RAX: 0000\n" * 1000)
    assert line.console.tail().startswith("Kernel panic - not syncing: sysrq triggered crash | RAX: 0000")
    assert len(line.console.tail()) < 3000


def test_an_empty_console_says_so(line: Line) -> None:
    assert line.console.tail() == "its console is empty"


def test_text_stays_after_qemu_is_gone_and_closing_twice_is_no_error(line: Line) -> None:
    line.prints(b"bye", "bye")
    line.qemu.close()
    line.console.close()
    line.console.close()
    assert line.console.text() == "bye"
