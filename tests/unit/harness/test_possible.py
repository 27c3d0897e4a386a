"""Too much work for the time: an account that cannot be true makes the cell a counted failure."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import possible
from harness.possible import Account
from harness.results import Outcome
from runtime.driver import Kind
from runtime.spec import Limits
from tests.fakes import SPEC, FakeDriver, FakeInstance, fake_host
from tests.unit.harness.engine import Bench, standard_workloads, workload
from workloads.base import Context, Invalid, Stage
from workloads.metric import Sample


@pytest.fixture
def worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let an instance use CPU seconds within one of the clock, on 4 CPUs, and look: `worked(kind, limit, used_s)`."""

    def work(kind: Kind, limit: float | None, used_s: float) -> None:
        driver = FakeDriver(fake_host(tmp_path), kind=kind)
        prepared = driver.prepare(replace(SPEC, limits=Limits(cpus=limit)))
        now_ns = [0]
        monkeypatch.setattr(possible, "time", SimpleNamespace(monotonic_ns=lambda: now_ns[0]))
        monkeypatch.setattr(os, "cpu_count", lambda: 4)
        with driver.launch(prepared) as own:
            account = Account(Context(driver, prepared, lambda spec=None: own, lambda: own, instance=own))
            own._cpu_ns += round(used_s * 1e9)
            now_ns[0] += 1_000_000_000
            account.demand_possible()

    return work


@pytest.mark.parametrize(
    ("kind", "limit", "used_s", "cpus"),
    [
        (Kind.CONTAINER, 1.0, 1.6, 1),
        (Kind.VM, 0.5, 0.9, 0.5),
        (Kind.CONTAINER, None, 6.1, 4),
        (Kind.NATIVE, 1.0, 6.1, 4),
    ],
)
def test_what_a_limit_allows_in_a_second_and_a_burst_is_believed_and_more_is_not(
    worked: Callable[..., None], kind: Kind, limit: float | None, used_s: float, cpus: float
) -> None:
    worked(kind, limit, used_s)
    with pytest.raises(Invalid, match=rf"s of CPU in 1.00 s, where it may use {cpus:g} CPUs"):
        worked(kind, limit, used_s + 0.2)


def test_a_cell_in_which_an_instance_worked_more_than_it_can_is_no_number(tmp_path: Path) -> None:
    def overwork(context: Context) -> Iterator[Sample]:
        assert isinstance(context.instance, FakeInstance)
        if context.driver.name == "container":
            context.instance._cpu_ns += 3_600_000_000_000
        yield Sample("one.value", 1.0)

    run = Bench(tmp_path, workloads=standard_workloads() | {"one": workload("one", Stage.SESSION, overwork)}).run()
    failed = [record for record in run.records if record.outcome is Outcome.FAILED]
    assert {str(record.cell) for record in failed} == {"one[container]"}
    assert all(record.reason.startswith("work: 3600.00 s of CPU in ") and not record.samples for record in failed)
