"""Density: how many instances run at once before a service level breaks, what stopped it, and what each one costs."""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations, pairwise

from runtime.errors import TareError
from runtime.instance import Instance
from workloads import hostview
from workloads.base import Context, Invalid, Stage, Workload
from workloads.idle import settle
from workloads.metric import Better, Metric, Sample

INSTANCES = Metric("density.instances", "count", Better.HIGHER, "instances running at once within the service level")
MARGINAL = Metric("density.marginal_memory", "B", Better.LOWER, "host MemAvailable taken by one more instance")
AVAILABLE = Metric("density.available_memory", "B", Better.HIGHER, "host MemAvailable along the ramp")
LAUNCH = Metric("density.launch", "s", Better.LOWER, "request to ready, along the ramp", True)
RATE = Metric("density.launch_rate", "launches/s", Better.HIGHER, "instances made ready per second of ramp", True)
ALONG = Metric("density.ramp_rate", "launches/s", Better.HIGHER, "launches per second of growing, along the ramp", True)
PSS = Metric("density.pss_per_instance", "B", Better.LOWER, "proportional set size of one instance at the top")
CGROUP = Metric("density.cgroup_memory_per_instance", "B", Better.LOWER, "memory charged to one instance at the top")
IDLE = Metric(
    "density.idle_cpu", "CPU s/s", Better.LOWER, "host CPU time per second and idle instance at the top", True
)

LATENCY_FACTOR = 3
PROBE_TIMEOUT_S = 30.0
TASK_RESERVE = 1000  # tasks the host keeps for itself
WALKERS = 4  # threads that probe and close: both mostly wait
LOOKS = 16  # instances whose memory is read at the top
POINTS = 60  # of the memory curve: one each up to this many, then as many again up to the cap
FIRST, P95_NEEDS = 10, 200  # a percentile q needs 10 ÷ (1 − q) values


class Density(Workload):
    """Launch `width` at a time (default 1) up to `cap` (default 1000) or for `time_s` (default 60); look; close all.

    Service level: every instance answers a command (all are asked each time their number has doubled, and at
    the top); launches stay within 3 × the first ten's; MemAvailable stays above max(10 %, 1 GiB), counting
    what the next wave will take; none dies. Latency compares like with like: nearest-rank p95 of the last 200
    against the first ten's, once 200 exist; before that medians of the last and first ten, as a 95th
    percentile needs 200 values; under ten launches nothing. `limiter` names what ended the ramp: cap, time,
    memory, tasks, latency, failures (a launch or a probe), died. With cap or time the figure is a lower bound.

    Marginal memory is the Theil–Sen slope over the ramp; idle CPU is /proc/stat's busy time for `idle_s`
    (default 2) at the top, less as long before the first launch (signed), per instance.
    """

    name = "density"
    stage = Stage.OWN
    metrics = (INSTANCES, MARGINAL, AVAILABLE, LAUNCH, RATE, ALONG, PSS, CGROUP, IDLE)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield everything once all is closed. Raises the first failure when not even one instance ran."""
        hostview.rest()  # what others gave back during the ramp would flatter its slope
        with hostview.many_open_files():
            ramp = Ramp(context)
            try:
                samples = ramp.climb()
            finally:
                ramp.close()
        yield from samples


class Ramp:
    """The instances of one density run and what was seen while they grew in number."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._cap, self._width = int(context.param("cap", 1000)), max(1, int(context.param("width", 1)))
        self._idle_s = context.param("idle_s", 2)
        ends_ns = time.monotonic_ns() + round(context.param("time_s", 60) * 1e9)
        self._ends_ns = min(ends_ns, context.deadline_ns or ends_ns)
        self._lock = threading.Lock()
        self._instances: list[Instance] = []
        self._launches_s: list[float] = []
        self._memory: list[tuple[int, int]] = []
        self._grown: list[tuple[int, int]] = [(0, 0)]  # instances, nanoseconds of growing until then
        self._failure: Exception | None = None
        self._wave_ns = self._growing_ns = 0

    def climb(self) -> list[Sample]:
        """Grow until something stops it. Returns the samples; the instances still run."""
        idle_before = self._busy_share()
        self._note_memory()
        limiter, within, asked, before = "", 0, 0, 0
        while not limiter:
            limiter = self._exhausted()
            broken = ""
            if not limiter:
                before = self._count
                self._grow(min(self._width, self._cap - before))
                broken = self._broken()
                limiter = "failures" if self._failure else broken
            if limiter or self._count >= 2 * asked:
                complaint = self._ask_all()
                limiter, asked = complaint or limiter, asked if complaint else self._count
                within = before if broken and not complaint else asked
                self._context.say(f"{self._count} instances")
        if within == 0:
            raise self._failure or Invalid("density", f"not one instance within the service level: {limiter}")
        if limiter not in ("died", "failures"):
            for instance in self._instances[-self._width :]:
                settle(instance)  # the last ones' boot is not the idle cost of all
        return [*self._ramp_samples(within, limiter), *self._top_samples(idle_before)]

    @property
    def _count(self) -> int:
        return len(self._instances)

    def _exhausted(self) -> str:
        """What forbids the next wave, if anything: it is counted in before it is launched."""
        now = hostview.memory()
        expected = min(self._width, self._cap - self._count)
        if self._count >= self._cap:
            return "cap"
        if time.monotonic_ns() + self._wave_ns > self._ends_ns:
            return "time"
        if now.available - expected * self._cost_bytes() < now.reserve:
            return "memory"
        return "tasks" if hostview.task_room() < TASK_RESERVE else ""

    def _cost_bytes(self) -> int:
        """What one more instance takes: as seen so far, or all its limit allows before anything was seen."""
        (_, first), (count, last) = self._memory[0], self._memory[-1]
        if count == 0:
            return self._context.prepared.spec.limits.memory_bytes or 0
        return max(0, (first - last) // count)

    def _grow(self, count: int) -> None:
        began_ns = time.monotonic_ns()
        if count == 1:
            self._launch()
        else:
            with ThreadPoolExecutor(count, "launch") as pool:
                list(pool.map(lambda _: self._launch(), range(count)))
        self._wave_ns = time.monotonic_ns() - began_ns
        self._growing_ns += self._wave_ns
        if self._count <= POINTS or self._count % max(1, self._cap // POINTS) < count:
            self._note_memory()
            self._grown.append((self._count, self._growing_ns))

    def _launch(self) -> None:
        try:
            instance = self._context.launch()
            with self._lock:
                self._instances.append(instance)
            elapsed_ns = instance.timeline.between_ns("request", "ready")
            if elapsed_ns is None:
                raise Invalid("density", "the timeline lacks request or ready")
            with self._lock:
                self._launches_s.append(elapsed_ns / 1e9)
        except Exception as error:  # noqa: BLE001 - whatever stops a launch ends the ramp, and is its result
            self._failure = self._failure or error

    def _note_memory(self) -> None:
        self._memory.append((self._count, hostview.memory().available))

    def _broken(self) -> str:
        """The part of the service level that the last wave broke, seen without asking anyone."""
        now = hostview.memory()
        if now.available < now.reserve:
            return "memory"
        return "latency" if latency_breached(self._launches_s) else ""

    def _ask_all(self) -> str:
        """What is wrong with any of the instances: `died`, `failures` (one does not answer), or nothing."""
        if not all(instance.alive() for instance in self._instances):
            return "died"
        with ThreadPoolExecutor(WALKERS, "ask") as pool:
            answers = list(pool.map(_answers, self._instances))
        return "" if all(answers) else "failures"

    def _busy_share(self) -> float:
        """Host CPU seconds per second, over `idle_s` of doing nothing."""
        before_s, began_ns = hostview.busy_cpu_s(), time.monotonic_ns()
        time.sleep(self._idle_s)
        return (hostview.busy_cpu_s() - before_s) / ((time.monotonic_ns() - began_ns) / 1e9)

    def _ramp_samples(self, within: int, limiter: str) -> Iterator[Sample]:
        labels = {"limiter": limiter, "width": str(self._width), "latency_rule": latency_rule(len(self._launches_s))}
        if self._failure is not None:
            labels["reason"] = str(self._failure)[:200]
        yield Sample(INSTANCES.name, within, labels=labels)
        yield Sample(RATE.name, len(self._launches_s) / (self._growing_ns / 1e9), labels={"width": str(self._width)})
        for n, seconds in enumerate(self._launches_s, start=1):
            yield Sample(LAUNCH.name, seconds, labels={"n": str(n)})
        for count, available in self._memory:
            yield Sample(AVAILABLE.name, available, labels={"n": str(count)})
        for (fewer, before_ns), (count, after_ns) in pairwise(self._grown):
            if count > fewer:
                yield Sample(ALONG.name, (count - fewer) / ((after_ns - before_ns) / 1e9), labels={"n": str(count)})
        yield Sample(MARGINAL.name, -slope(self._memory), labels={"points": str(len(self._memory))})

    def _top_samples(self, idle_before: float) -> Iterator[Sample]:
        idle = (self._busy_share() - idle_before) / self._count
        yield Sample(IDLE.name, idle, labels={"n": str(self._count), "method": "/proc/stat less baseline"})
        for position in sorted({round(i * (self._count - 1) / (LOOKS - 1)) for i in range(LOOKS)}):
            if not self._instances[position].alive():
                continue
            usage = self._instances[position].usage()
            labels = {"n": str(position + 1), "method": usage.method}
            if usage.pss_bytes is not None:
                yield Sample(PSS.name, usage.pss_bytes, labels=labels)
            if usage.memory_bytes is not None and usage.method.startswith("cgroup"):
                yield Sample(CGROUP.name, usage.memory_bytes, labels=labels)

    def close(self) -> None:
        """Close every instance, last first. Raises the first error after all were tried."""
        with ThreadPoolExecutor(WALKERS, "close") as pool:
            errors = [error for error in pool.map(_closing_error, reversed(self._instances)) if error is not None]
        if errors:
            raise TareError("density", f"{len(errors)} of {self._count} instances did not close, first: {errors[0]}")


def latency_rule(count: int) -> str:
    """Which statistic of launch latency `count` launches allow."""
    return "none" if count < FIRST else "median of 10" if count < P95_NEEDS else "p95 of 200"


def latency_breached(launches_s: Sequence[float]) -> bool:
    """Whether the latest launches take more than 3 × the first ten's, by the rule their number allows."""
    rule = latency_rule(len(launches_s))
    if rule == "none":
        return False
    first, last = launches_s[:FIRST], launches_s[-FIRST:]
    if rule == "median of 10":
        return statistics.median(last) > LATENCY_FACTOR * statistics.median(first)
    return nearest_rank(launches_s[-P95_NEEDS:], 0.95) > LATENCY_FACTOR * nearest_rank(first, 0.95)


def nearest_rank(values: Sequence[float], quantile: float) -> float:
    """The smallest value that at least `quantile` of all do not exceed."""
    return sorted(values)[math.ceil(quantile * len(values)) - 1]


def slope(points: Sequence[tuple[int, int]]) -> float:
    """Theil–Sen: the median of the slopes between all pairs of points with different x. Raises Invalid for none."""
    slopes = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(points, 2) if x1 != x2]
    if not slopes:
        raise Invalid("density", "no two points of the memory curve differ in their number of instances")
    return statistics.median(slopes)


def _answers(instance: Instance) -> bool:
    try:
        return instance.exec(("/bin/true",), PROBE_TIMEOUT_S).exit_code == 0
    except (TareError, OSError):
        return False


def _closing_error(instance: Instance) -> Exception | None:
    try:
        instance.close()
    except Exception as error:  # noqa: BLE001 - every instance must be tried; the caller raises
        return error
    return None
