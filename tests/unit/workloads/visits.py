"""A context on a fake driver, for tests of single workloads."""

from __future__ import annotations

import random
from pathlib import Path

from runtime.driver import Kind
from runtime.spec import ImageRef, InstanceSpec, Limits
from tests.fakes import SPEC, Behaviour, FakeDriver, FakeInstance, fake_host
from workloads.base import Context
from workloads.metric import Sample
from workloads.tools.registry import Registry

LIMITS = Limits(cpus=0.9, memory_bytes=256 << 20, pids=512)


def visit(
    directory: Path,
    behaviour: Behaviour | None = None,
    *,
    kind: Kind = Kind.CONTAINER,
    limits: Limits = LIMITS,
    shared: bool = True,
    **params: float,
) -> tuple[Context, FakeDriver]:
    """A context, and the driver behind it; `shared` launches the instance that SESSION workloads look at."""
    driver = FakeDriver(fake_host(directory), name=str(kind), kind=kind, behaviour=behaviour)
    prepared = driver.prepare(InstanceSpec(image=ImageRef("tare/debian", tag="bookworm"), limits=limits))
    instance: FakeInstance | None = driver.launch(prepared) if shared else None
    native = FakeDriver(fake_host(directory / "peer"), name="native", kind=Kind.NATIVE, behaviour=driver.behaviour)
    context = Context(
        driver=driver,
        prepared=prepared,
        launch=lambda spec=None: driver.launch(driver.prepare(spec) if spec else prepared),
        peer=lambda: native.launch(native.prepare(SPEC)),
        params=params,
        rng=random.Random(7),
        instance=instance,
    )
    return context, driver


def values(samples: list[Sample], metric: str) -> list[float]:
    """The values of one metric, in order."""
    return [sample.value for sample in samples if sample.metric == metric]


def one(samples: list[Sample], metric: str) -> Sample:
    """The only sample of `metric`."""
    (sample,) = [sample for sample in samples if sample.metric == metric]
    return sample


class Shelf(Registry):
    """A registry in memory."""

    def __init__(self) -> None:
        self._files: dict[str, bytes] = {}

    def put(self, file: Path, tag: str) -> int:
        self._files[tag] = file.read_bytes()
        return len(self._files[tag])

    def get(self, tag: str, file: Path) -> None:
        file.write_bytes(self._files[tag])
