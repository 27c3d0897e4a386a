"""The engine on fakes that fail, hang and lie: each is told and counted, and the run goes on."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.profiles import Entry
from harness.results import Outcome
from runtime.driver import Kind
from runtime.errors import TareError
from tests.fakes import Behaviour, FakeInstance
from tests.unit.harness.engine import (
    Bench,
    launching,
    outcomes,
    standard_workloads,
    tiny_profile,
    workload,
)
from workloads.base import Context, Stage
from workloads.metric import Sample


def test_a_driver_that_cannot_work_is_skipped_with_its_reason_once_a_cell(tmp_path: Path) -> None:
    run = Bench(tmp_path, unusable={"container": "no overlay (load it)"}).run()
    skipped = [record for record in run.records if record.cell.driver == "container"]
    assert {record.reason for record in skipped} == {"no overlay (load it)"}
    assert {record.outcome for record in skipped} == {Outcome.SKIPPED}
    assert len(skipped) == 6
    assert outcomes(tuple(r for r in run.records if r.cell.driver == "native")).keys() == {"ok"}


@pytest.mark.parametrize(
    "error", [TareError("launch", "no memory"), OSError(12, "Cannot allocate"), RuntimeError("odd")]
)
def test_a_launch_that_fails_fails_its_cells_and_the_run_goes_on(tmp_path: Path, error: Exception) -> None:
    errors = iter([error])
    run = Bench(tmp_path, behaviours={"container": Behaviour(fail_launch=lambda ordinal: next(errors, None))}).run()
    failed = [record for record in run.records if record.outcome is Outcome.FAILED]
    assert len(failed) == 4
    assert {record.block for record in failed} == {failed[0].block}
    assert all(record.reason.startswith("no instance: ") and not record.samples for record in failed)
    assert "Traceback" in (tmp_path / "run" / "logs" / "failures.log").read_text()


def test_an_instance_that_dies_in_a_session_fails_the_rest_of_its_visit_alone(tmp_path: Path) -> None:
    def die(context: Context) -> Iterator[Sample]:
        if context.driver.name == "container":
            context.shared.exec(("please die",), 1)
        yield Sample("boot.value", 1.0)

    workloads = standard_workloads() | {"boot": workload("boot", Stage.LAUNCH, die)}
    bench = Bench(tmp_path, workloads=workloads, behaviours={"container": Behaviour(die_exec="please die")})
    run = bench.run()
    lost = [r for r in run.records if r.cell.driver == "container" and r.cell.workload in ("one", "two", "end")]
    assert {record.outcome for record in lost} == {Outcome.FAILED}
    assert all("died during boot" in record.reason for record in lost)
    assert outcomes(tuple(r for r in run.records if r.cell.driver == "native")).keys() == {"ok"}
    assert all(r.outcome is Outcome.OK for r in run.records if r.cell.workload == "own")


@pytest.mark.parametrize(
    ("sample", "why"),
    [
        (Sample("one.value", math.nan), "came out as nan"),
        (Sample("one.value", math.inf), "came out as inf"),
        (Sample("other.value", 1.0), "does not declare"),
        (None, "yielded no sample"),
    ],
)
def test_what_is_no_number_becomes_a_failure(tmp_path: Path, sample: Sample | None, why: str) -> None:
    def measure(context: Context) -> Iterator[Sample]:
        if sample is not None:
            yield sample

    run = Bench(tmp_path, workloads=standard_workloads() | {"one": workload("one", Stage.SESSION, measure)}).run()
    failed = [record for record in run.records if record.cell.workload == "one"]
    assert len(failed) == 6
    assert all(r.outcome is Outcome.FAILED and why in r.reason and r.samples == () for r in failed)


def test_instances_a_failing_workload_forgot_are_closed(tmp_path: Path) -> None:
    def forget(context: Context) -> Iterator[Sample]:
        yield Sample("own.value", float(context.launch().alive()))
        raise ValueError("oh\nno")

    bench = Bench(tmp_path, workloads=standard_workloads() | {"own": workload("own", Stage.OWN, forget)})
    run = bench.run()
    assert bench.open_instances() == []
    assert {r.reason for r in run.records if r.cell.workload == "own"} == {"ValueError: oh no"}


def test_a_cell_that_hangs_is_ended_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runner._GRACE_S", 0.0)

    def hang(context: Context) -> Iterator[Sample]:
        if context.driver.name == "container":
            time.sleep(30)
        yield from launching(context)

    profile = tiny_profile(
        entries={**tiny_profile().entries, "own": Entry(limit_s=0.1)}, ready_s=dict.fromkeys(Kind, 0.1)
    )
    workloads = standard_workloads() | {"own": workload("own", Stage.OWN, hang)}
    began_s = time.monotonic()
    run = Bench(tmp_path, workloads=workloads, profile=profile).run()
    assert time.monotonic() - began_s < 10
    hung = [record for record in run.records if str(record.cell) == "own[container]"]
    assert all("hung beyond its time limit" in record.reason for record in hung)
    assert outcomes(run.records)["failed"] == 2


def test_leftovers_are_recorded_and_swept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, behaviours={"container": Behaviour(leave_on_close=True)})
    run = bench.run()
    leftovers = [event for event in run.events if event.event == "leftover"]
    assert leftovers
    assert all("container: dir" in event.detail for event in leftovers)
    assert bench.drivers["container"].leftovers() == []
    ends = [record for record in run.records if str(record.cell) == "end[container]"]
    assert all("not closed cleanly" in record.reason for record in ends)


def test_a_session_that_hangs_takes_the_rest_of_its_visit_along_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.runner._GRACE_S", 0.0)

    def hang(context: Context) -> Iterator[Sample]:
        if context.driver.name == "container":
            time.sleep(30)
        yield Sample("boot.value", 1.0)

    profile = tiny_profile(
        entries={**tiny_profile().entries, "boot": Entry(limit_s=0.1)}, ready_s=dict.fromkeys(Kind, 0.1)
    )
    run = Bench(
        tmp_path, workloads=standard_workloads() | {"boot": workload("boot", Stage.LAUNCH, hang)}, profile=profile
    ).run()
    failed = [record for record in run.records if record.outcome is Outcome.FAILED]
    assert {record.cell.workload for record in failed} == {"boot", "one", "two", "end"}
    assert {record.cell.driver for record in failed} == {"container"}
    assert sum("something still runs" in record.reason for record in failed) == 6


def test_a_launch_and_a_close_that_hang_are_ended_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.runner._GRACE_S", 0.0)
    monkeypatch.setattr("harness.runner._CLOSE_S", 0.1)
    profile = tiny_profile(ready_s=dict.fromkeys(Kind, 0.1))
    behaviours = {"container": Behaviour(launch_s=30.0)}
    run = Bench(tmp_path / "launch", profile=profile, behaviours=behaviours).run()
    reasons = {r.reason for r in run.records if r.cell.driver == "container" and r.cell.workload == "boot"}
    assert reasons == {"no instance: launch by container: hung beyond its time limit"}
    assert outcomes(tuple(r for r in run.records if r.cell.driver == "native")).keys() == {"ok"}
    monkeypatch.setattr(FakeInstance, "close", lambda self: time.sleep(30))
    shared = {name: each for name, each in standard_workloads().items() if each.stage is not Stage.OWN}
    run = Bench(tmp_path / "close", profile=profile, kinds={"container": Kind.CONTAINER}, workloads=shared).run()
    ends = [record for record in run.records if record.cell.workload == "end"]
    assert all("close of tare-" in r.reason and "hung" in r.reason for r in ends)
    assert run.events[-1].event == "finished"


def test_what_a_failed_cell_launched_is_closed_before_the_next_cell_begins(tmp_path: Path) -> None:
    open_then: list[int] = []

    def forget(context: Context) -> Iterator[Sample]:
        yield Sample("one.value", float(context.launch().alive()))
        raise ValueError("oh no")

    def look(context: Context) -> Iterator[Sample]:
        open_then.append(sum(not each.closed for each in bench.drivers["container"].instances))
        yield Sample("end.value", 1.0)

    workloads = {"one": workload("one", Stage.LAUNCH, forget), "end": workload("end", Stage.SESSION, look)}
    bench = Bench(tmp_path, workloads=workloads, kinds={"container": Kind.CONTAINER})
    bench.run()
    assert open_then == [1, 1]


def test_a_cell_whose_instance_could_not_be_closed_is_no_number(tmp_path: Path) -> None:
    def forget(context: Context) -> Iterator[Sample]:
        yield Sample("own.value", float(context.launch().alive()))

    workloads = {"own": workload("own", Stage.OWN, forget)}
    bench = Bench(
        tmp_path,
        workloads=workloads,
        kinds={"container": Kind.CONTAINER},
        behaviours={"container": Behaviour(leave_on_close=True)},
    )
    run = bench.run()
    assert {(r.outcome, r.samples) for r in run.records} == {(Outcome.FAILED, ())}
    assert all("told to leave something behind" in record.reason for record in run.records)


def test_an_instance_that_does_not_become_ready_is_closed_before_anyone_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: FakeInstance, timeout_s: float) -> None:
        raise TareError("readiness", "it never came")

    still_open: list[object] = []

    def launch(context: Context) -> Iterator[Sample]:
        try:
            context.launch()
        finally:
            still_open.extend(bench.open_instances())
        yield Sample("own.value", 1.0)

    monkeypatch.setattr(FakeInstance, "wait_ready", never)
    bench = Bench(tmp_path, workloads={"own": workload("own", Stage.OWN, launch)})
    run = bench.run()
    assert {record.reason for record in run.records} == {"readiness: it never came"}
    assert still_open == []
