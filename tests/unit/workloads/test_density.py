"""The ramp: what stops it, how many it reports, that everything is closed, and the arithmetic behind it."""

from __future__ import annotations

import errno
import math
from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.errors import TareError
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import one, values, visit
from workloads import density, hostview, idle
from workloads.base import Invalid
from workloads.density import Density, latency_breached, nearest_rank, slope
from workloads.metric import Sample

GIB = 1 << 30


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes have no boot to wait for."""
    monkeypatch.setattr(hostview, "LOOK_S", 0.0)
    monkeypatch.setattr(idle, "QUIET_WINDOW_S", 0.0)
    monkeypatch.setattr(idle, "QUIET_SHARE", math.inf)


def run(directory: Path, behaviour: Behaviour | None = None, **params: float) -> list[Sample]:
    context, driver = visit(directory, behaviour, shared=False)
    context.params = {"idle_s": 0.01, "time_s": 30, **params}
    try:
        return list(Density().measure(context))
    finally:
        assert driver.open_instances() == []
        assert driver.leftovers() == []


def fake_memory(monkeypatch: pytest.MonkeyPatch, total: int, used_per_instance: int) -> None:
    """A host whose MemAvailable falls with every instance that was opened."""
    opened = 0
    original = FakeInstance.__init__

    def counting(self: FakeInstance, *arguments: object) -> None:
        nonlocal opened
        opened += 1
        original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(FakeInstance, "__init__", counting)
    monkeypatch.setattr(hostview, "memory", lambda: hostview.Memory(total, total - opened * used_per_instance))


@pytest.mark.parametrize("width", [1, 3, 4])
def test_ramp_ends_at_its_cap_with_all_closed(tmp_path: Path, width: int) -> None:
    samples = run(tmp_path, cap=10, width=width)
    reached = one(samples, "density.instances")
    assert (reached.value, reached.labels["limiter"]) == (10, "cap")
    assert len(values(samples, "density.launch")) == 10
    assert one(samples, "density.launch_rate").value > 0
    along = [sample for sample in samples if sample.metric == "density.ramp_rate"]
    assert [int(sample.labels["n"]) for sample in along] == [*range(width, 10, width), 10]
    assert all(sample.value > 0 for sample in along)
    assert len(values(samples, "density.pss_per_instance")) == 10


def test_work_for_a_thousand_instances_grows_no_faster_than_their_number(tmp_path: Path) -> None:
    commands: list[object] = []
    samples = run(tmp_path, Behaviour(reply=lambda instance, argv: commands.append(argv)), cap=1000)
    assert len(commands) <= 3 * 1000
    assert one(samples, "density.instances").value == 1000
    assert one(samples, "density.instances").labels["latency_rule"] == "p95 of 200"
    assert len(values(samples, "density.available_memory")) < 150
    assert len(values(samples, "density.pss_per_instance")) == 16


def test_ramp_stops_before_memory_falls_below_the_reserve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_memory(monkeypatch, 10 * GIB, GIB)
    samples = run(tmp_path, cap=100)
    reached = one(samples, "density.instances")
    assert (reached.value, reached.labels["limiter"]) == (9, "memory")
    assert one(samples, "density.marginal_memory").value == GIB


def test_first_wave_is_counted_in_at_its_memory_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostview, "memory", lambda: hostview.Memory(10 * GIB, GIB + (200 << 20)))
    with pytest.raises(Invalid, match="memory"):
        run(tmp_path, cap=5)


def test_ramp_stops_when_the_kernel_runs_out_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room = iter([5000, 3000, 999, 0, 0])
    monkeypatch.setattr(hostview, "task_room", lambda: next(room))
    reached = one(run(tmp_path, cap=100), "density.instances")
    assert (reached.value, reached.labels["limiter"]) == (2, "tasks")


def test_ramp_ends_with_its_time(tmp_path: Path) -> None:
    samples = run(tmp_path, Behaviour(launch_s=0.02), cap=1000, time_s=0.2)
    reached = one(samples, "density.instances")
    assert reached.labels["limiter"] == "time"
    assert 1 <= reached.value <= 10


def test_failed_launch_ends_the_ramp_and_is_named(tmp_path: Path) -> None:
    def full(ordinal: int) -> Exception | None:
        return OSError(errno.EAGAIN, "Resource temporarily unavailable", "clone3") if ordinal == 7 else None

    reached = one(run(tmp_path, Behaviour(fail_launch=full), cap=100), "density.instances")
    assert (reached.value, reached.labels["limiter"]) == (7, "failures")
    assert "clone3" in reached.labels["reason"]


def test_launch_that_fails_at_once_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TareError, match="told to fail"):
        run(tmp_path, Behaviour(fail_launch=lambda ordinal: TareError("launch", "told to fail")), cap=3)


def test_instance_that_dies_on_the_way_ends_the_ramp_at_the_last_count_where_all_were_well(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, shared=False, idle_s=0.01, cap=64)

    def kill_one(ordinal: int) -> None:
        if ordinal == 20:
            driver.instances[3].kill()

    driver.behaviour.fail_launch = kill_one
    reached = one(list(Density().measure(context)), "density.instances")
    assert (reached.value, reached.labels["limiter"]) == (16, "died")
    assert driver.open_instances() == []


def test_instance_that_does_not_answer_ends_the_ramp(tmp_path: Path) -> None:
    behaviour = Behaviour()
    behaviour.reply = lambda instance, argv: (
        instance.exec(("fail",), 1) if instance.ordinal == 5 and argv[0] != "fail" else None
    )
    behaviour.fail_exec = "fail"
    reached = one(run(tmp_path, behaviour, cap=64), "density.instances")
    assert (reached.value, reached.labels["limiter"]) == (4, "failures")


def test_slow_launches_end_the_ramp_before_the_wave_that_broke_the_level(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, shared=False, idle_s=0.01, cap=64, kind=Kind.VM)

    def slow_down(ordinal: int) -> None:
        driver.behaviour.slowness = 1.0 if ordinal < 20 else 4.0

    driver.behaviour.fail_launch = slow_down
    reached = one(list(Density().measure(context)), "density.instances")
    assert (reached.value, reached.labels["limiter"]) == (25, "latency")  # six of the last ten are slow at 26


def test_interrupted_ramp_closes_everything(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, shared=False, idle_s=0.01, cap=64, width=4)

    def interrupt(text: str) -> None:
        if driver.instances[-1].ordinal > 20:
            raise KeyboardInterrupt

    context.say = interrupt
    with pytest.raises(KeyboardInterrupt):
        list(Density().measure(context))
    assert len(driver.instances) > 20
    assert driver.open_instances() == []


def test_instances_that_cannot_be_closed_are_reported_after_all_were_tried(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, Behaviour(leave_on_close=True), shared=False, idle_s=0.01, cap=5)
    with pytest.raises(TareError, match="5 of 5"):
        list(Density().measure(context))
    assert driver.open_instances() == []


def test_latency_is_judged_by_the_rule_the_number_of_launches_allows() -> None:
    assert not latency_breached([1, 1, 1, 100, 100, 100])
    assert not latency_breached([1.0] * 20)
    assert latency_breached([1.0] * 10 + [3.1] * 10)
    assert not latency_breached([1.0] * 195 + [9.0] * 5)
    assert latency_breached([1.0] * 185 + [9.0] * 15)
    assert [density.latency_rule(count) for count in (9, 10, 199, 200)] == [
        *("none", "median of 10", "median of 10", "p95 of 200"),
    ]


def test_slope_is_the_median_of_pairs_and_shrugs_an_outlier_off() -> None:
    points = [(n, 1000 - 7 * n) for n in range(10)]
    assert slope(points) == -7
    assert slope([*points[:5], (5, 10**9), *points[6:]]) == -7
    with pytest.raises(Invalid):
        slope([(0, 5), (0, 6)])


def test_nearest_rank_is_a_value_that_was_seen() -> None:
    assert nearest_rank([5, 1, 3, 2, 4], 0.95) == 5
    assert nearest_rank(range(1, 201), 0.95) == 190
