"""The density section: the slope's interval beside it, and the rate along the ramp."""

from __future__ import annotations

from collections.abc import Callable

from reports.sections.base import View
from reports.sections.density import marginal


def test_marginal_memory_has_the_slopes_interval_under_it(view_of: Callable[..., View]) -> None:
    shown = marginal(view_of(), "container")
    low, _, high = shown.note.partition("–")
    assert float(low) <= float(shown.text.split()[0]) <= float(high.split()[0])
    assert marginal(view_of(), "native").absent
