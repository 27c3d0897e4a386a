"""Delivery: what a change of one file takes to travel, in each form."""

from __future__ import annotations

from collections.abc import Iterator

from reports import cells, figures
from reports.claims import Row
from reports.page import Column, Figure, Table, Value
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import human

STEPS = ("pack", "push", "pull", "unpack", "total")


class Delivery(ClaimSection):
    """Bytes by form, then where the seconds go."""

    claim = "delivery"
    method = (
        "A file of 1 MiB of random bytes is written in a fresh instance, flushed; the instance is frozen and sent.",
        "Through docker-registry on loopback, by one client, to a receiver that has the unchanged image.",
        "A booted machine's change holds what its boot wrote. Loopback has no distance: on a network bytes decide.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Bytes of every form and driver on one axis."""
        metric = "delivery.bytes"
        lanes = [
            view.lane(label, points, view.evidence.estimate(metric, label, way=way), f"{way}, {label}")
            for way in view.frame.conditions(metric, "way")
            for label in view.frame.labels()
            if (points := [(float(block), value) for block, value, _ in view.frame.values(metric, label, way=way)])
        ]
        if lanes:
            yield figures.dots(
                "delivery-bytes",
                "Bytes that a change of one file of 1 MiB takes to travel",
                "; ".join(f"{lane.shown}: {human(lane.points[0][1], 'B')}" for lane in lanes),
                lanes,
                "B",
                "bytes sent",
                data=sample_table("delivery-bytes-data", "Bytes sent, every sample", lanes, "B"),
            )

    def tables(self, view: View, row: Row) -> Iterator[Table]:
        """One row a driver and form: bytes, blocks at the receiver, seconds by step."""
        rows: list[tuple[Value | str, ...]] = []
        for label in view.frame.labels():
            for way in view.frame.conditions("delivery.bytes", "way"):
                if view.frame.values("delivery.bytes", label, way=way):
                    sizes = [view.evidence.estimate(m, label, way=way) for m in ("delivery.bytes", "delivery.stored")]
                    times = [view.evidence.estimate("delivery.seconds", label, way=way, step=step) for step in STEPS]
                    rows.append((label, way, *(cells.cell(figure, view.words) for figure in (*sizes, *times))))
        head = ("Bytes sent", "Blocks kept", *(step.capitalize() for step in STEPS))
        columns = (Column("Driver"), Column("Form"), *(Column(name, number=True) for name in head))
        if rows:
            caption = view.words.say("caption.delivery")
            yield Table(slug="delivery-steps", caption=caption, columns=columns, rows=tuple(rows))
