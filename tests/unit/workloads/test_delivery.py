"""What a delivery counts, what it refuses, and what it leaves."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.errors import TareError
from tests.fakes import Behaviour
from tests.unit.workloads.visits import Shelf, values, visit
from workloads import delivery
from workloads.base import Invalid
from workloads.delivery import BYTES, SECONDS, STORED, Delivery
from workloads.tools import registry


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "serving", lambda directory: contextlib.nullcontext(Shelf()))


def test_a_machine_is_sent_whole_and_by_its_changes(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, kind=Kind.VM, shared=False)
    samples = list(Delivery().measure(context))
    whole, changed = values(samples, BYTES.name)
    assert whole > changed > 1 << 20
    assert [sample.labels["way"] for sample in samples if sample.metric == STORED.name] == list(driver.ways)
    assert list((driver.host.root / "scratch").iterdir()) == []
    assert driver.open_instances() == []


def test_the_steps_sum_up_to_the_total(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, shared=False)
    seconds = {
        sample.labels["step"]: sample.value for sample in Delivery().measure(context) if sample.metric == SECONDS.name
    }
    assert sum(seconds[step] for step in ("pack", "push", "pull", "unpack")) == pytest.approx(seconds["total"])


def test_a_change_that_is_not_in_the_parcel_is_no_figure(tmp_path: Path) -> None:
    context, _ = visit(
        tmp_path, Behaviour(reply=lambda instance, argv: instance._answer(("true",), "true", 1)), shared=False
    )
    with pytest.raises(Invalid, match="not flushed"):
        list(Delivery().measure(context))


def test_without_a_registry_nothing_is_launched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "serving", registry.serving)
    monkeypatch.setattr(registry, "_PROGRAM", "no-such-registry")
    context, driver = visit(tmp_path, shared=False)
    with pytest.raises(TareError, match="no-such-registry is not installed"):
        list(Delivery().measure(context))
    assert driver.instances == []
