"""The startup section's further lanes, where a run has them."""

from __future__ import annotations

from collections.abc import Callable

from reports import render
from reports.sections.base import View
from workloads.metric import Sample


def test_launches_begun_together_are_drawn_along_their_number(view_of: Callable[..., View]) -> None:
    many = [Sample("startup.at_once_last", 0.01 * n, labels={"n": str(n)}) for n in (1, 2, 4)]
    page = render.page(
        view_of(given={("startup_at_once", "container"): [*many, Sample("startup.at_once_rate", 120.0)]})
    )
    assert 'id="startup-at-once"' in page
    assert 'id="startup-at-once-data"' in page
    assert 'id="startup-at-once"' not in render.page(view_of())
