"""A guest's clock against the host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.instance import ExecResult
from tests.fakes import Behaviour
from tests.unit.workloads.visits import visit
from workloads.base import Invalid
from workloads.honesty import demand_one_clock, start_cost_s


def result(seconds: float) -> ExecResult:
    return ExecResult(("tool",), 0, b"", b"", round(seconds * 1e9))


@pytest.mark.parametrize("host_s", [0.95, 1.0, 1.4, 1.55])
def test_host_time_with_a_start_to_spare_is_accepted(host_s: float) -> None:
    demand_one_clock(result(host_s), 1.0, start_s=0.05)


@pytest.mark.parametrize("host_s", [0.85, 2.0, 0.0])
def test_clock_that_runs_fast_or_slow_is_rejected(host_s: float) -> None:
    with pytest.raises(Invalid, match="host counted"):
        demand_one_clock(result(host_s), 1.0, start_s=0.05)


def test_slow_start_of_an_emulated_guest_widens_the_bound() -> None:
    with pytest.raises(Invalid):
        demand_one_clock(result(2.0), 1.0, start_s=0.05)
    demand_one_clock(result(2.0), 1.0, start_s=0.2)


def test_tool_that_is_not_there_is_an_error_not_a_cheap_start(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(fail_exec="fio"))
    assert start_cost_s(context.shared, ("sysbench", "--version")) == 0.005
    with pytest.raises(TareError, match="told to fail"):
        start_cost_s(context.shared, ("fio", "--version"))
