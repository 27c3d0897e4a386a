"""Startup and teardown from timelines: whole ones, ones with holes, ones out of order."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.instance import Timeline
from tests.fakes import Behaviour
from tests.unit.workloads.visits import values, visit
from workloads.base import Invalid
from workloads.metric import Phase
from workloads.startup import Startup
from workloads.teardown import Teardown


def test_startup_reads_phases_from_the_timeline(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, kind=Kind.VM)
    samples = list(Startup().measure(context))
    assert [(sample.metric, sample.phase) for sample in samples] == [
        ("startup.spawned", Phase.MEASURE),
        ("startup.userland", Phase.MEASURE),
        ("startup.ready", Phase.MEASURE),
    ]
    assert [sample.value for sample in samples] == pytest.approx([0.4, 3.0, 8.0])


def test_startup_repeats_on_fresh_instances_and_keeps_the_first_as_warmup(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, Behaviour(jitter=0.2), repeats=3)
    samples = list(Startup().measure(context))
    ready = [sample for sample in samples if sample.metric == "startup.ready"]
    assert [sample.labels["iteration"] for sample in ready] == ["0", "1", "2", "3"]
    assert [sample.phase for sample in ready] == [Phase.WARMUP, *[Phase.MEASURE] * 3]
    assert len(set(values(samples, "startup.ready"))) == 4
    assert driver.open_instances() == [context.instance]


@pytest.mark.parametrize(
    "events",
    [
        {"request": 0, "spawned": 1, "userland": 2},
        {"request": 0, "spawned": 1, "userland": 3, "ready": 2},
        {"request": 5, "spawned": 1, "userland": 6, "ready": 7},
        {"spawned": 1, "userland": 2, "ready": 3},
    ],
)
def test_timeline_with_a_hole_or_out_of_order_is_invalid(tmp_path: Path, events: dict[str, int]) -> None:
    context, _ = visit(tmp_path)
    context.shared.timeline = timeline(events)
    with pytest.raises(Invalid, match="timeline"):
        list(Startup().measure(context))


def test_teardown_counts_from_the_request_to_close(tmp_path: Path) -> None:
    context, _ = visit(tmp_path)
    context.shared.timeline = timeline({"request": 0, "closing": 10**9, "stopped": 3 * 10**9, "removed": 4 * 10**9})
    assert [(sample.metric, sample.value) for sample in Teardown().measure(context)] == [
        ("teardown.stopped", 2.0),
        ("teardown.removed", 3.0),
    ]


@pytest.mark.parametrize("events", [{"stopped": 2, "removed": 3}, {"closing": 1, "stopped": 3, "removed": 2}])
def test_teardown_without_its_events_in_order_is_invalid(tmp_path: Path, events: dict[str, int]) -> None:
    context, _ = visit(tmp_path)
    context.shared.timeline = timeline(events)
    with pytest.raises(Invalid):
        list(Teardown().measure(context))


def timeline(events: dict[str, int]) -> Timeline:
    made = Timeline()
    for name, at_ns in events.items():
        made.stamp(name, at_ns)
    return made
