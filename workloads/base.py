"""What a workload is and what it is given; the registry that finds the workloads.

A new workload is one new file in this package: a subclass of `Workload` with a `name`.
When and how often it runs, and what its figures mean, is not decided here.
"""

from __future__ import annotations

import importlib
import pkgutil
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from typing import ClassVar, Protocol

import workloads
from runtime.driver import Driver, Kind, Prepared
from runtime.errors import TareError, UsageError
from runtime.instance import Instance
from runtime.spec import InstanceSpec
from workloads.metric import Metric, Sample


class Stage(StrEnum):
    """When in a driver's visit to a block a workload runs.

    LAUNCH: first, on the fresh instance whose timeline it reads. SESSION: on that same instance, in
    seeded order. TEARDOWN: after the instance was closed, on its complete timeline. OWN: on instances
    that it launches itself, with the shared one closed.
    """

    LAUNCH = "launch"
    SESSION = "session"
    TEARDOWN = "teardown"
    OWN = "own"


class Invalid(TareError):
    """The measurement ran but a validity gate rejects it; counted as a failure, never as a number."""


class Launch(Protocol):
    """Starts further instances on the visit's driver."""

    def __call__(self, spec: InstanceSpec | None = None) -> Instance:
        """A fresh instance, ready, of the visit's spec or of another one; the workload closes it."""


@dataclass(slots=True)
class Context:
    """What a workload may use while it measures.

    `instance` is the visit's shared one (None in stage OWN). `launch()` starts a further fresh
    instance, ready, which the workload closes. `peer()` does so with the same image's programs in the
    host's own network: the other end of an instance's. `params` come from the profile. `say` reports
    progress in a few words. `deadline_ns` (monotonic) is when the cell's time is over; long ramps must look.
    """

    driver: Driver
    prepared: Prepared
    launch: Launch
    peer: Callable[[], Instance]
    params: dict[str, float] = field(default_factory=dict)
    rng: random.Random = field(default_factory=random.Random)
    instance: Instance | None = None
    deadline_ns: int | None = None
    say: Callable[[str], None] = lambda text: None

    @property
    def shared(self) -> Instance:
        """The visit's shared instance."""
        if self.instance is None:
            raise RuntimeError("this stage has no shared instance")
        return self.instance

    def param(self, name: str, default: float) -> float:
        """A number from the profile, or `default`."""
        return self.params.get(name, default)


class Workload(ABC):
    """One measurement. Yields raw samples; any exception makes the cell a counted failure."""

    name: ClassVar[str]
    stage: ClassVar[Stage]
    metrics: ClassVar[tuple[Metric, ...]]
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    _registry: ClassVar[dict[str, type[Workload]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            Workload._registry[cls.name] = cls

    @abstractmethod
    def measure(self, context: Context) -> Iterator[Sample]:
        """Measure once, on one driver, and yield the samples."""


def all_workloads() -> dict[str, type[Workload]]:
    """Every workload by name: all modules below this package are imported, which touches nothing else."""
    for module in pkgutil.walk_packages(workloads.__path__, "workloads."):
        importlib.import_module(module.name)
    return dict(Workload._registry)


def find_workload(name: str) -> type[Workload]:
    """The workload called `name`. Raises UsageError that lists the known ones."""
    known = all_workloads()
    if name not in known:
        raise UsageError(f"workload {name!r}", "no such workload", f"choose from {', '.join(sorted(known))}")
    return known[name]
