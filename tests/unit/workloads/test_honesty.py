"""A guest's clock against the host's."""

from __future__ import annotations

import pytest

from runtime.instance import ExecResult
from workloads.base import Invalid
from workloads.honesty import demand_one_clock


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
