"""Metrics and samples: what a figure is called, what unit it has, which way is better.

Standard library only: the one file of this package that reports also read.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Better(StrEnum):
    """Which direction of a metric is an improvement."""

    LOWER = "lower"
    HIGHER = "higher"


class Phase(StrEnum):
    """Warm-up samples are kept and shown, and never enter a comparison."""

    WARMUP = "warmup"
    MEASURE = "measure"


@dataclass(frozen=True, slots=True)
class Metric:
    """A measurable quantity. `name` is unique across workloads, like `startup.userland`; `unit` is SI or IEC.

    `hardware` marks a metric whose verdict needs hardware virtualisation: under software emulation
    it is refused (METHOD: the TCG rule).
    """

    name: str
    unit: str
    better: Better
    help: str
    hardware: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """One raw observation of `metric` in its unit. `labels` tell apart iterations, conditions, positions on a ramp."""

    metric: str
    value: float
    phase: Phase = Phase.MEASURE
    labels: dict[str, str] = field(default_factory=dict)
