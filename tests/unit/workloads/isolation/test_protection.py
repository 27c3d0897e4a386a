"""Which guards there are, and what a guard has gained."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from runtime.instance import Usage
from runtime.spec import Limits
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import visit
from workloads import hostview
from workloads.isolation.protection import GAIN, KEPT, Protection, guards
from workloads.metric import Sample


def test_no_guard_caps_anything_and_each_keeps_the_other_limits() -> None:
    for pair in guards(Limits(cpus=1.0, memory_bytes=64 << 20), 4).values():
        assert all(limits.cpus is None and limits.memory_bytes == 64 << 20 for limits in pair)


@pytest.mark.parametrize(("cpus", "sets"), [(2, ("0", "1")), (4, ("0", "1-3"))])
def test_the_victim_has_a_cpu_of_its_own(cpus: int, sets: tuple[str, str]) -> None:
    victim, neighbour = guards(Limits(), cpus)["cpuset"]
    assert (victim.cpuset, neighbour.cpuset) == sets


def test_one_cpu_cannot_be_divided() -> None:
    assert set(guards(Limits(), 1)) == {"none", "weight"}


def by_guard(samples: list[Sample], metric: str) -> dict[str, float]:
    return {sample.labels["guard"]: sample.value for sample in samples if sample.metric == metric}


def test_a_guard_that_takes_half_of_the_loss_away_gains_a_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    rate = FakeInstance._rate

    def guarded(self: FakeInstance, full: float) -> float:
        lost = 1 - rate(self, full) / full
        limits = self.spec.limits
        return full * (1 - lost * (0.5 if limits.cpu_weight else 0.0 if limits.cpuset else 1.0))

    monkeypatch.setattr(FakeInstance, "_rate", guarded)
    context, driver = visit(tmp_path, Behaviour(leak=0.6), shared=False, rounds=2)
    samples = list(Protection().measure(context))
    assert by_guard(samples, KEPT.name) == pytest.approx({"none": 0.4, "weight": 0.7, "cpuset": 1.0})
    assert by_guard(samples, GAIN.name) == pytest.approx({"weight": 0.5, "cpuset": 1.0})
    assert driver.open_instances() == []


def test_where_nothing_is_lost_nothing_is_gained(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, shared=False)
    samples = list(Protection().measure(context))
    assert by_guard(samples, KEPT.name)["none"] == pytest.approx(1.0)
    assert by_guard(samples, GAIN.name) == {}


def test_what_others_use_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    monkeypatch.setattr(hostview, "busy_cpu_s", lambda: 1.5 * (time.monotonic() - began))
    monkeypatch.setattr(FakeInstance, "usage", lambda self: Usage(method="cgroup v2", cpu_ns=0))
    context, _ = visit(tmp_path, shared=False)
    others = [float(sample.labels["others"]) for sample in Protection().measure(context) if sample.metric == KEPT.name]
    assert others == pytest.approx([1.5] * len(others), abs=0.1)
