"""Startup: phases of both sides on one clock, the distributions of readiness, and their order in time."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from harness.results import Outcome
from reports import figures
from reports.claims import Row
from reports.figures import Bound, Lane, Track
from reports.page import Column, Figure, Table, Value
from reports.sections.base import ClaimSection, View, sample_table
from reports.sections.density import ends, ramp
from reports.units import exact, human

MINUTE = Bound(60.0, "1 min")
AFTER_LIFE = ("closing", "stopped", "removed")


class Startup(ClaimSection):
    """How long until the first instruction runs inside and until a service answers."""

    claim = "startup"
    metrics = (
        "startup.spawned",
        "startup.userland",
        "startup.ready",
        "startup.answered_ready",
        "startup.answered",
        "startup.cold_userland",
        "startup.cold_ready",
        "startup.at_once_rate",
        "teardown.stopped",
        "teardown.removed",
    )
    method = (
        "Every replicate is one fresh instance; the order of drivers within a block is a seeded permutation.",
        "Phases are stamped on the host's monotonic clock when the event arrives; nothing is polled meanwhile.",
        "Ready: its own service answered; answered: a client outside was; cold: caches dropped before. No pull inside.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Waterfall, cumulative distribution, many at once, order in time."""
        tracks = [track for label in view.frame.labels() if "~" not in label and (track := phases(view, label))]
        if tracks:
            yield figures.waterfall(
                "startup-phases",
                "Phases of each block's first instance, from the request to readiness, on one clock",
                tracks,
                data=phase_table(tracks),
            )
        lanes = view.lanes("startup.ready")
        if lanes:
            finding = "; ".join(f"{lane.shown}: {extent(lane)}" for lane in lanes)
            yield figures.steps(
                "startup-ready", "How long instances took to be ready", finding, lanes, "s", "request to ready",
                bounds=[MINUTE], data=sample_table("startup-ready-data", "Request to ready", lanes, "s"),
            )  # fmt: skip
        together = [lane for label in view.frame.labels() if (lane := ramp(view, "startup.at_once_last", label))]
        if together:
            yield figures.order(
                "startup-at-once", "How long until the last of several launches begun together was ready",
                ends(together, "s"),
                together, "s", "until the last was ready", along="launches begun together",
                data=sample_table("startup-at-once-data", "Until the last was ready", together, "s", "At once"),
            )  # fmt: skip
        medians = view.medians("startup.ready")
        if medians:
            yield from figures.drift(
                "startup-order",
                "The same in the order measured, each against its own median: a drift would show as a slope",
                medians,
                data=sample_table("startup-order-data", "Request to ready, median of each block", medians, "s"),
            )


def extent(lane: Lane) -> str:
    """Smallest and largest value of a lane, in words."""
    values = [value for _, value in lane.points]
    return f"{human(min(values), 's')} to {human(max(values), 's')}"


def phases(view: View, label: str) -> Track | None:
    """Median time of each phase since the request, over the instances of `label`; None without a timeline."""
    since: dict[str, list[float]] = {}
    for record in view.frame.records("startup", label):
        moments = dict(record.timeline)
        if record.outcome is not Outcome.OK or "request" not in moments:
            continue
        for name, at_ns in moments.items():
            if name not in AFTER_LIFE and at_ns > moments["request"]:
                since.setdefault(name, []).append((at_ns - moments["request"]) / 1e9)
    events = sorted(((name, median(times)) for name, times in since.items()), key=lambda event: event[1])
    if not events:
        return None
    return Track(name=label, kind=view.kind(label), events=tuple(events), mark=view.frame.mark(label))


def phase_table(tracks: list[Track]) -> Table:
    """The phases as rows of driver, phase, time since the request."""
    rows = [
        (track.name, name, Value(f"{at:.6f}", exact(at), track.mark)) for track in tracks for name, at in track.events
    ]
    columns = (Column("Driver"), Column("Phase"), Column("Since the request", unit="s", number=True))
    return Table(slug="startup-phases-data", caption="Median time of each phase", columns=columns, rows=tuple(rows))
