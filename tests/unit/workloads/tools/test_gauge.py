"""The gauge's command lines and what it prints; where it lies is the image recipe's word."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.images import recipe
from runtime.instance import ExecResult
from tests.fakes import Behaviour
from tests.unit.workloads.visits import visit
from workloads.base import Invalid
from workloads.tools import gauge


def test_program_is_where_the_recipe_puts_it() -> None:
    assert gauge.PROGRAM == recipe.GAUGE


def test_totals_give_a_rate() -> None:
    work = gauge.parse(b'{"work": 2589851648, "elapsed_s": 0.200004951}\n')
    assert work == gauge.Work(2589851648, 0.200004951)
    assert work.rate == 2589851648 / 0.200004951


@pytest.mark.parametrize("output", [b"", b"{", b"[]", b'{"work": 1}', b'{"work": "x", "elapsed_s": 1}'])
def test_output_without_totals_is_invalid(output: bytes) -> None:
    with pytest.raises(Invalid, match="no totals"):
        gauge.parse(output)


@pytest.mark.parametrize("output", [b'{"work": 0, "elapsed_s": 1}', b'{"work": 1, "elapsed_s": 0}'])
def test_no_work_is_invalid(output: bytes) -> None:
    with pytest.raises(Invalid, match="no work"):
        gauge.parse(output)


def test_words_are_followed_by_seconds_and_the_rest() -> None:
    assert gauge.timed_argv("triad", 0.15, 64) == (gauge.PROGRAM, "triad", "0.15", "64")


def test_nobody_there_is_an_answer_and_any_other_failure_is_not() -> None:
    def ended(code: int, output: bytes = b"") -> ExecResult:
        return ExecResult((gauge.PROGRAM, "connect"), code, output, b"", 1)

    assert gauge.reached(ended(0, b'{"work": 1, "elapsed_s": 0.1}'))
    assert not gauge.reached(ended(gauge.UNREACHABLE))
    with pytest.raises(TareError, match="exit 1"):
        gauge.reached(ended(1))
    with pytest.raises(Invalid, match="no totals"):
        gauge.reached(ended(0, b"hello"))


def test_place_is_addresses_and_gateway(tmp_path: Path) -> None:
    context, driver = visit(tmp_path)
    assert gauge.place(context.shared, 1) == gauge.Place(("10.87.0.2",), "10.87.0.1")
    driver.behaviour.reply = lambda instance, argv: ExecResult(tuple(argv), 0, b"{}", b"", 1)
    with pytest.raises(TareError, match="no place in its output"):
        gauge.place(context.shared, 1)


def test_clock_off_the_hosts_pace_is_invalid(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(guest_clock=2.0))
    with pytest.raises(Invalid, match="clock"):
        gauge.measure(context.shared, "syscall", 2)
