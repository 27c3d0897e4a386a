"""Layers: what further images and instances take beside the first, and whether changes stay where they were made."""

from __future__ import annotations

from collections.abc import Iterator

from reports import figures
from reports.claims import Row
from reports.page import Figure
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import human

PARTS = {
    "image": ("footprint.image_allocated", {}),
    "one more instance": ("growth.marginal_allocated", {}),
    "one byte of a large file changed": ("growth.copy_up", {}),
    "second image, as a layer": ("delivery.stored", {"way": "layer"}),
    "second image, as a whole disk": ("delivery.stored", {"way": "whole disk"}),
    "second image, as changed clusters": ("delivery.stored", {"way": "changed clusters"}),
}


class Layers(ClaimSection):
    """The parts on one axis."""

    claim = "layers"
    metrics = (
        "footprint.image_allocated",
        "growth.marginal_allocated",
        "growth.written_64mib",
        "growth.copy_up",
        "layers.apart",
    )
    method = (
        "Allocated blocks on the host; the second image differs from the first by one file of 1 MiB.",
        "One instance appends to a file of the image and removes another; its sibling and the host's files are read.",
        "A machine's disk overlay is a thin writable layer too: what differs is what it holds when booted.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """What the image, one more instance and a second image take."""
        lanes = []
        for name, (metric, where) in PARTS.items():
            for label in view.frame.labels():
                found = view.frame.values(metric, label, **where) if "~" not in label else []
                if points := [(float(block), value) for block, value, _ in found if value > 0]:
                    lanes.append(
                        view.lane(label, points, view.evidence.estimate(metric, label, **where), f"{name}, {label}")
                    )
        if lanes:
            yield figures.dots(
                "layers-parts",
                "What an image, one more instance of it and a second image like it take",
                "; ".join(f"{lane.shown}: {human(lane.points[0][1], 'B')}" for lane in lanes),
                lanes,
                "B",
                "allocated bytes",
                data=sample_table("layers-parts-data", "Allocated bytes, every sample", lanes, "B"),
            )
