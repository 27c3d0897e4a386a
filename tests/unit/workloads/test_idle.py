"""Idle cost from the instance's own account."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import Usage
from tests.unit.workloads.visits import values, visit
from workloads import idle
from workloads.base import Invalid
from workloads.idle import BOOTED, Idle


def test_idle_yields_cpu_share_and_memory_by_two_methods(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, seconds=0.05)
    samples = list(Idle().measure(context))
    assert 0 < values(samples, "idle.cpu")[0] <= 0.001 / 0.05
    assert values(samples, "idle.memory_pss") == [1 << 20]
    assert values(samples, "idle.memory_cgroup") == [3 << 20]
    assert driver.instances[0].commands == [("/bin/sh", "-c", BOOTED)]


def test_native_has_no_cgroup_figure(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, kind=Kind.NATIVE, seconds=0.01)
    assert {sample.metric for sample in Idle().measure(context)} == {"idle.cpu", "idle.memory_pss"}


@pytest.mark.parametrize("cpu_ns", [None, 0])
def test_missing_or_shrinking_cpu_account_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpu_ns: int | None
) -> None:
    context, driver = visit(tmp_path, seconds=0.01)
    readings = iter([driver.instances[0].usage(), replace(driver.instances[0].usage(), cpu_ns=cpu_ns)])
    monkeypatch.setattr(driver.instances[0], "usage", lambda: next(readings))
    monkeypatch.setattr(idle, "settle", lambda instance: 0.0)
    with pytest.raises(Invalid, match="CPU account"):
        list(Idle().measure(context))


def test_dead_instance_is_an_error_not_zero_cost(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, seconds=0.01)
    driver.instances[0].kill()
    with pytest.raises(TareError, match="gone"):
        list(Idle().measure(context))


def test_boot_that_goes_on_is_waited_for_and_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, driver = visit(tmp_path, seconds=0.01)
    monkeypatch.setattr(idle, "QUIET_WINDOW_S", 0.01)
    busy_ns = iter([5_000_000] * 5 + [0] * 20)
    spent_ns = 0

    def usage() -> Usage:
        nonlocal spent_ns
        spent_ns += next(busy_ns)
        return Usage(method="cgroup v1", cpu_ns=spent_ns)

    monkeypatch.setattr(driver.instances[0], "usage", usage)
    (sample,) = Idle().measure(context)
    assert sample.value == 0
    assert float(sample.labels["settled_s"]) >= 0.03


def test_instance_that_is_never_quiet_is_measured_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, driver = visit(tmp_path, seconds=0.01)
    monkeypatch.setattr(idle, "QUIET_WINDOW_S", 0.01)
    monkeypatch.setattr(idle, "QUIET_TIMEOUT_S", 0.05)
    monkeypatch.setattr(driver.instances[0], "usage", lambda: Usage(method="procfs", cpu_ns=time.monotonic_ns()))
    (sample,) = Idle().measure(context)
    assert sample.value == pytest.approx(1, abs=0.2)
