"""What any tool's totals must be before a rate is made of them; what they mean is each tool's own."""

from __future__ import annotations

_MOST = 1 << 63


def possible(*totals: float) -> bool:
    """Whether each is what work can come to: more than nothing, finite, and within what a tool counts in."""
    return all(0 < total < _MOST for total in totals)
