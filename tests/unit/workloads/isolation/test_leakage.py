"""The four conditions of the neighbour, the ratios, and that no number outlives a dead antagonist."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.instance import ExecResult
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import visit
from workloads.base import Invalid
from workloads.isolation.leakage import AWAIT, Leakage, antagonists
from workloads.metric import Phase, Sample


def run(directory: Path, behaviour: Behaviour | None = None, seed: int = 7) -> list[Sample]:
    context, driver = visit(directory, behaviour, shared=False, seconds=1, hogs=4)
    context.rng = random.Random(seed)
    try:
        return list(Leakage().measure(context))
    finally:
        assert len(driver.instances) == 2
        assert driver.open_instances() == []
        assert not any(instance.running for instance in driver.instances)


def by(samples: list[Sample], metric: str, label: str) -> dict[str, float]:
    measured = [sample for sample in samples if sample.phase is Phase.MEASURE]
    return {sample.labels[label]: sample.value for sample in measured if sample.metric == metric}


def test_leak_is_against_entitlement_and_slowdown_against_the_placebo(tmp_path: Path) -> None:
    samples = run(tmp_path, Behaviour(leak=0.25, idle_leak=0.2))
    assert by(samples, "leakage.rate", "condition") == {"entitled": 1000, "placebo": 800, "cpu": 750, "fsync": 750}
    assert by(samples, "leakage.leak", "antagonist") == pytest.approx({"placebo": 0.2, "cpu": 0.25, "fsync": 0.25})
    assert by(samples, "leakage.slowdown", "antagonist") == pytest.approx({"cpu": 0.0625, "fsync": 0.0625})
    assert by(samples, "leakage.antagonist_rate", "condition") == {"cpu": 2100, "fsync": 2100}


def test_gain_beside_a_neighbour_stays_negative(tmp_path: Path) -> None:
    assert by(run(tmp_path, Behaviour(leak=-0.1)), "leakage.leak", "antagonist")["cpu"] == pytest.approx(-0.1)


def test_order_of_conditions_follows_the_seed(tmp_path: Path) -> None:
    orders = set()
    for seed in range(6):
        samples = run(tmp_path / str(seed), seed=seed)
        orders.add(tuple(by(samples, "leakage.rate", "condition")))
    assert len(orders) > 1
    assert all(sorted(order) == ["cpu", "entitled", "fsync", "placebo"] for order in orders)


def test_neighbour_is_frozen_for_entitlement_only(tmp_path: Path) -> None:
    seen: dict[str, tuple[bool, int]] = {}
    context, driver = visit(tmp_path, shared=False, seconds=1)

    def note(instance: FakeInstance, argv: Sequence[str]) -> None:
        if argv[:2] == ("sysbench", "cpu"):
            neighbour = driver.instances[1]
            seen[str(len(seen))] = (neighbour.paused, neighbour.running)

    driver.behaviour.reply = note
    list(Leakage().measure(context))
    assert sorted(seen.values()) == [(False, 0), (False, 0), (False, 1), (False, 1), (True, 0)]


def test_antagonist_that_ends_early_voids_the_window(tmp_path: Path) -> None:
    def end_at_once(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        if "--cpu" in argv:
            return ExecResult(tuple(argv), 0, b"", b"stress-ng: metrc: [9] cpu 9 1.0 1.0 0.0 9.0 9.0\n", 1)
        return None

    with pytest.raises(Invalid, match="ended early"):
        run(tmp_path, Behaviour(reply=end_at_once))


def test_antagonist_that_fails_passes_its_own_words_on(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="told to fail"):
        run(tmp_path, Behaviour(fail_exec="--hdd"))


def test_antagonist_that_never_comes_to_work_is_an_error_in_its_own_words(tmp_path: Path) -> None:
    def refuse(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        if "--cpu" in argv:
            return ExecResult(tuple(argv), 1, b"", b"aborting: temp-path", 1)
        return ExecResult(tuple(argv), 1, b"", b"", 1) if AWAIT in argv and "cpu" in argv[-1] else None

    with pytest.raises(TareError, match="aborting: temp-path"):
        run(tmp_path, Behaviour(reply=refuse))


def test_antagonist_that_did_nothing_is_invalid(tmp_path: Path) -> None:
    def lazy(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        if "--cpu" not in argv:
            return None
        instance._interrupt.wait(10)
        instance._interrupt.clear()
        return ExecResult(tuple(argv), 0, b"", b"stress-ng: metrc: [9] cpu 0 1.0 0.0 0.0 0.0 0.0\n", 1)

    with pytest.raises(Invalid, match="nothing"):
        run(tmp_path, Behaviour(reply=lazy))


@pytest.mark.parametrize("victim", [True, False])
def test_death_of_either_instance_is_an_error(tmp_path: Path, victim: bool) -> None:
    def die(instance: FakeInstance, argv: Sequence[str]) -> None:
        if argv[:2] == ("sysbench", "cpu"):
            instance.driver.instances[0 if victim else 1].kill()

    with pytest.raises(TareError):
        run(tmp_path, Behaviour(reply=die))


def test_victim_with_a_slow_clock_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="clock"):
        run(tmp_path, Behaviour(guest_clock=3))


def test_hogs_outnumber_the_cpus_as_told() -> None:
    commands = antagonists(1, hogs=6)
    assert commands["cpu"][1:4] == ("stress-ng", "--cpu", "6")
    assert "wr-seq,fsync" in commands["fsync"]


@pytest.mark.parametrize(("processes", "nice"), [(1, "0"), (4, "-6"), (16, "-12"), (1000, "-20")])
def test_session_of_hogs_is_given_the_weight_of_its_processes(processes: int, nice: str) -> None:
    assert antagonists(1, hogs=processes)["cpu"][0] == nice


def test_first_run_of_the_victim_is_kept_as_warmup(tmp_path: Path) -> None:
    phases = [sample.phase for sample in run(tmp_path) if sample.metric == "leakage.rate"]
    assert phases == [Phase.WARMUP, *[Phase.MEASURE] * 4]
