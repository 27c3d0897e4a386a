"""Samples reach pytest-benchmark as what they are."""

from __future__ import annotations

from harness import replay
from harness.results import Cell, Outcome, Record
from workloads.metric import Better, Metric, Phase, Sample


def record(metric: str, *values: float, phase: Phase = Phase.MEASURE, outcome: Outcome = Outcome.OK) -> Record:
    return Record(
        cell=Cell("w", "d", "d"),
        block=0,
        position=0,
        started_utc="",
        started_ns=0,
        elapsed_ns=0,
        outcome=outcome,
        samples=tuple(Sample(metric, value, phase) for value in values),
    )


def metric(name: str, unit: str) -> Metric:
    return Metric(name, unit, Better.LOWER, "")


def test_seconds_are_replayed_as_they_are_and_smaller_units_converted() -> None:
    chosen = replay.choose([metric("a", "s")], [record("a", 1.5, 2.5)])
    assert chosen is not None
    assert (chosen.seconds, chosen.per) == ((1.5, 2.5), "")
    chosen = replay.choose([metric("a", "ms")], [record("a", 250.0)])
    assert chosen is not None
    assert chosen.seconds == (0.25,)


def test_a_rate_is_replayed_as_the_time_of_one_unit() -> None:
    chosen = replay.choose([metric("a", "operations/s")], [record("a", 4.0)])
    assert chosen is not None
    assert (chosen.seconds, chosen.per) == ((0.25,), "operation")


def test_bytes_counts_and_ratios_are_not_replayed() -> None:
    for unit in ("B", "count", "ratio", "bool", "CPU s/s"):
        assert replay.choose([metric("a", unit)], [record("a", 4.0)]) is None


def test_the_first_metric_that_is_a_time_is_chosen_and_warm_up_is_left_out() -> None:
    metrics = [metric("size", "B"), metric("time", "s")]
    records = [record("size", 9.0), record("time", 1.0, phase=Phase.WARMUP), record("time", 2.0)]
    chosen = replay.choose(metrics, records)
    assert chosen is not None
    assert chosen.seconds == (2.0,)
    info = replay.extra_info(metrics, records, chosen)
    assert info["metrics"] == {
        "size": {"unit": "B", "median": 9.0, "samples": 1},
        "time": {"unit": "s", "median": 2.0, "samples": 1},
    }
    assert info["blocks"] == {"ok": 3, "failed": 0, "skipped": 0}


def test_a_preferred_metric_comes_before_the_workloads_first() -> None:
    records = [record("early", 1.0), record("late", 2.0)]
    chosen = replay.choose([metric("early", "s"), metric("late", "s")], records, prefer=["none", "late"])
    assert chosen is not None
    assert chosen.metric.name == "late"


def test_no_digit_is_lost_on_the_virtual_clock() -> None:
    clock, seen = replay.VirtualClock(), list[float]()

    class Timed:
        extra_info: dict[str, object] = {}  # noqa: RUF012 - a stand-in

        def pedantic(self, target: object, *, setup: object, rounds: int, iterations: int) -> None:
            for _ in range(rounds):
                setup()  # type: ignore[operator]
                began_s = clock()
                target()  # type: ignore[operator]
                seen.append(clock() - began_s)

    values = [1e9, 1e-9, 0.1, 123.456789]
    replay.play(Timed(), clock, values)
    assert seen == values
