"""Limits read back and made to bite: what does not hold is a zero, what dies is an error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import ExecResult, Usage
from runtime.spec import Limits
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import one, values, visit
from workloads.base import Invalid
from workloads.enforcement import IO_OVERRUN, PIDS_BITE, Enforcement, IoEnforcement

HALF = Limits(cpus=0.5, memory_bytes=64 << 20, pids=100)


def test_limits_that_bite_are_ones(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, limits=HALF, seconds=1)
    samples = list(Enforcement().measure(context))
    assert values(samples, "enforcement.limit_holds") == [1.0, 1.0, 1.0]
    assert one(samples, "enforcement.cpu_overrun").value == pytest.approx(1, rel=0.02)
    assert one(samples, "enforcement.cpu_bites").value == 1
    assert one(samples, "enforcement.cpu_bites").labels["tried"] == "yes"
    assert one(samples, "enforcement.memory_bites").value == 1
    assert one(samples, "enforcement.memory_bites").labels["outcome"] == "killed"


def test_limit_that_does_not_bite_is_a_zero_with_its_figures(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(limits_bite=False, limits_hold=False), limits=HALF, seconds=1)
    samples = list(Enforcement().measure(context))
    held = [sample for sample in samples if sample.metric == "enforcement.limit_holds"]
    assert [(sample.value, sample.labels["limit"], sample.labels["read"]) for sample in held] == [
        (0.0, "cpus", "max"),
        (0.0, "memory_bytes", "max"),
        (0.0, "pids", "max"),
    ]
    assert one(samples, "enforcement.cpu_overrun").value == pytest.approx(4, rel=0.02)
    assert one(samples, "enforcement.cpu_bites").value == 0
    assert one(samples, "enforcement.memory_bites").value == 0
    assert one(samples, "enforcement.memory_bites").labels["outcome"] == "granted"


@pytest.mark.parametrize(("cpus", "tried"), [(b"2\n", "yes"), (b"1\n", "no")])
def test_burn_that_cannot_pass_the_bound_is_no_trial(tmp_path: Path, cpus: bytes, tried: str) -> None:
    def count(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        return ExecResult(tuple(argv), 0, cpus, b"", 1) if argv[0] == "nproc" else None

    context, _ = visit(tmp_path, Behaviour(reply=count), limits=Limits(cpus=0.95), seconds=1)
    bites = one(list(Enforcement().measure(context)), "enforcement.cpu_bites")
    assert (bites.value, bites.labels["threads"], bites.labels["tried"]) == (1, cpus.decode().strip(), tried)


def test_burn_that_stays_far_below_the_limit_is_marked_as_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, driver = visit(tmp_path, limits=HALF, seconds=1)
    spent = iter([10**9, 10**9 + 10**7])
    monkeypatch.setattr(driver.instances[0], "usage", lambda: Usage(method="cgroup v1", cpu_ns=next(spent)))
    assert one(list(Enforcement().measure(context)), "enforcement.cpu_bites").labels["tried"] == "no"


def test_resource_without_a_limit_yields_nothing(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, limits=Limits(pids=100))
    measured = {sample.metric for sample in Enforcement().measure(context)}
    assert measured == {"enforcement.limit_holds", "enforcement.pids_bite"}


def test_limit_as_wide_as_the_host_cannot_be_tried(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, limits=Limits(cpus=8192))
    assert {sample.metric for sample in Enforcement().measure(context)} == {"enforcement.limit_holds"}


def test_memory_refused_far_below_the_limit_proves_nothing(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(fail_exec="oom_score_adj"), limits=Limits(memory_bytes=64 << 20))
    with pytest.raises(Invalid, match="quarter"):
        list(Enforcement().measure(context))


def test_instance_killed_by_its_own_limit_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context, driver = visit(tmp_path, limits=Limits(memory_bytes=64 << 20))
    monkeypatch.setattr(FakeInstance, "alive", lambda self: False)
    with pytest.raises(TareError, match="did not survive"):
        list(Enforcement().measure(context))
    assert driver.instances


def test_victim_is_marked_for_the_oom_killer_before_it_allocates(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, limits=Limits(memory_bytes=64 << 20))
    list(Enforcement().measure(context))
    scripts = [command[2] for command in driver.instances[0].commands if command[0] == "/bin/sh"]
    assert [script.rpartition("bs=")[2] for script in scripts] == [str(16 << 20), str(128 << 20)]
    assert all(script.startswith("echo 1000 > /proc/self/oom_score_adj && exec dd") for script in scripts)


def test_processes_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, limits=Limits(pids=100))
    found = one(list(Enforcement().measure(context)), PIDS_BITE.name)
    assert (found.value, found.labels["granted"]) == (1.0, "98")


def test_processes_beyond_a_limit_that_does_not_bite_are_told(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(limits_bite=False), limits=Limits(pids=100))
    assert one(list(Enforcement().measure(context)), PIDS_BITE.name).value == 0.0


def test_a_machines_limit_on_threads_of_the_emulator_is_not_tried_inside(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, kind=Kind.VM, limits=Limits(pids=100))
    assert values(list(Enforcement().measure(context)), PIDS_BITE.name) == []


@pytest.mark.parametrize(("free_s", "tried"), [(0.1, "yes"), (1.0, "no")])
def test_writes_are_held_against_their_limit_and_a_slow_disk_is_told(tmp_path: Path, free_s: float, tried: str) -> None:
    def reply(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        limited = instance.spec.limits.io_write_bps is not None
        return ExecResult(tuple(argv), 0, b"", b"", round((1.0 if limited else free_s) * 1e9)) if "dd" in argv else None

    context, driver = visit(tmp_path, Behaviour(reply=reply))
    found = one(list(IoEnforcement().measure(context)), IO_OVERRUN.name)
    assert found.value == pytest.approx(1.0)
    assert found.labels["tried"] == tried
    assert len(driver.open_instances()) == 1
