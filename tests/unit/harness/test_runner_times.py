"""The engine and its budget, on fakes: what fits, what falls first, and when enough is known."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.profiles import Entry
from harness.results import Outcome
from harness.runner import TIME_BUDGET
from runtime.driver import Kind
from tests.unit.harness.engine import (
    Bench,
    outcomes,
    standard_workloads,
    tiny_profile,
    workload,
)
from workloads.base import Context, Stage
from workloads.metric import Sample


class Clock:
    """The engine's time, which passes only where a workload says so: a loaded host changes nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 1000.0
        own = SimpleNamespace(monotonic=lambda: self.now_s, monotonic_ns=lambda: int(self.now_s * 1e9))
        for module in ("runner", "attempt"):
            monkeypatch.setattr(f"harness.{module}.time", own)

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_what_does_not_fit_into_the_budget_is_skipped_with_that_reason(tmp_path: Path) -> None:
    profile = tiny_profile(budget_s=5.0, entries={**tiny_profile().entries, "own": Entry(expect_s=100)})
    run = Bench(tmp_path, profile=profile, kinds={"container": Kind.CONTAINER}).run()
    skipped = {str(record.cell) for record in run.records if record.outcome is Outcome.SKIPPED}
    assert all(r.reason == TIME_BUDGET for r in run.records if r.outcome is Outcome.SKIPPED)
    assert "own[container]" in skipped
    assert [event.event for event in run.events][-1] == "finished"


def test_no_block_beyond_the_least_number_begins_that_does_not_fit(tmp_path: Path, clock: Clock) -> None:
    def slow(context: Context) -> Iterator[Sample]:
        clock.pass_s(0.1)
        yield Sample("one.value", random.random() + 0.1)

    entries = {name: Entry(expect_s=0.1) for name in standard_workloads()}
    profile = tiny_profile(min_blocks=2, max_blocks=50, budget_s=2.5, entries=entries)
    workloads = {"one": workload("one", Stage.SESSION, slow)}
    run = Bench(tmp_path, profile=profile, workloads=workloads).run()
    blocks = {record.block for record in run.records}
    assert 2 <= len(blocks) < 10
    assert outcomes(run.records).keys() == {"ok"}
    assert TIME_BUDGET in next(event.detail for event in run.events if event.event == "stopped")


def test_blocks_stop_once_the_key_metrics_are_precise_enough(tmp_path: Path) -> None:
    profile = tiny_profile(min_blocks=6, max_blocks=30, key_metrics=("one.value",))
    run = Bench(tmp_path, profile=profile, workloads={"one": workload("one", Stage.SESSION)}).run()
    assert {record.block for record in run.records} == set(range(6))
    assert "wanted 5%" in next(event.detail for event in run.events if event.event == "stopped")


def test_when_time_is_short_the_dearest_visits_fall_first_and_the_cheap_ones_keep_all_their_blocks(
    tmp_path: Path, clock: Clock
) -> None:
    def dear(context: Context) -> Iterator[Sample]:
        clock.pass_s(0.3 if context.driver.name == "container" else 0.0)
        yield Sample("one.value", 1.0)

    entries = {"one": Entry(expect_s=0.3)}
    profile = tiny_profile(min_blocks=6, max_blocks=6, budget_s=1.6, entries=entries)
    run = Bench(tmp_path, profile=profile, workloads={"one": workload("one", Stage.SESSION, dear)}).run()
    blocks = Counter((record.cell.label, str(record.outcome)) for record in run.records)
    assert blocks["native", "ok"] == blocks["native~aa", "ok"] == 6
    assert 0 < blocks["container", "ok"] < 6
    assert blocks["container", "skipped"] == 6 - blocks["container", "ok"]


def test_what_has_but_one_chance_is_not_given_up_for_another_block(tmp_path: Path, clock: Clock) -> None:
    def slow(context: Context) -> Iterator[Sample]:
        clock.pass_s(0.2)
        yield Sample("one.value", 1.0)

    def slower(context: Context) -> Iterator[Sample]:
        clock.pass_s(0.5)
        yield Sample("last.value", 1.0)

    profile = tiny_profile(
        min_blocks=8,
        max_blocks=8,
        budget_s=1.6,
        entries={"one": Entry(expect_s=0.2), "last": Entry(once=True, expect_s=0.5)},
    )
    workloads = {"one": workload("one", Stage.OWN, slow), "last": workload("last", Stage.OWN, slower)}
    run = Bench(tmp_path, profile=profile, workloads=workloads, kinds={"container": Kind.CONTAINER}).run()
    ended = Counter((record.cell.workload, str(record.outcome)) for record in run.records)
    assert ended["last", "ok"] == 1
    assert 0 < ended["one", "ok"] < 8
    assert ended["one", "skipped"] == 8 - ended["one", "ok"]
