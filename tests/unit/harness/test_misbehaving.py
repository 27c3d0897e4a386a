"""A comparator that hangs, dies or lies about success: counted failures with their reason, all else as without it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from harness import cli
from harness.results import Outcome, Run
from runtime.driver import Kind
from runtime.errors import TareError
from tests import fakes
from tests.fakes import Behaviour, FakeDriver
from tests.unit.harness import fakebench
from tests.unit.harness.engine import Bench, demand_schema

ALL = {"startup", "teardown", "overhead_cpu", "overhead_disk", "footprint"}


@dataclass(frozen=True)
class Case:
    """How the comparator behaves; which of its cells must fail and what one of them says. The others may or may not."""

    behaviour: dict[str, Any]
    fail: set[str]
    said: str
    succeed: frozenset[str] = frozenset()


CASES = {
    "hangs at launch": Case({"launch_s": 30.0}, ALL, "no instance: launch by other: hung beyond its time limit"),
    "dies at launch": Case(
        {"fail_launch": lambda ordinal: TareError("other create", "exit -9: it said nothing")},
        ALL,
        "no instance: other create: exit -9: it said nothing",
    ),
    "lies": Case({"lies": True}, ALL, "no instance: launch by other: it said success and nothing runs"),
    "hangs in a workload": Case(
        {"hang_exec": "sysbench cpu"}, {"overhead_cpu"}, "not done after", frozenset(ALL - {"overhead_cpu"})
    ),
    "dies in a workload": Case(
        {"die_exec": "sysbench cpu"}, {"overhead_cpu", "teardown"}, "it is gone", frozenset({"startup"})
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_comparator_that_misbehaves_costs_its_own_cells_and_the_exit_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    fakebench.install(monkeypatch)
    fakes.register(monkeypatch, "other", Kind.CONTAINER, Behaviour(**case.behaviour))
    monkeypatch.setenv("TARE_ROOT", str(tmp_path / "state"))
    monkeypatch.setattr("harness.runner._GRACE_S", -1.9)  # with the profile's 2 s until ready, a tenth of a second
    out = tmp_path / "out"
    words = ["--out", str(out), "--drivers", "native,container,other", "--no-report"]
    done = CliRunner().invoke(cli.bench, words, standalone_mode=False)
    run = Run.load(out)
    theirs = [record for record in run.records if record.cell.driver == "other"]
    failed = {record.cell.workload for record in theirs if record.outcome is Outcome.FAILED}
    assert case.fail <= failed <= ALL - case.succeed
    assert any(case.said in record.reason for record in theirs)
    for record in theirs:
        assert (record.outcome is Outcome.FAILED) == bool(record.reason) == (not record.samples)
    others = [record for record in run.records if record.cell.driver != "other"]
    assert {record.reason for record in others} == {""}
    assert {record.outcome for record in others} == {Outcome.OK}
    assert {record.cell.label for record in others} == {"native", "native~aa", "container"}
    assert {(record.cell, record.block) for record in run.records} == {
        (cell, block) for cell in run.header.cells for block in range(2)
    }
    assert run.events[-1].event == "finished"
    assert done.return_value == 1
    count = sum(record.outcome is Outcome.FAILED for record in theirs)
    assert f"{count} cells failed" in done.output
    demand_schema(out)


def test_a_driver_that_hangs_while_it_is_swept_is_recorded_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeDriver.leftovers

    def hang(self: FakeDriver) -> list[str]:
        if self.name == "container":
            time.sleep(30)
        return real(self)

    monkeypatch.setattr("harness.runner._SWEEP_S", 0.1)
    monkeypatch.setattr(FakeDriver, "leftovers", hang)
    run = Bench(tmp_path).run()
    told = {event.detail for event in run.events if event.event == "leftover"}
    assert told == {"container: could not be looked for or swept: sweep of container: hung beyond its time limit"}
    assert {record.outcome for record in run.records} == {Outcome.OK}
    assert run.events[-1].event == "finished"
