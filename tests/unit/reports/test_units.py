"""Figures as a person would say them."""

from __future__ import annotations

import math

import pytest

from harness.results import ResultsError
from reports.units import NBSP, digits, exact, human, scale_for, span, times


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.00412, "s", "4.1 ms"),
        (13.4, "s", "13 s"),
        (90.0, "s", "90 s"),
        (540.0, "s", "9.0 min"),
        (7200.0, "s", "2.0 h"),
        (0.0, "s", "0 s"),
        (999.9e-6, "s", "1.0 ms"),
        (1.3 * (1 << 30), "B", "1.3 GiB"),
        (0, "B", "0 B"),
        (640, "B", "640 B"),
        (5.1e8, "B/s", "490 MiB/s"),
        (0.119, "ratio", "12 %"),
        (-0.004, "ratio", "−0.40 %"),
        (0.011, "CPU s/s", "1.1 % of a CPU"),
        (1180.2, "events/s", "1,180 events/s"),
        (1000.0, "instances", "1,000"),
        (20.0, "count", "20"),
        (1.0, "bool", "yes"),
        (0.0, "bool", "no"),
    ],
)
def test_figure_is_said_in_the_unit_that_fits(value: float, unit: str, said: str) -> None:
    assert human(value, unit).replace(NBSP, " ") == said


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_what_is_no_number_is_never_shown(value: float) -> None:
    with pytest.raises(ResultsError, match="not a number"):
        human(value, "s")
    with pytest.raises(ResultsError, match="not a number"):
        times(value)


def test_interval_says_its_unit_once() -> None:
    assert span(0.00401, 0.0042, "s").replace(NBSP, " ") == "4.0–4.2 ms"
    assert span(0.0009, 0.0012, "s").replace(NBSP, " ") == "900 µs – 1.2 ms"
    assert span(-0.003, 0.009, "ratio").replace(NBSP, " ") == "−0.30 % to 0.90 %"


def test_ratio_has_the_digits_that_matter() -> None:
    assert [times(value) for value in (3312.0, 1.004, 0.0383)] == ["3,300×", "1.00×", "0.038×"]


def test_digits_never_use_an_exponent() -> None:
    assert digits(123456789.0) == "120,000,000"
    assert digits(1.2e-7) == "0.00000012"


def test_exact_reads_back_as_the_same_number() -> None:
    for value in (4.0, 1 / 3, 1e300, 12345678901234.0):
        assert float(exact(value)) == value


def test_axis_takes_the_unit_of_the_middle_value() -> None:
    assert scale_for([0.004, 0.005, 0.3], "s") == (1e-3, "ms")
    assert scale_for([], "s") == (1.0, "s")
