"""Startup: how long from the request until the first user instruction, and until the service answers."""

from __future__ import annotations

from collections.abc import Iterator

from runtime.instance import Timeline
from workloads.base import Context, Invalid, Stage, Workload
from workloads.metric import Better, Metric, Phase, Sample

SPAWNED = Metric("startup.spawned", "s", Better.LOWER, "request to the instance's process existing", True)
USERLAND = Metric("startup.userland", "s", Better.LOWER, "request to the first user instruction", True)
READY = Metric("startup.ready", "s", Better.LOWER, "request to the service answering itself", True)
PHASES = ((SPAWNED, "spawned"), (USERLAND, "userland"), (READY, "ready"))


class Startup(Workload):
    """Read from the host's one clock, stamped when the instance's own signals arrive; nothing is polled.

    Iteration 0 is the block's shared instance. `repeats` further fresh launches follow (default 0), each closed
    before the next. Where there are any, iteration 0 is kept as warm-up: the first launch after another driver's
    turn meets cold caches and is a figure of its own; the block's figure is the median of the others.
    """

    name = "startup"
    stage = Stage.LAUNCH
    metrics = (SPAWNED, USERLAND, READY)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield the three phases of every launch. Raises Invalid for a timeline with holes or out of order."""
        repeats = int(context.param("repeats", 0))
        yield from _phases(context.shared.timeline, 0, Phase.WARMUP if repeats else Phase.MEASURE)
        for iteration in range(1, repeats + 1):
            with context.launch() as instance:
                samples = list(_phases(instance.timeline, iteration, Phase.MEASURE))
            yield from samples


def _phases(timeline: Timeline, iteration: int, phase: Phase) -> Iterator[Sample]:
    seconds = [since_request_s(timeline, event) for _, event in PHASES]
    if seconds != sorted(seconds) or seconds[0] < 0:
        raise Invalid("startup", f"the timeline is out of order: {timeline.events()}")
    for (metric, _), value in zip(PHASES, seconds, strict=True):
        yield Sample(metric.name, value, phase, {"iteration": str(iteration)})


def since_request_s(timeline: Timeline, event: str) -> float:
    """Seconds from the request to `event`. Raises Invalid where the timeline lacks one of them."""
    elapsed_ns = timeline.between_ns("request", event)
    if elapsed_ns is None:
        raise Invalid("startup", f"the timeline lacks request or {event}")
    return elapsed_ns / 1e9
