"""The instrument's floor: what doing nothing costs, by the host's clock."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import TareError
from tests.fakes import Behaviour
from tests.unit.workloads.visits import values, visit
from workloads import instrument
from workloads.instrument import Instrument


def test_nothing_is_started_on_the_host_and_inside_as_often_as_asked(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, repeats=3)
    samples = list(Instrument().measure(context))
    assert values(samples, "instrument.command") == [0.001] * 3
    assert all(value > 0 for value in values(samples, "instrument.host_spawn"))
    assert len(values(samples, "instrument.host_spawn")) == 3
    assert {argv[1:] for argv in driver.instances[0].commands} == {("nothing",)}


def test_program_that_fails_is_an_error_on_either_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, _ = visit(tmp_path / "inside", Behaviour(fail_exec="nothing"))
    with pytest.raises(TareError, match="told to fail"):
        list(Instrument().measure(context))
    monkeypatch.setattr(instrument, "PROGRAM", "/bin/false")
    context, _ = visit(tmp_path / "host")
    with pytest.raises(TareError, match="ended with status"):
        list(Instrument().measure(context))
