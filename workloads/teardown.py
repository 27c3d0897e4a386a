"""Teardown: how long from asking an instance to close until it has stopped, and until nothing of it is left."""

from __future__ import annotations

from collections.abc import Iterator

from workloads.base import Context, Invalid, Stage, Workload
from workloads.metric import Better, Metric, Sample

STOPPED = Metric("teardown.stopped", "s", Better.LOWER, "close request to the last process gone", True)
REMOVED = Metric("teardown.removed", "s", Better.LOWER, "close request to nothing left on the host", True)


class Teardown(Workload):
    """Read from the closed instance's timeline: `closing` (the request), `stopped`, `removed`.

    A VM is asked to shut down as an operator would; the proof that nothing is left is inside `removed`.
    """

    name = "teardown"
    stage = Stage.TEARDOWN
    metrics = (STOPPED, REMOVED)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield both durations. Raises Invalid for a timeline with holes or out of order."""
        timeline = context.shared.timeline
        elapsed = [timeline.between_ns("closing", event) for event in ("stopped", "removed")]
        stopped_ns, removed_ns = elapsed
        if stopped_ns is None or removed_ns is None or not 0 <= stopped_ns <= removed_ns:
            raise Invalid("teardown", f"no closing, stopped, removed in this order: {timeline.events()}")
        yield Sample(STOPPED.name, stopped_ns / 1e9)
        yield Sample(REMOVED.name, removed_ns / 1e9)
