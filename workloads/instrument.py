"""The instrument's own floor: what asking costs where nothing is done, to be read beside every other figure."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from runtime.errors import TareError
from workloads.base import Context, Stage, Workload
from workloads.honesty import GRACE_S
from workloads.metric import Better, Metric, Sample
from workloads.tools import gauge

SPAWN = Metric("instrument.host_spawn", "s", Better.LOWER, "the harness starts a program that ends, and waits")
COMMAND = Metric(
    "instrument.command", "s", Better.LOWER, "a command that does nothing: there, started, ended, told", True
)
PROGRAM = "/bin/true"


class Instrument(Workload):
    """`repeats` of each (default 5), one at a time; the first of either is what the others leave warm, and is kept.

    The first is the same for every driver: where it differs between visits, the host does. The second is under every
    figure that a command inside was timed for from outside; rates by a tool's own clock do not contain it.
    """

    name = "instrument"
    stage = Stage.SESSION
    metrics = (SPAWN, COMMAND)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield seconds. Raises TareError when either program fails."""
        for iteration in range(int(context.param("repeats", 5))):
            labels = {"iteration": str(iteration)}
            yield Sample(SPAWN.name, _spawned_s(), labels=labels)
            elapsed_ns = context.shared.exec(gauge.NOTHING, GRACE_S).check().elapsed_ns
            yield Sample(COMMAND.name, elapsed_ns / 1e9, labels=labels)


def _spawned_s() -> float:
    began_ns = time.monotonic_ns()
    _, status = os.waitpid(os.posix_spawn(PROGRAM, (PROGRAM,), {}), 0)
    elapsed_ns = time.monotonic_ns() - began_ns
    if status != 0:
        raise TareError(PROGRAM, f"ended with status {status}")
    return elapsed_ns / 1e9
