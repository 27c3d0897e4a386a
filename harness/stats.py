"""How sure: effects over blocks, confidence intervals, the equivalence margin, verdicts and refusals.

Pure functions of numbers; no files, no host, no pandas. The rules and their sources stand in docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What a comparison says of the contender against the baseline."""

    FASTER = "faster"
    SLOWER = "slower"
    EQUIVALENT = "equivalent"
    INCONCLUSIVE = "inconclusive"
    REFUSED = "refused"


class Refusal(StrEnum):
    """Why a comparison must not be drawn. The value is the code shown in the cell."""

    FEW_BLOCKS = "few-blocks"
    AA_OUTSIDE = "aa-outside"
    ORDER_EFFECT = "order-effect"
    DRIFT = "drift"
    STEAL = "steal"
    CLOCK = "clock"
    PARITY = "parity"
    LIMIT = "limit-not-biting"
    EMULATION = "software-emulation"
    NO_DATA = "no-data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """`contender` ÷ `baseline` for one metric over paired blocks. Derived, never stored.

    `ratio` is exp(median over blocks of log(contender/baseline)); [ci_low, ci_high] its interval at
    `confidence`. None where there is no number. `margin` is δ, the relative equivalence margin.
    `verdict` speaks of better and worse (`faster` = better whichever way the metric runs).
    """

    metric: str
    baseline: str
    contender: str
    n: int
    ratio: float | None
    ci_low: float | None
    ci_high: float | None
    confidence: float
    margin: float | None
    verdict: Verdict
    refusal: Refusal | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with its interval. `confidence` is what the interval really has, not what was asked."""

    estimate: float
    low: float
    high: float
    confidence: float
    n: int
