"""The spread of every figure: first iterations beside the rest, tails only with enough samples, outliers counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.results import Run
from reports.claims import ClaimSet, Evidence
from reports.frame import Frame
from reports.page import Value
from reports.sections import spread
from reports.sections.base import View
from reports.units import NBSP
from workloads.metric import Phase, Sample


def with_samples(view: View, samples: Callable[[int], tuple[Sample, ...]]) -> View:
    """The same run, every startup of the container replaced by `samples` of its block."""
    run = view.frame.run
    records = tuple(
        replace(record, samples=samples(record.block)) if str(record.cell) == "startup[container]" else record
        for record in run.records
    )
    changed = Run(run.directory, run.header, records, run.facts, run.events)
    return View(evidence=Evidence(Frame(changed), ClaimSet.load()), rows=view.rows, words=view.words)


def ready(seconds: float, iteration: int) -> Sample:
    phase = Phase.WARMUP if iteration == 0 else Phase.MEASURE
    return Sample("startup.ready", seconds, phase, {"iteration": str(iteration)})


def row(view: View, metric: str, label: str) -> dict[str, Value | str]:
    table = spread.table(view)
    names = [column.name for column in table.columns]
    return next(dict(zip(names, each, strict=True)) for each in table.rows if each[:2] == (metric, label))


def text(value: Value | str) -> str:
    return (value.text if isinstance(value, Value) else value).replace(NBSP, " ")


@pytest.fixture
def small(view_of: Callable[..., View]) -> View:
    return view_of(blocks=10, workloads=("startup",))


def test_the_first_iteration_is_a_figure_of_its_own(small: View) -> None:
    view = with_samples(small, lambda block: (ready(9.0 + block / 10, 0), ready(1.0, 1), ready(1.0, 2)))
    found = row(view, "startup.ready", "container")
    assert (text(found["First"]), text(found["Median"]), found["n"]) == ("9.45 s", "1.00 s", "20")


def test_a_lone_iteration_is_not_a_first_one(small: View) -> None:
    found = row(with_samples(small, lambda block: (ready(1.0, 1),)), "startup.ready", "container")
    assert text(found["First"]) == "—"


def test_percentiles_stand_only_where_ten_samples_can_lie_beyond(small: View) -> None:
    view = with_samples(small, lambda block: tuple(ready(1 + n / 100, n) for n in range(1, 21)))
    found = row(view, "startup.ready", "container")
    assert (found["n"], text(found["p90"]), text(found["p95"])) == ("200", "1.18 s", "1.19 s")
    assert isinstance(found["p99"], Value)
    assert (found["p99"].absent, "needs 1000" in found["p99"].exact) == (True, True)


def test_outliers_are_counted_and_stay_in(small: View) -> None:
    values = (1.0, 1.01, 0.99, 1.02, 0.98, 1.01, 0.99, 1.0, 1.06, 5.0)
    found = row(with_samples(small, lambda block: (ready(values[block], 1),)), "startup.ready", "container")
    assert (found["n"], found["Mild"], found["Severe"]) == ("10", "1", "1")


def test_three_samples_have_no_row(small: View) -> None:
    view = with_samples(small, lambda block: (ready(1.0, 1),) if block < 3 else ())
    assert ("startup.ready", "container") not in {each[:2] for each in spread.table(view).rows}
