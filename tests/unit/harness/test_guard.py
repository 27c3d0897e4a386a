"""Interruptions arrive where they do no harm."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from harness.guard import Guard, Overdue

ENDINGS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def end(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", ENDINGS)
def test_each_way_of_ending_a_process_becomes_an_interrupt(number: int) -> None:
    with Guard(), pytest.raises(KeyboardInterrupt):
        end(number)


def test_an_interrupt_waits_until_the_outermost_critical_block_is_left() -> None:
    steps: list[str] = []

    def make() -> None:
        with guard.critical():
            with guard.critical():
                end()
                steps.append("inner")
            steps.append("outer")
        steps.append("after")

    with Guard() as guard, pytest.raises(KeyboardInterrupt):
        make()
    assert steps == ["inner", "outer"]


def test_a_second_interrupt_does_not_break_the_cleaning_up() -> None:
    with Guard() as guard:
        with pytest.raises(KeyboardInterrupt):
            end()
        end()
        end(signal.SIGTERM)
        with guard.critical():
            end()
        guard.check()


def test_the_old_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (*ENDINGS, signal.SIGALRM)]
    with Guard():
        assert [signal.getsignal(number) for number in (*ENDINGS, signal.SIGALRM)] != before
    assert [signal.getsignal(number) for number in (*ENDINGS, signal.SIGALRM)] == before


def test_a_block_that_hangs_is_ended_by_its_name() -> None:
    with Guard() as guard, pytest.raises(Overdue, match="the launch"), guard.limit(0.05, "the launch"):
        time.sleep(5)


def test_limits_nest_and_an_inner_one_never_extends_the_outer() -> None:
    with Guard() as guard:
        with pytest.raises(Overdue, match="outer"), guard.limit(0.1, "outer"), guard.limit(60, "inner"):
            time.sleep(5)
        with guard.limit(0.5, "outer"):
            with pytest.raises(Overdue, match="inner"), guard.limit(0.05, "inner"):
                time.sleep(5)
            with pytest.raises(Overdue, match="outer"):
                time.sleep(5)
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_a_block_that_is_done_in_time_leaves_no_alarm() -> None:
    with Guard() as guard:
        with guard.limit(0.05, "quick"):
            pass
        time.sleep(0.1)


def test_other_threads_are_left_alone() -> None:
    seen: list[BaseException] = []

    def watched(body: Callable[[], None]) -> None:
        try:
            body()
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test wants to see it
            seen.append(error)

    def body() -> None:
        with guard.critical(), guard.limit(0.01, "thread"):
            time.sleep(0.05)

    with Guard() as guard:
        thread = threading.Thread(target=watched, args=(body,))
        thread.start()
        thread.join()
    assert seen == []
