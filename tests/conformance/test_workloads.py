"""What every registered workload must do, run on drivers of every kind that live in memory."""

from __future__ import annotations

import contextlib
import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.spec import ImageRef, InstanceSpec, Limits
from tests.fakes import Behaviour, FakeDriver, FakeInstance, fake_host, look
from tests.unit.workloads.visits import Shelf
from workloads import delivery, hostview, idle
from workloads.base import Context, Stage, Workload, all_workloads
from workloads.isolation import namespaces
from workloads.metric import Metric, Sample

SPEC = InstanceSpec(
    image=ImageRef("tare/debian", tag="bookworm"), limits=Limits(cpus=0.9, memory_bytes=256 << 20, pids=512)
)
# Small enough for seconds; every name a workload reads from a profile.
PARAMS = {
    "seconds": 0.02,
    "small_s": 0.02,
    "size_mib": 1,
    "repeats": 2,
    "cap": 25,
    "width": 1,
    "time_s": 20,
    "idle_s": 0.01,
    "hogs": 4,
}
WORKLOADS = all_workloads()
CASES = [
    pytest.param(workload, kind, id=f"{name}-{kind}")
    for name, workload in sorted(WORKLOADS.items())
    for kind in sorted(workload.kinds)
]


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes have no boot to wait for."""
    monkeypatch.setattr(idle, "QUIET_WINDOW_S", 0.0)
    monkeypatch.setattr(idle, "QUIET_SHARE", math.inf)


@pytest.fixture(autouse=True)
def nobody_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes have no network, and their host keeps its caches."""
    monkeypatch.setattr(hostview, "first_answer_ns", lambda *_: time.monotonic_ns())
    monkeypatch.setattr(hostview, "drop_caches", lambda: None)


@pytest.fixture(autouse=True)
def untouched_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fakes have no host around them on which anything could be done."""
    shown: list[str] = []

    @contextlib.contextmanager
    def beacon(directory: Path, signal: namespaces.Signal) -> Iterator[None]:
        shown.append(signal.nonce)
        yield
        shown.clear()

    def seen(signal: namespaces.Signal) -> namespaces.View:
        view = namespaces.parse(look("host", bool(shown)))
        return replace(view, seen={**view.seen, "mount": bool(shown)})

    monkeypatch.setattr(delivery, "serving", lambda directory: contextlib.nullcontext(Shelf()))
    monkeypatch.setattr(namespaces, "outside_beacon", beacon)
    monkeypatch.setattr(namespaces, "outside_look", seen)


DEATH_IS_A_RESULT = {"density"}  # it ends the ramp and is named as what limited it: see its unit tests


class Visit:
    """A workload's turn on a fake driver, as the harness runs it."""

    def __init__(self, workload: type[Workload], kind: Kind, directory: Path, behaviour: Behaviour) -> None:
        self.workload = workload()
        self.driver = FakeDriver(fake_host(directory), name=str(kind), kind=kind, behaviour=behaviour)
        self.native = FakeDriver(fake_host(directory / "peer"), name="peer", kind=Kind.NATIVE, behaviour=behaviour)
        prepared = self.driver.prepare(SPEC)
        own = workload.stage is Stage.OWN
        self.shared: FakeInstance | None = None if own else self.driver.launch(prepared)
        self.context = Context(
            driver=self.driver,
            prepared=prepared,
            launch=lambda spec=None: self.driver.launch(self.driver.prepare(spec) if spec else prepared),
            peer=lambda: self.native.launch(self.native.prepare(SPEC)),
            params=dict(PARAMS),
            rng=random.Random(7),
            instance=self.shared,
        )
        if workload.stage is Stage.TEARDOWN and self.shared is not None:
            self.shared.close()

    @property
    def instances(self) -> list[FakeInstance]:
        return [*self.driver.instances, *self.native.instances]

    def measure(self) -> list[Sample]:
        return list(self.workload.measure(self.context))


@pytest.mark.parametrize(("workload", "kind"), CASES)
def test_workload_yields_finite_samples_of_its_own_metrics(
    workload: type[Workload], kind: Kind, tmp_path: Path
) -> None:
    visit = Visit(workload, kind, tmp_path, Behaviour())
    samples = visit.measure()
    assert {sample.metric for sample in samples} <= {metric.name for metric in workload.metrics}
    assert samples
    assert all(math.isfinite(sample.value) for sample in samples)
    assert all(isinstance(value, str) for sample in samples for value in sample.labels.values())


@pytest.mark.parametrize(("workload", "kind"), CASES)
def test_workload_closes_what_it_launches_and_nothing_else(
    workload: type[Workload], kind: Kind, tmp_path: Path
) -> None:
    visit = Visit(workload, kind, tmp_path, Behaviour())
    visit.measure()
    open_now = [each for each in visit.instances if not each.closed]
    assert open_now == ([visit.shared] if visit.shared and workload.stage is not Stage.TEARDOWN else [])
    assert all(not instance.running and not instance.paused for instance in visit.instances)


@pytest.mark.parametrize(("workload", "kind"), CASES)
def test_workload_repeats_itself_with_the_same_seed(workload: type[Workload], kind: Kind, tmp_path: Path) -> None:
    runs = [Visit(workload, kind, tmp_path / name, Behaviour(jitter=0.1)).measure() for name in ("a", "b")]
    shapes = [[(sample.metric, sample.labels.get("condition")) for sample in run] for run in runs]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("workload", "kind"), CASES)
def test_instance_that_dies_at_any_command_is_an_exception_never_a_number(
    workload: type[Workload], kind: Kind, tmp_path: Path
) -> None:
    visit = Visit(workload, kind, tmp_path / "whole", Behaviour())
    visit.measure()
    commands = sum(len(instance.commands) for instance in visit.instances)
    for ordinal in range(commands if workload.name not in DEATH_IS_A_RESULT else 0):
        visit = Visit(workload, kind, tmp_path / str(ordinal), Behaviour(reply=dying_at(ordinal)))
        with pytest.raises(TareError, match="gone"):
            visit.measure()
        assert [each for each in visit.instances if not each.closed and each is not visit.shared] == []


def dying_at(ordinal: int) -> Callable[[FakeInstance, Sequence[str]], None]:
    """An answer to commands: the instance that gets the one of that number, over all instances, dies of it."""
    numbers = itertools.count()

    def reply(instance: FakeInstance, argv: Sequence[str]) -> None:
        if next(numbers) == ordinal:
            instance.kill()
            raise TareError(f"instance {instance.id}", "it is gone")

    return reply


@pytest.mark.parametrize(("workload", "kind"), CASES)
def test_workload_passes_the_first_failed_launch_on(workload: type[Workload], kind: Kind, tmp_path: Path) -> None:
    whole = Visit(workload, kind, tmp_path / "whole", Behaviour())
    launched = len(whole.instances)
    whole.measure()
    visit = Visit(workload, kind, tmp_path, Behaviour())
    visit.driver.behaviour.fail_launch = lambda ordinal: TareError("launch", "told to fail")
    expected = pytest.raises(TareError, match="told to fail")
    with expected if len(whole.instances) > launched else contextlib.nullcontext():
        visit.measure()


def test_metric_names_are_unique_and_bear_units() -> None:
    metrics: list[Metric] = [metric for workload in WORKLOADS.values() for metric in workload.metrics]
    names = [metric.name for metric in metrics]
    assert len(names) == len(set(names))
    assert all(metric.unit and metric.help for metric in metrics)


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_metrics_are_found_by_the_name_of_their_workload(workload: type[Workload]) -> None:
    for metric in workload.metrics:
        flat = metric.name.replace(".", "_") + "_"
        assert max((name for name in WORKLOADS if flat.startswith(f"{name}_")), key=len, default="") == workload.name


def test_every_workload_of_the_first_report_is_there() -> None:
    assert set(WORKLOADS) >= {
        *("startup", "teardown", "footprint", "density", "overhead_cpu", "overhead_memory", "overhead_disk"),
        *("enforcement", "idle", "leakage"),
    }


@pytest.mark.parametrize("workload", WORKLOADS.values(), ids=list(WORKLOADS))
def test_overhead_and_isolation_figures_need_hardware(workload: type[Workload]) -> None:
    if workload.name.startswith("overhead") or workload.name == "leakage":
        assert all(metric.hardware for metric in workload.metrics)
