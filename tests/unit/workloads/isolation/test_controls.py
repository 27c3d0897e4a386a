"""What the account of a control group is held against."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.instance import ExecResult, Usage
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import one, visit
from workloads.base import Invalid
from workloads.isolation.controls import ACCOUNTED, FROZEN_CPU, SHARE_ERROR, THAWED_CPU, Controls


class Clockwork:
    """Instances that use CPU time in step with the clock while they burn, as their weights say."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, obeyed: bool = True, stops: bool = True) -> None:
        self.used: dict[str, float] = {}
        self.burning: dict[FakeInstance, float] = {}
        self.obeyed, self.stops = obeyed, stops
        self._lock = threading.Lock()
        monkeypatch.setattr(FakeInstance, "usage", lambda instance: self.usage(instance))  # noqa: PLW0108 - it binds

    def usage(self, instance: FakeInstance) -> Usage:
        with self._lock:
            self._go_on()
            return Usage(method="cgroup v2", cpu_ns=round(self.used.get(instance.id, 0.0) * 1e9))

    def _go_on(self) -> None:
        now = time.monotonic()
        weights = {
            each: (each.spec.limits.cpu_weight or 100) if self.obeyed else 100
            for each in self.burning
            if not (each.paused and self.stops)
        }
        for each, weight in weights.items():
            spent = (now - self.burning[each]) * weight / sum(weights.values())
            self.used[each.id] = self.used.get(each.id, 0.0) + spent
        self.burning = dict.fromkeys(self.burning, now)

    def reply(self, instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        if "sysbench" not in argv or argv[0] == "perl":
            return None
        with self._lock:
            self._go_on()
            self.burning[instance] = time.monotonic()
        time.sleep(0.6)
        with self._lock:
            self._go_on()
            del self.burning[instance]
        return instance._sysbench_cpu(tuple(argv), " ".join(argv), 60)


@pytest.mark.parametrize(("obeyed", "error"), [(True, 0.0), (False, -0.25)])
def test_share_against_the_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, obeyed: bool, error: float) -> None:
    clockwork = Clockwork(monkeypatch, obeyed=obeyed)
    context, _ = visit(tmp_path, Behaviour(reply=clockwork.reply), shared=False, seconds=0.2, frozen_s=0.1)
    samples = list(Controls().measure(context))
    assert one(samples, SHARE_ERROR.name).value == pytest.approx(error, abs=0.1)


@pytest.mark.parametrize(("stops", "low", "high"), [(True, 0.0, 0.05), (False, 0.5, 1.5)])
def test_what_runs_while_frozen_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: bool, low: float, high: float
) -> None:
    clockwork = Clockwork(monkeypatch, stops=stops)
    context, _ = visit(tmp_path, Behaviour(reply=clockwork.reply), shared=False, seconds=0.2, frozen_s=0.1)
    samples = list(Controls().measure(context))
    assert low <= one(samples, FROZEN_CPU.name).value <= high
    assert one(samples, THAWED_CPU.name).value > 0.5


def test_account_is_held_against_the_works_own_count(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, shared=False, seconds=0.2, frozen_s=0.1)
    # The fake's account also counts what a look at it takes: one millisecond a look.
    assert one(list(Controls().measure(context)), ACCOUNTED.name).value == pytest.approx(1.0, abs=0.05)


def test_work_that_counts_nothing_is_no_measure(tmp_path: Path) -> None:
    def reply(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        return ExecResult(tuple(argv), 0, b"own 0.00\n", b"", 1) if argv[0] == "perl" else None

    context, _ = visit(tmp_path, Behaviour(reply=reply), shared=False, seconds=0.2, frozen_s=0.1)
    with pytest.raises(Invalid, match="did not count"):
        list(Controls().measure(context))


def test_without_an_account_nothing_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = FakeInstance.usage
    monkeypatch.setattr(FakeInstance, "usage", lambda self: replace(seen(self), cpu_ns=None))
    context, driver = visit(tmp_path, shared=False, seconds=0.2, frozen_s=0.1)
    with pytest.raises(Invalid, match="no account"):
        list(Controls().measure(context))
    assert driver.open_instances() == []
