"""Density: how many instances ran, what ended the ramp, and what each one more took."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

from harness import stats
from reports import cells, figures
from reports.claims import Estimate, Row
from reports.figures import Lane
from reports.page import Column, Figure, Table, Value
from reports.rules import limiters
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import digits, exact, human, span


class Density(ClaimSection):
    """Instances on one host, with the limiter named."""

    claim = "density"
    metrics = (
        "density.instances",
        "density.marginal_memory",
        "density.pss_per_instance",
        "density.cgroup_memory_per_instance",
        "density.idle_cpu",
        "density.launch_rate",
    )
    method = (
        "Instances are started until the service level breaks: each answers, launches stay quick, memory remains.",
        "The ramp stops before the host is in danger, or at the cap or time given; then the number is a lower bound.",
        "Marginal memory is the slope of the host's available memory over the ramp; what is projected from it says so.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Available memory along the ramp, then launch times and launches per second along it."""
        for metric, slug, title, unit, what in (
            (
                "density.available_memory",
                "density-memory",
                "Host memory taken as instances are added: the slope is what one more costs",
                "B",
                "memory taken",
            ),
            (
                "density.launch",
                "density-launch",
                "How long each launch took along the ramp: a rise would be the next wall",
                "s",
                "launch time",
            ),
            (
                "density.ramp_rate",
                "density-rate",
                "How many launches a second the ramp made as instances were added",
                "launches/s",
                "launches per second",
            ),
        ):
            lanes = [lane for label in view.frame.labels() if (lane := ramp(view, metric, label))]
            if unit == "B":
                lanes = [replace(lane, points=taken(lane)) for lane in lanes]
            if lanes:
                data = sample_table(f"{slug}-data", what, lanes, unit, "Instances")
                along = "instances running"
                yield figures.order(slug, title, ends(lanes, unit), lanes, unit, what, along=along, data=data)

    def tables(self, view: View, row: Row) -> Iterator[Table]:
        """What was reached and why it ended there, with the projection; then all figures."""
        yield reached(view, row)
        yield from super().tables(view, row)


def ends(lanes: list[Lane], unit: str) -> str:
    """First and last point of each lane, in words."""
    told = (
        (lane.shown, *(f"{human(value, unit)} at {n:g}" for n, value in (lane.points[0], lane.points[-1])))
        for lane in lanes
    )
    return "; ".join(f"{name}: {first}, {last}" for name, first, last in told)


def ramp(view: View, metric: str, label: str) -> Lane | None:
    """(n, value) along the ramp of `label`; over several ramps the median at each n."""
    found = view.frame.values(metric, label)
    steps: dict[float, list[float]] = {}
    for _, value, where in found:
        if where.get("n", "").isdigit():
            steps.setdefault(float(where["n"]), []).append(value)
    points = [(n, median(values)) for n, values in sorted(steps.items())]
    return view.lane(label, points) if points else None


def taken(lane: Lane) -> tuple[tuple[float, float], ...]:
    """What is gone of the memory available at the ramp's start, at each n."""
    start = lane.points[0][1]
    return tuple((n, start - available) for n, available in lane.points)


def projection(view: View, label: str) -> float | None:
    """Instances that the memory at the ramp's start would carry at the marginal cost, keeping 10 % or 1 GiB free."""
    marginal = view.evidence.estimate("density.marginal_memory", label).value
    memory = ramp(view, "density.available_memory", label)
    if marginal is None or marginal <= 0 or memory is None:
        return None
    available = memory.points[0][1]
    return max(0.0, (available - max(available * 0.1, float(1 << 30))) / marginal)


def marginal(view: View, label: str) -> Value:
    """What one more instance took of the host's memory, with Sen's interval of the slope under it."""
    estimate = view.evidence.estimate("density.marginal_memory", label)
    memory = ramp(view, "density.available_memory", label)
    points = memory.points if memory else ()
    slope = stats.theil_sen([n for n, _ in points], [available for _, available in points])
    if estimate.value is None or slope is None:
        return cells.cell(estimate, view.words)
    taken_by_one = -slope.estimate
    return Value(
        human(taken_by_one, "B", 3), exact(taken_by_one), estimate.mark, note=span(-slope.high, -slope.low, "B", 3)
    )


def reached(view: View, row: Row) -> Table:
    """Instances reached, what ended the ramp, marginal memory, and the projection by memory alone, named as one."""
    columns = (
        Column("Driver"), Column("Instances", number=True), Column("Ended by"), Column("Marginal memory", number=True),
        Column("Projection by memory alone", unit="instances", number=True),
    )  # fmt: skip
    return Table(
        slug="density-reached",
        caption="Instances reached, and what ended the ramp",
        columns=columns,
        rows=tuple(_reached(view, estimate) for estimate in (*row.container, *row.vm)),
        note="A projection is not a measurement: other walls (ports, pids, scheduling) may come first. "
        "No verdict rests on it.",
    )


def _reached(view: View, estimate: Estimate) -> tuple[Value | str, ...]:
    if estimate.value is None:
        return estimate.label, cells.cell(estimate, view.words), *(Value("—", absent=True),) * 3
    projected = projection(view, estimate.label)
    return (
        estimate.label,
        cells.cell(replace(estimate, note=None), view.words),
        ", ".join(limiters(view.evidence, "density.instances", estimate.label)) or "not recorded",
        marginal(view, estimate.label),
        Value("no projection", absent=True)
        if projected is None
        else Value(f"≈ {digits(projected)} (projection)", exact(projected)),
    )
