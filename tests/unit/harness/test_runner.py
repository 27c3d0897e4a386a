"""The engine on fakes: everything measured once, in order, on instances that are what a workload asked for."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.driver import Kind
from tests.fakes import SPEC, Behaviour, FakeInstance
from tests.unit.harness.engine import (
    Bench,
    demand_schema,
    everything,
    order,
    outcomes,
    tiny_profile,
    workload,
)
from workloads.base import Context, Stage
from workloads.metric import Sample


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


def test_finished_says_what_the_harness_itself_used(tmp_path: Path) -> None:
    figures = Bench(tmp_path).run().events[-1].figures
    assert set(figures) == {"elapsed_s", "harness_cpu_s", "harness_cpu_fraction"}
    assert 0 < figures["harness_cpu_s"] <= figures["elapsed_s"] * 2


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


def test_the_host_state_of_a_startup_covers_the_boot(tmp_path: Path) -> None:
    bench = Bench(tmp_path, behaviours={"container": Behaviour(launch_s=0.2)}, kinds={"container": Kind.CONTAINER})
    run = bench.run()
    covered = {r.cell.workload: r.host_state["elapsed_s"] for r in run.records if r.block == 0}
    assert covered["boot"] >= 0.2
    assert covered["one"] < 0.2
    assert covered["end"] < 0.2
