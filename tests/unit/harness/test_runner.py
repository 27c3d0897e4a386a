"""The engine on fakes: everything measured once, failures counted, interruptions resumed, nothing left behind."""

from __future__ import annotations

import gc
import math
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.assignment import Observer
from harness.journal import JournalError
from harness.profiles import Entry
from harness.results import Cell, Outcome, Record
from harness.runner import TIME_BUDGET, Interrupted
from runtime.driver import Kind
from runtime.errors import TareError
from tests.fakes import SPEC, Behaviour, FakeInstance
from tests.unit.harness.engine import Bench, demand_schema, launching, order, standard_workloads, tiny_profile, workload
from workloads.base import Context, Stage
from workloads.metric import Sample


def outcomes(records: tuple[Record, ...]) -> Counter[str]:
    return Counter(str(record.outcome) for record in records)


def everything(bench: Bench) -> set[tuple[Cell, int]]:
    return {(one.cell, block) for one in bench.planned for block in range(1 if one.once else 2)}


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


class Stopping(Observer):
    """Ends the run as a user would, at a chosen moment."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self.after, self.number, self.seen = after, number, 0

    def running(self, what: str, left_s: float) -> None:
        self._count()

    def ended(self, record: Record, left_s: float) -> None:
        self._count()

    def _count(self) -> None:
        self.seen += 1
        if self.seen == self.after:
            os.kill(os.getpid(), self.number)


def test_every_cell_of_every_block_gets_one_record_in_the_schedules_order(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    run = bench.run()
    keys = [(record.cell, record.block) for record in run.records]
    assert len(keys) == len(set(keys))
    assert set(keys) == everything(bench)
    assert outcomes(run.records) == {"ok": len(keys)}
    for block in range(2):
        positions = [record.position for record in run.records if record.block == block]
        assert positions == sorted(positions)
    assert [event.event for event in run.events] == ["started", "stopped", "finished"]
    assert {facts.driver for facts in run.facts} == {"native", "container"}
    assert bench.open_instances() == []
    assert demand_schema(tmp_path / "run") == len(keys) + 6


def test_the_same_seed_measures_in_the_same_order(tmp_path: Path) -> None:
    orders = [order(Bench(tmp_path / str(index), seed=seed).run().records) for index, seed in enumerate((1, 1, 2))]
    assert orders[0] == orders[1]
    assert orders[0] != orders[2]


def test_launch_session_and_teardown_share_one_instance_and_own_gets_none(tmp_path: Path) -> None:
    seen: dict[str, str | None] = {}

    def note(context: Context) -> Iterator[Sample]:
        seen[str(len(seen))] = context.instance.id if context.instance else None
        yield Sample("x.value", 1.0)

    stages = {name: workload("x", stage, note) for name, stage in zip("abcd", Stage, strict=True)}
    profile = tiny_profile(min_blocks=1, max_blocks=1, entries={})
    Bench(tmp_path, workloads=stages, kinds={"container": Kind.CONTAINER}, profile=profile).run()
    assert list(seen.values()) == ["tare-000000000000"] * 3 + [None]


def test_a_run_interrupted_at_ten_random_moments_and_resumed_gives_the_full_set_in_the_same_order(
    tmp_path: Path,
) -> None:
    whole = Bench(tmp_path / "whole").run()
    bench, rng, errors = Bench(tmp_path / "torn"), random.Random(5), list[Interrupted]()
    while True:
        try:
            run = bench.run(Stopping(rng.randint(2, 9), rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])))
            break
        except Interrupted as error:
            errors.append(error)
        assert bench.open_instances() == []
        assert bench.load().events[-1].event == "interrupted"
    interruptions = len(errors)
    assert interruptions >= 10
    assert {(error.exit_code, "--resume" in error.do) for error in errors} == {(130, True)}
    assert order(run.records) == order(whole.records)
    assert Counter(event.event for event in run.events)["interrupted"] == interruptions
    assert len(run.facts) == 2
    demand_schema(tmp_path / "torn" / "run")


def test_an_interruption_during_launch_waits_until_the_instance_is_known(tmp_path: Path) -> None:
    bench = Bench(tmp_path, behaviours={"container": Behaviour(launch_s=0.2)}, kinds={"container": Kind.CONTAINER})
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    class During(Observer):
        def running(self, what: str, left_s: float) -> None:
            if "starts" in what:
                pid = os.getpid()
                if os.fork() == 0:  # pragma: no cover - the child
                    time.sleep(0.1)
                    os.kill(pid, signal.SIGINT)
                    os._exit(0)

    with pytest.raises(Interrupted):
        bench.run(During())
    os.wait()
    assert len(bench.drivers["container"].instances) == 1
    assert bench.open_instances() == []


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


def test_a_workload_gets_a_native_peer_and_instances_of_other_specs_which_are_closed_behind_it(tmp_path: Path) -> None:
    seen: list[tuple[Kind, str | None]] = []

    def forget(context: Context) -> Iterator[Sample]:
        for instance in (context.peer(), context.launch(replace(SPEC, hostname="other"))):
            assert isinstance(instance, FakeInstance)
            seen.append((instance.driver.kind, instance.spec.hostname))
        yield Sample("own.value", 1.0)

    own = {"own": workload("own", Stage.OWN, forget)}
    bench = Bench(tmp_path / "with", workloads=own, kinds={"native": Kind.NATIVE, "container": Kind.CONTAINER})
    bench.run()
    assert (Kind.CONTAINER, "other") in seen
    assert {kind for kind, hostname in seen if hostname is None} == {Kind.NATIVE}
    assert bench.open_instances() == []
    alone = Bench(tmp_path / "without", workloads=own, kinds={"container": Kind.CONTAINER}).run()
    assert all("add native to --drivers" in record.reason for record in alone.records)


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


def test_leftovers_are_recorded_and_swept(tmp_path: Path) -> None:
    bench = Bench(tmp_path, behaviours={"container": Behaviour(leave_on_close=True)})
    run = bench.run()
    leftovers = [event for event in run.events if event.event == "leftover"]
    assert leftovers
    assert all("container: dir" in event.detail for event in leftovers)
    assert bench.drivers["container"].leftovers() == []
    ends = [record for record in run.records if str(record.cell) == "end[container]"]
    assert all("not closed cleanly" in record.reason for record in ends)


def test_finished_says_what_the_harness_itself_used(tmp_path: Path) -> None:
    figures = Bench(tmp_path).run().events[-1].figures
    assert set(figures) == {"elapsed_s", "harness_cpu_s", "harness_cpu_fraction"}
    assert 0 < figures["harness_cpu_s"] <= figures["elapsed_s"] * 2


def test_what_the_harness_used_is_summed_over_the_parts_of_an_interrupted_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(Interrupted):
        bench.run(Stopping(9))
    parts = [event.figures for event in bench.run().events if event.event in ("interrupted", "finished")]
    own = bench.load().own_cpu()
    assert own is not None
    assert len(parts) == 2
    assert own.cpu_s == sum(part["harness_cpu_s"] for part in parts)
    assert own.elapsed_s == sum(part["elapsed_s"] for part in parts)
    assert own.fraction == own.cpu_s / own.elapsed_s


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


def test_the_garbage_collector_waits_until_between_visits(tmp_path: Path) -> None:
    enabled: list[bool] = []

    def look(context: Context) -> Iterator[Sample]:
        enabled.append(gc.isenabled())
        yield Sample("one.value", 1.0)

    collected: list[str] = []
    gc.callbacks.append(lambda phase, info: collected.append(phase))
    try:
        Bench(tmp_path, workloads={"one": workload("one", Stage.SESSION, look)}).run()
    finally:
        gc.callbacks.pop()
    assert not any(enabled)
    assert len(collected) >= 2 * len(enabled)
    assert gc.isenabled()


def test_teardown_begins_when_closing_is_asked_for_whatever_the_driver_stamps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def close(self: FakeInstance) -> None:
        self.closed = True
        self.timeline.stamp("removed")

    monkeypatch.setattr(FakeInstance, "close", close)
    run = Bench(tmp_path, kinds={"container": Kind.CONTAINER}).run()
    for record in run.records:
        if record.cell.workload == "end":
            names = [name for name, _ in record.timeline]
            assert names[-2:] == ["closing", "removed"]


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


def test_what_a_killed_run_left_is_swept_before_anything_is_measured(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    stale = bench.drivers["container"].launch(bench.drivers["container"].prepare(SPEC))
    stale.closed = True
    seen: list[list[str]] = []

    class Watching(Observer):
        def running(self, what: str, left_s: float) -> None:
            seen.append(bench.drivers["container"].leftovers())

    run = bench.run(Watching())
    assert not any(seen)
    assert [event.event for event in run.events][:2] == ["started", "leftover"]


def test_the_host_state_of_a_startup_covers_the_boot(tmp_path: Path) -> None:
    bench = Bench(tmp_path, behaviours={"container": Behaviour(launch_s=0.2)}, kinds={"container": Kind.CONTAINER})
    run = bench.run()
    covered = {r.cell.workload: r.host_state["elapsed_s"] for r in run.records if r.block == 0}
    assert covered["boot"] >= 0.2
    assert covered["one"] < 0.2
    assert covered["end"] < 0.2


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


def test_a_journal_that_can_no_longer_be_written_ends_the_run_and_gives_the_host_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, [9]

    def fsync(fd: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(fd)

    bench = Bench(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(JournalError, match="No space left"):
        bench.run()
    monkeypatch.undo()
    assert bench.open_instances() == []
    assert len(bench.load().records) > 0
    run = bench.run()
    assert {(record.cell, record.block) for record in run.records} == everything(bench)
