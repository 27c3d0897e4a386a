"""What a report says of comparators: which were found, why others were not, and their ratio to ours."""

from __future__ import annotations

from collections.abc import Callable

from reports.page import Value
from reports.sections.base import View
from reports.sections.comparators import Comparators

DRIVERS = ("native", "container", "docker", "crun")


def text(cell: Value | str) -> str:
    return cell if isinstance(cell, str) else cell.text


def test_ratios_to_ours_stand_with_their_intervals(view_of: Callable[..., View]) -> None:
    scale = {("startup.ready", "docker"): 2.0}
    (part,) = Comparators().parts(view_of(drivers=DRIVERS, unusable={"crun": "hybrid"}, scale=scale))
    rows = {(text(row[0]), text(row[1])): [text(cell) for cell in row] for row in part.tables[0].rows}
    plain = next(iter(Comparators().parts(view_of(drivers=DRIVERS, unusable={"crun": "hybrid"}))))
    before = {(text(row[0]), text(row[1])): row for row in plain.tables[0].rows}
    ratio = [float(row[4].exact) for row in (before["startup.ready", "docker"],) if isinstance(row[4], Value)]
    doubled = [row[4] for row in part.tables[0].rows if (text(row[0]), text(row[1])) == ("startup.ready", "docker")]
    assert isinstance(doubled[0], Value)
    assert 1.9 < float(doubled[0].exact) / ratio[0] < 2.1
    assert "–" in rows["startup.ready", "docker"][5]
    assert rows["startup.ready", "docker"][6] == "10"
    assert not any(driver == "crun" for _, driver in rows)
    assert not any(metric == "startup.spawned" for metric, _ in rows)


def test_a_comparator_that_does_not_work_here_says_why(view_of: Callable[..., View]) -> None:
    (part,) = Comparators().parts(view_of(drivers=DRIVERS, unusable={"crun": "hybrid hierarchy"}))
    rows = {text(row[0]): text(row[1]) for row in part.tables[1].rows}
    assert rows["docker"] == "works"
    assert "hybrid hierarchy" in rows["crun"]


def test_a_run_without_comparators_has_no_such_part(view_of: Callable[..., View]) -> None:
    assert list(Comparators().parts(view_of(drivers=("native", "container")))) == []
