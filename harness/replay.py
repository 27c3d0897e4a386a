"""Hands recorded samples to pytest-benchmark, which knows seconds only, without telling it anything untrue.

Seconds are replayed as they are; a rate as the time of one unit of its work (s per event, s per byte);
what is no time (bytes, counts, ratios) is not replayed and stands in `extra_info` alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Protocol

from harness.results import Outcome, Record
from workloads.metric import Metric, Phase

TEST_FILE = "harness/test_cells.py"  # where pytest finds the cells, so part of their full names
_SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_RATE = re.compile(r"(\S+)/s")


class Benchmark(Protocol):
    """What is used of pytest-benchmark's fixture: its public API."""

    extra_info: dict[str, Any]

    def pedantic(self, target: Callable[[], None], *, setup: Callable[[], None], rounds: int, iterations: int) -> None:
        """Time `target` that many rounds, each after `setup`."""


class VirtualClock:
    """A timer that advances only when told to; give it to `pytest.mark.benchmark(timer=…)`."""

    __name__ = "VirtualClock"

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The time now, in seconds."""
        return self.now_s


@dataclass(frozen=True, slots=True)
class Replay:
    """A metric of a cell as pytest-benchmark gets it: `seconds`, one a sample, each of one `per` (or of itself)."""

    metric: Metric
    seconds: tuple[float, ...]
    per: str = ""


def choose(metrics: Sequence[Metric], records: Sequence[Record], prefer: Sequence[str] = ()) -> Replay | None:
    """The first of `metrics` that is a time or a rate and has samples, or None; those of `prefer` come first."""
    ranks = {name: rank for rank, name in enumerate(prefer)}
    for metric in sorted(metrics, key=lambda metric: ranks.get(metric.name, len(ranks))):
        values = samples(metric.name, records)
        if not values:
            continue
        if metric.unit in _SECONDS:
            return Replay(metric, tuple(value * _SECONDS[metric.unit] for value in values))
        rate = _RATE.fullmatch(metric.unit)
        if rate is not None and all(value > 0 for value in values):
            return Replay(metric, tuple(1 / value for value in values), rate[1].removesuffix("s"))
    return None


def samples(metric: str, records: Sequence[Record]) -> list[float]:
    """Every measured value of `metric`, in the order of measurement; warm-up is left out."""
    return [
        sample.value
        for record in records
        if record.outcome is Outcome.OK
        for sample in record.samples
        if sample.metric == metric and sample.phase is Phase.MEASURE
    ]


def extra_info(metrics: Sequence[Metric], records: Sequence[Record], replay: Replay | None) -> dict[str, Any]:
    """What stands beside the replayed seconds: what they are, every metric's median and n, how the blocks ended."""
    summary = {}
    for metric in metrics:
        values = samples(metric.name, records)
        if values:
            summary[metric.name] = {"unit": metric.unit, "median": median(values), "samples": len(values)}
    return {
        "replayed": None if replay is None else replay.metric.name,
        "replayed_unit": None if replay is None else f"s/{replay.per}" if replay.per else "s",
        "metrics": summary,
        "blocks": {str(outcome): sum(record.outcome is outcome for record in records) for outcome in Outcome},
    }


def play(benchmark: Benchmark, clock: VirtualClock, seconds: Sequence[float]) -> None:
    """One round a sample, on a clock that starts at zero each time, so that no digit is lost."""
    waiting = iter(seconds)

    def setup() -> None:
        clock.now_s = 0.0

    def target() -> None:
        clock.now_s = next(waiting, 0.0)

    benchmark.pedantic(target, setup=setup, rounds=len(seconds), iterations=1)
