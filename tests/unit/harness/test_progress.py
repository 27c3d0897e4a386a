"""What a run shows: lines that say what happened, with the time that is left."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from harness.progress import Display, amount, duration, own_cost
from harness.results import Cell, Event, Outcome, Record, Run
from tests.unit.harness.engine import header
from workloads.metric import Sample


def record(outcome: Outcome, reason: str = "", *values: float) -> Record:
    return Record(
        cell=Cell("startup", "container", "container"),
        block=2,
        position=0,
        started_utc="",
        started_ns=0,
        elapsed_ns=1_500_000_000,
        outcome=outcome,
        reason=reason,
        samples=tuple(Sample("startup.ready", value) for value in values),
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (12.3, "12 s"), (250, "4 min 10 s"), (3900, "1 h 05 min"), (86400, "24 h 00 min")],
)
def test_durations_read_aloud(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def ended(**figures: float) -> Run:
    events = (Event(event="started", at_utc=""), Event(event="finished", at_utc="", figures=figures))
    return Run(Path(), header(), (), (), events)


def test_the_end_says_what_the_harness_itself_used_of_a_cpu() -> None:
    text = "the harness itself used 4.2 s of CPU in 4 min 10 s, 1.7% of a CPU"
    assert own_cost(ended(harness_cpu_s=4.2, elapsed_s=250.0, harness_cpu_fraction=0.017)) == text


@pytest.mark.parametrize("figures", [{}, {"elapsed_s": 250.0}, {"elapsed_s": 0.0, "harness_cpu_s": 0.0}])
def test_a_journal_that_does_not_say_what_the_harness_used_gives_no_figure(figures: dict[str, float]) -> None:
    assert ended(**figures).own_cpu() is None
    assert own_cost(ended(**figures)) == ""


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.00866, "s", "8.66 ms"),
        (21.6, "s", "21.6 s"),
        (4.2e-7, "s", "0.42 µs"),
        (0, "s", "0 s"),
        (278_921_216, "B", "266 MiB"),
        (3e9, "B/s", "2.79 GiB/s"),
        (512, "B", "512 B"),
        (-0.02, "1", "-0.02 1"),
        (4449.2, "events/s", "4.45e+03 events/s"),
    ],
)
def test_amounts_read_aloud_with_their_unit(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_plain_lines_off_a_terminal_say_block_outcome_figure_and_time_left() -> None:
    stream = io.StringIO()
    with Display(stream) as display:
        display.units = {"startup.ready": "s"}
        display.running("startup[container], block 3", 61)
        display.ended(record(Outcome.OK, "", 0.25, 0.5, 0.75), 60)
        display.ended(record(Outcome.FAILED, "no [brackets] are markup"), 5)
        display.noted("that is all")
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    words = " ".join(lines[0].split())
    assert words == "3 ok startup[container] 1.5 s startup.ready 500 ms, 3 samples (1 min 00 s left)"
    assert "no [brackets] are markup" in lines[1]
    assert "\x1b" not in stream.getvalue()


def test_a_terminal_gets_one_moving_line_with_the_time_left() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    with Display(stream) as display:
        display.running("startup[container], block 3", 61)
        display.saying("12 instances")
        display.ended(record(Outcome.SKIPPED, "time budget"), 60)
    assert "12 instances · 1 min 01 s left" in stream.getvalue()
    assert "time budget" in stream.getvalue()


def test_what_a_comparator_said_does_nothing_to_a_terminal() -> None:
    stream = io.StringIO()
    with Display(stream) as display:
        display.ended(record(Outcome.FAILED, "runc run: \x1b[2Jgone\x07"), 0.0)
        display.noted("runc cannot be measured here: \x1b]0;title\x07")
    assert "\x1b" not in stream.getvalue()
    assert r"\x1b[2Jgone" in stream.getvalue()
