"""Disk: what an image, the first instance, each further one, 64 MiB of writes and one changed byte take on the host."""

from __future__ import annotations

from collections.abc import Iterator

from reports import figures
from reports.claims import Row
from reports.figures import Bound
from reports.page import Figure
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import human

PARTS = (
    ("footprint.image_allocated", "image"),
    ("footprint.instance_allocated", "one instance"),
    ("growth.marginal_allocated", "one more instance"),
    ("growth.written_64mib", "after 64 MiB of writes"),
    ("growth.copy_up", "after one byte of a large file"),
)


class Disk(ClaimSection):
    """Allocated bytes, not promised ones."""

    claim = "disk"
    metrics = (*(metric for metric, _ in PARTS), "footprint.image_logical", "footprint.instance_logical")
    method = (
        "Allocated bytes are st_blocks × 512 over the host paths of the image and of the instance, each inode once.",
        "What instances share (layers, base disk, kernel) is the image; what one alone holds is the instance.",
        "Writes (64 MiB of random bytes; one byte of a library) are flushed inside and on the host before any count.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Each part for each driver; then the blocks in order, which should not move at all."""
        lanes = []
        for metric, name in PARTS:
            for label in view.frame.labels():
                values = view.frame.values(metric, label)
                if values and "~" not in label:
                    points = [(float(block), value) for block, value, _ in values if value > 0]
                    estimate = view.evidence.estimate(metric, label)
                    if points:
                        lanes.append(view.lane(label, points, estimate, f"{name}, {label}"))
        if lanes:
            yield figures.dots(
                "disk-parts",
                "What each part takes on disk; the line is the claim's border between MB and GB",
                "; ".join(f"{lane.shown}: {human(lane.points[0][1], 'B')}" for lane in lanes),
                lanes,
                "B",
                "allocated bytes",
                bounds=[Bound(row.claim.limits["gigabyte_bytes"], "1 GB")],
                data=sample_table("disk-parts-data", "Allocated bytes, every sample", lanes, "B"),
            )
        medians = view.medians("footprint.instance_allocated")
        if medians:
            yield from figures.drift(
                "disk-order",
                "What one fresh instance adds, block by block: a line that is not flat holds more than the instance",
                medians,
                data=sample_table("disk-order-data", "Bytes of one fresh instance", medians, "B"),
            )
