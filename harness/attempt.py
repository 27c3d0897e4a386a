"""One attempt at one cell: the workload run under a watchdog, its samples or the reason why there are none.

Whatever a workload or a driver raises becomes a line in a record and a traceback in the run's log;
only the end of the run (KeyboardInterrupt) goes through. Not which cell runs when.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from harness.guard import Guard, Overdue
from harness.hoststate import HostState, host_state
from harness.possible import Account
from runtime.errors import TareError
from workloads.base import Context, Workload
from workloads.metric import Phase, Sample

_SUSPENDED_NS = 50_000_000  # far above the time between reading two clocks


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """What came of it: `samples`, or a `reason`. `hung`: it was abandoned and may still be running inside."""

    started_utc: str
    started_ns: int
    elapsed_ns: int
    samples: tuple[Sample, ...]
    reason: str
    hung: bool
    host_state: dict[str, float]


class FailureLog:
    """Tracebacks of all that failed, in `directory`/failures.log."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def reason(self, error: Exception, where: str) -> str:
        """One line for the record; the traceback goes to the log."""
        text = f"== {utc()} {where}\n{''.join(traceback.format_exception(error))}\n"
        with suppress(OSError):  # a full disk must not turn a counted failure into the run's end
            self._directory.mkdir(parents=True, exist_ok=True)
            with (self._directory / "failures.log").open("a") as log:
                log.write(text)
        return one_line(error)


def attempt(
    workload: Workload, context: Context, *, before: HostState, guard: Guard, hard_s: float, log: FailureLog, where: str
) -> Attempt:
    """Measure once; at the latest after `hard_s` seconds the cell counts as hung. `where` names it in the log.

    What the host did is told since `before`.
    """
    started_utc, started_ns = utc(), time.monotonic_ns()
    samples: tuple[Sample, ...] = ()
    reason, hung = "", False
    try:
        with guard.limit(hard_s, workload.name):
            account = Account(context)
            samples = tuple(workload.measure(context))
            account.demand_possible()
        _demand_valid(workload, samples)
        if host_state().suspended_ns - before.suspended_ns > _SUSPENDED_NS:
            raise TareError(workload.name, "the host was suspended in the middle of it")
    except Exception as error:  # noqa: BLE001 - whatever it raises is a counted failure, the run goes on
        reason, hung = log.reason(error, where), isinstance(error, Overdue)
    return Attempt(
        started_utc=started_utc,
        started_ns=started_ns,
        elapsed_ns=time.monotonic_ns() - started_ns,
        samples=() if reason else samples,
        reason=reason,
        hung=hung,
        host_state=before.delta(host_state()),
    )


def _demand_valid(workload: Workload, samples: Sequence[Sample]) -> None:
    """Reject what must not become a number: nothing at all, an undeclared metric, NaN or infinity."""
    if not any(sample.phase is Phase.MEASURE for sample in samples):
        raise TareError(workload.name, "yielded no sample")
    known = {metric.name for metric in workload.metrics}
    for sample in samples:
        if sample.metric not in known:
            raise TareError(workload.name, f"yielded {sample.metric!r}, which it does not declare")
        if not math.isfinite(sample.value):
            raise TareError(workload.name, f"{sample.metric} came out as {sample.value}")


def one_line(error: Exception) -> str:
    """What went wrong in at most 300 characters; a type's name only where it is not an error meant to be read."""
    text = " ".join(str(error).split())
    if not isinstance(error, TareError):
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return text[:300]


def utc() -> str:
    """The wall clock now, ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
