"""What setting a figure of Tare's beside the same from outside takes: both measured by turns, shown side by side."""

from __future__ import annotations

import random
import shutil
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from harness.bench import IMAGE
from harness.intervals import Interval, median_interval
from harness.profiles import PROFILES
from runtime.driver import Driver, Host, Prepared
from runtime.instance import Instance, Timeline
from runtime.spec import InstanceSpec
from tests.conftest import skip_or_fail
from workloads.base import Context, Workload
from workloads.metric import Phase

SPEC = InstanceSpec(image=IMAGE, limits=PROFILES["standard"].limits)
RUNS = 3  # of what launches: a block's figure is their median, after a warm-up


@dataclass(frozen=True)
class Pair:
    """One figure by Tare and from outside, a number a block each."""

    what: str
    unit: str
    tare: Sequence[float]
    outside: Sequence[float]

    def line(self) -> str:
        """Both sides, what lies between them as a share of what is outside, and whether they agree."""
        tare, outside = interval(self.tare), interval(self.outside)
        assert tare.high > 0
        assert outside.high > 0
        apart = interval(
            [(mine - theirs) / outside.estimate for mine, theirs in zip(self.tare, self.outside, strict=True)]
        )
        return (
            f"{self.what}: Tare {text(tare)}, outside {text(outside)} {self.unit}, n {tare.n}, "
            f"apart {apart.estimate:+.1%} [{apart.low:+.1%}, {apart.high:+.1%}]: "
            f"{'inside' if tare.low <= outside.high and outside.low <= tare.high else 'outside'}"
        )


def interval(values: Sequence[float]) -> Interval:
    found = median_interval(values)
    assert found is not None
    return found


def text(one: Interval) -> str:
    return f"{one.estimate:.4g} [{one.low:.4g}, {one.high:.4g}]"


def show(*pairs: Pair) -> None:
    print("", *(pair.line() for pair in pairs), sep="\n")  # noqa: T201


def ready(driver: Driver, prepared: Prepared) -> Instance:
    instance = driver.launch(prepared)
    try:
        instance.wait_ready(30)
    except BaseException:
        instance.close()
        raise
    return instance


def no_peer() -> NoReturn:
    raise AssertionError("this workload has no peer")


def measured(
    workload: Workload,
    driver: Driver,
    prepared: Prepared,
    instance: Instance | None,
    launch: Callable[..., Instance] | None = None,
    peer: Callable[[], Instance] = no_peer,
    **params: float,
) -> dict[str, list[float]]:
    """The workload's own samples, warm-up left out, by metric."""
    context = Context(
        driver=driver,
        prepared=prepared,
        launch=launch or (lambda spec=None: ready(driver, prepared)),
        peer=peer,
        params=params,
        instance=instance,
    )
    found: dict[str, list[float]] = {}
    for sample in workload.measure(context):
        if sample.phase is Phase.MEASURE:
            found.setdefault(sample.metric, []).append(sample.value)
    return found


def in_turns(blocks: int, *sides: Callable[[], None]) -> None:
    """Every side once a block, in an order of its own."""
    rng = random.Random(1)
    for _ in range(blocks):
        for side in rng.sample(sides, len(sides)):
            side()


@contextmanager
def opened(kind: type[Driver], host: Host) -> Iterator[tuple[Driver, Prepared]]:
    driver = kind(host)
    try:
        found = driver.probe()
        if not found.usable:
            skip_or_fail(f"{driver.name}: {found.reason}")
        yield driver, driver.prepare(SPEC)
    finally:
        driver.close()


def demand(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed")


def middle(timelines: Sequence[Timeline], first: str, last: str) -> float:
    """The median of what lies between two events, in seconds."""
    found = [timeline.between_ns(first, last) for timeline in timelines]
    return statistics.median(elapsed_ns / 1e9 for elapsed_ns in found if elapsed_ns is not None)


def lives(driver: Driver, prepared: Prepared) -> list[Timeline]:
    """What happened when, of instances that were ready and then closed; the first, a warm-up, is left out."""
    timelines: list[Timeline] = []
    for _ in range(1 + RUNS):
        with ready(driver, prepared) as instance:
            timelines.append(instance.timeline)
    return timelines[1:]
