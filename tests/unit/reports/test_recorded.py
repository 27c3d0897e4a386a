"""The report of a run that was really measured (one block under software emulation, its time budget spent early)."""

from __future__ import annotations

from pathlib import Path

import pytest

from reports import render
from reports.claims import Ruling
from reports.sections.base import View
from tests.unit.reports.conftest import view
from workloads.base import all_workloads

RUN = Path(__file__).resolve().parents[2] / "data" / "run"


@pytest.fixture(scope="module")
def recorded() -> View:
    return view(RUN)


def test_recorded_run_concludes_nothing(recorded: View) -> None:
    assert {row.ruling for row in recorded.rows} == {Ruling.UNMEASURABLE, Ruling.UNMEASURED}


def test_recorded_vms_are_marked(recorded: View) -> None:
    assert [recorded.frame.mark(label) for label in ("native", "container", "microvm", "vm")] == ["", "", "TCG", "TCG"]


def test_recorded_page_says_what_the_time_did_not_suffice_for(recorded: View) -> None:
    page = render.page(recorded)
    assert "not measured: time budget" in page
    assert "software emulation (TCG)" in page


def test_every_metric_of_a_claim_is_one_that_the_workloads_have(recorded: View) -> None:
    known = {metric.name for workload in all_workloads().values() for metric in workload.metrics}
    for claim in recorded.evidence.claims.claims:
        assert set(claim.metrics) <= known
