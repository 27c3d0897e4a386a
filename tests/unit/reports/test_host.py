"""The host's section: what was recorded of the machine, and what the measuring itself took from it."""

from __future__ import annotations

from collections.abc import Callable

from harness.results import JOURNAL
from reports.sections.base import View
from reports.sections.host import Host
from tests.unit.reports.conftest import view


def rows(view: View) -> list[tuple[object, ...]]:
    (part,) = Host().parts(view)
    return list(part.tables[0].rows)


def test_the_harness_own_share_of_a_cpu_stands_with_the_host(view_of: Callable[..., View]) -> None:
    found = rows(view_of(blocks=1))
    assert found[-2:] == [("harness", "own CPU time", "9.0\u00a0s"), ("harness", "share of one CPU", "1.7\u00a0%")]


def test_a_run_that_did_not_end_has_no_such_share(view_of: Callable[..., View]) -> None:
    directory = view_of(blocks=1).frame.run.directory
    *lines, _finished = (directory / JOURNAL).read_text().splitlines(keepends=True)
    (directory / JOURNAL).write_text("".join(lines))
    assert "harness" not in {topic for topic, *_ in rows(view(directory))}
