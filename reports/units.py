"""Figures as a person would say them: `4.1 ms`, `1.3 GiB`, `3,300×`, `12 %`.

Rounding is for the eye only; pages keep the full figure beside it (`exact`). A figure that is not
finite has no text: `human` raises, because a report must say why it has none instead.
"""

from __future__ import annotations

import math

from harness.results import ResultsError

NBSP = "\u00a0"
_TIMES = ((3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))
_SIZES = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))
_SHARES = {"1": "%", "fraction": "%", "ratio": "%", "share": "%", "CPU s/s": "% of a CPU"}
_SCALES = {"s": _TIMES, "B": _SIZES, "bytes": _SIZES, "B/s": tuple((step, f"{name}/s") for step, name in _SIZES)}


def digits(value: float, significant: int = 2) -> str:
    """`value` with at least `significant` digits, thousands grouped, never in exponent notation."""
    if value == 0:
        return "0"
    places = significant - 1 - math.floor(math.log10(abs(value)))
    rounded = round(value, places)
    places = significant - 1 - math.floor(math.log10(abs(rounded)))  # 9.99 has become 10
    return f"{rounded:,.{max(places, 0)}f}".replace("-", "−")


def human(value: float, unit: str, significant: int = 2) -> str:
    """`value` in `unit` (s, bytes, 1, %, 1/s, MiB/s or any other) in the size of unit that fits it.

    Raises ResultsError for a figure that is not finite.
    """
    if not math.isfinite(value):
        raise ResultsError("a figure", f"{value!r} is not a number to show", "look for it in the journal")
    if unit == "bool" and value in (0, 1):
        return "yes" if value else "no"
    if unit in _SHARES:
        return f"{digits(value * 100, significant)}{NBSP}{_SHARES[unit]}"
    if unit in _SCALES:
        step, name = _step(abs(value), _SCALES[unit])
        return f"{digits(value / step, significant)}{NBSP}{name}"
    if unit in ("", "count", "instances"):
        whole = float(value).is_integer()
        return f"{value:,.0f}".replace("-", "−") if whole else digits(value, max(significant, 3))
    return f"{digits(value, max(significant, 3))}{NBSP}{'/s' if unit == '1/s' else unit}"


def span(low: float, high: float, unit: str, significant: int = 2) -> str:
    """An interval, its unit said once where both ends have the same: `4.0–4.2 ms`."""
    first, last = human(low, unit, significant), human(high, unit, significant)
    if low < 0:
        return f"{first} to {last}"
    number, _, name = first.partition(NBSP)
    return f"{number}–{last}" if last.partition(NBSP)[2] == name else f"{first} – {last}"


def _step(size: float, scale: tuple[tuple[float, str], ...]) -> tuple[float, str]:
    if size == 0:
        return next((step, name) for step, name in scale if step == 1)
    # Below two of a large unit of time the smaller one is what people say: 90 s, not 1.5 min.
    least = {"min": 2.0, "h": 2.0}
    fits = ((step, name) for step, name in scale if size >= step * least.get(name, 0.9995))
    return next(fits, scale[-1])


def scale_for(values: list[float], unit: str) -> tuple[float, str]:
    """(divisor, unit's name) under which all `values` of `unit` are readable on one axis."""
    if unit in _SHARES:
        return 0.01, _SHARES[unit]
    if unit not in _SCALES or not values:
        return 1.0, {"1/s": "per second"}.get(unit, unit or "count")
    return _step(sorted(abs(value) for value in values)[len(values) // 2], _SCALES[unit])


def times(ratio: float) -> str:
    """A ratio: `3,300×`, `0.38×`, `1.00×` near one."""
    if not math.isfinite(ratio):
        raise ResultsError("a ratio", f"{ratio!r} is not a number to show", "look for it in the journal")
    return f"{digits(ratio, 3 if 0.1 < ratio < 10 else 2)}×"


def exact(value: float) -> str:
    """The figure in full: the shortest text that reads back as the same number."""
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
