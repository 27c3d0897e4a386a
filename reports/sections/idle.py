"""Idle cost: what one instance that does nothing takes from the host."""

from __future__ import annotations

from collections.abc import Iterator

from reports import figures
from reports.claims import Row
from reports.page import Figure
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import human


class Idle(ClaimSection):
    """Memory by two methods and CPU time, seen from the host."""

    claim = "overhead-free"
    metrics = ("idle.memory_pss", "idle.memory_cgroup", "idle.cpu")
    method = (
        "Figures are the host's: for a VM its QEMU process, for a container its processes and its cgroup.",
        "Memory by two methods: PSS shares out pages used by several; the cgroup charges the first, cache included.",
        "Nothing is executed inside while the idle instance is watched.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Memory of every sample, then its order in time."""
        metric = "idle.memory_pss"
        lanes = view.lanes(metric)
        if lanes:
            yield figures.dots(
                "idle-memory",
                "Host memory of one idle instance (PSS)",
                "; ".join(f"{lane.shown}: {human(lane.points[0][1], 'B')}" for lane in lanes),
                lanes,
                "B",
                "proportional set size",
                data=sample_table("idle-memory-data", "PSS of one idle instance", lanes, "B"),
            )
            yield from figures.drift(
                "idle-order",
                "The same in the order measured, each against its own median",
                view.medians(metric),
                data=sample_table("idle-order-data", "PSS, median of each block", view.medians(metric), "B"),
            )
