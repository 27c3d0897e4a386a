"""Startup from cold caches: the first launch after the host has read nothing of the image for long."""

from __future__ import annotations

from collections.abc import Iterator

from workloads import hostview
from workloads.base import Context, Invalid, Stage, Workload
from workloads.metric import Better, Metric, Sample
from workloads.startup import since_request_s

USERLAND = Metric("startup.cold_userland", "s", Better.LOWER, "request to the first instruction, caches dropped", True)
READY = Metric("startup.cold_ready", "s", Better.LOWER, "request to the service answering itself, caches dropped", True)


class StartupCold(Workload):
    """`repeats` launches (default 3), one after the other; before each the host's caches are written back and dropped.

    What lies below the kernel (a disk's own cache, a hypervisor's) may still be warm: a bound from below. The
    next thing measured meets cold caches too, so profiles put this behind everything that wants them warm.
    """

    name = "startup_cold"
    stage = Stage.OWN
    metrics = (USERLAND, READY)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield both phases of every launch. Raises Invalid where the caches cannot be dropped."""
        for iteration in range(int(context.param("repeats", 3))):
            try:
                hostview.drop_caches()
            except OSError as error:
                raise Invalid(
                    "cold caches", f"they cannot be dropped here: {error}", "run as the host's root"
                ) from error
            with context.launch() as instance:
                labels = {"iteration": str(iteration)}
                yield Sample(USERLAND.name, since_request_s(instance.timeline, "userland"), labels=labels)
                yield Sample(READY.name, since_request_s(instance.timeline, "ready"), labels=labels)
