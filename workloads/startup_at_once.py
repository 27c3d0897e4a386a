"""Startup of many at once: how long until the last of N is ready, and how many a second that makes."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from runtime.instance import Instance
from workloads.base import Context, Stage, Workload
from workloads.metric import Better, Metric, Phase, Sample
from workloads.startup import since_request_s

LAST = Metric("startup.at_once_last", "s", Better.LOWER, "N launches begun together: until the last was ready", True)
EACH = Metric("startup.at_once_ready", "s", Better.LOWER, "request to ready of each of N begun together", True)
PEAK = Metric("startup.at_once_rate", "launches/s", Better.HIGHER, "the most of any N: N ÷ the time of the last", True)


class StartupAtOnce(Workload):
    """N = 1, 2, 4, … up to `most` (default 8) launches begun together by as many threads, all closed before the next N.

    One launch comes before, kept as warm-up. The time of the last runs from the threads' common start, so what one
    launcher or daemon does one after the other is inside. An N that fails ends the measurement.
    """

    name = "startup_at_once"
    stage = Stage.OWN
    metrics = (LAST, EACH, PEAK)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield every launch, then each N's last, then the peak. Raises the first error of any launch."""
        with context.launch() as instance:
            yield Sample(EACH.name, since_request_s(instance.timeline, "ready"), Phase.WARMUP, {"n": "1"})
        rates: dict[int, float] = {}
        n, most = 1, max(1, int(context.param("most", 8)))
        while n <= most:
            context.say(f"{n} at once")
            lasted_s, launches_s = _at_once(context, n)
            for seconds in launches_s:
                yield Sample(EACH.name, seconds, labels={"n": str(n)})
            yield Sample(LAST.name, lasted_s, labels={"n": str(n)})
            rates[n] = n / lasted_s
            n *= 2
        peak = max(rates, key=lambda count: rates[count])
        yield Sample(PEAK.name, rates[peak], labels={"n": str(peak)})


def _at_once(context: Context, count: int) -> tuple[float, list[float]]:
    """Seconds from the common start until the last of `count` was ready, and each one's own."""
    began_ns: list[int] = []
    start = threading.Barrier(count, action=lambda: began_ns.append(time.monotonic_ns()))
    instances: list[Instance] = []

    def launch() -> int:
        start.wait()
        instances.append(context.launch())
        return time.monotonic_ns()

    with ExitStack() as stack:
        stack.callback(_close, instances)
        with ThreadPoolExecutor(count, "launch") as pool:
            ends = [future.result() for future in [pool.submit(launch) for _ in range(count)]]
        return (max(ends) - began_ns[0]) / 1e9, [since_request_s(each.timeline, "ready") for each in instances]


def _close(instances: list[Instance]) -> None:
    with ExitStack() as stack:
        for instance in instances:
            stack.callback(instance.close)
