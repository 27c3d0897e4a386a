"""What a backend must offer to be measured, and the registry that finds the backends.

A new driver is one new file in `runtime/drivers/`: a subclass of `Driver` with a `name`. The shared
conformance tests run it untouched.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import runtime.drivers
from runtime.errors import UsageError
from runtime.instance import Availability, Instance
from runtime.spec import InstanceSpec


class Kind(StrEnum):
    """What sort of thing a driver launches."""

    NATIVE = "native"
    CONTAINER = "container"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class Host:
    """Where Tare keeps its state: `root` for images and caches, `run` for what lives now."""

    root: Path = Path("/var/lib/tare")
    run: Path = Path("/run/tare")


def host_from_env() -> Host:
    """Where state lies: /var/lib/tare and /run/tare, or `lib` and `run` below $TARE_ROOT."""
    root = os.environ.get("TARE_ROOT")
    return Host(root=Path(root).resolve() / "lib", run=Path(root).resolve() / "run") if root else Host()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A spec made ready to launch any number of times; drivers subclass it with what they need."""

    spec: InstanceSpec


class Driver(ABC):
    """One backend. Construction touches nothing; `probe()` decides whether the rest may be called."""

    name: ClassVar[str]
    kind: ClassVar[Kind]
    optional: ClassVar[bool] = False
    """Whether a host may well be without what it drives, or refuse it: then it is skipped, with its reason."""
    ways: ClassVar[tuple[str, ...]] = ()
    """The forms in which what an instance has become can travel to a host that has its image, by name."""
    _registry: ClassVar[dict[str, type[Driver]]] = {}

    def __init__(self, host: Host) -> None:
        self.host = host

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "name" in cls.__dict__:
            Driver._registry[cls.name] = cls

    @abstractmethod
    def probe(self) -> Availability:
        """Whether this driver works here, found out by doing, with the reason if not."""

    @abstractmethod
    def prepare(self, spec: InstanceSpec) -> Prepared:
        """Do everything that is not launching: build, unpack, convert. Untimed; safe to repeat."""

    @abstractmethod
    def launch(self, prepared: Prepared) -> Instance:
        """Start one fresh instance; returns once it is spawned. The timed part.

        The instance's timeline begins with `request`, stamped when this is called. When it fails,
        nothing half-made remains.
        """

    @abstractmethod
    def leftovers(self) -> list[str]:
        """Each thing on the host that instances of this driver left behind, one line each; live ones excluded."""

    @abstractmethod
    def sweep(self) -> list[str]:
        """Remove all leftovers and return what was removed, one line each."""

    def pack(self, instance: Instance, way: str, parcel: Path) -> None:
        """Write what a paused, flushed instance has become to the new file `parcel`, in one of `ways`."""
        raise UsageError(f"driver {self.name}", f"what an instance has become does not travel as {way}", "leave it out")

    def unpack(self, way: str, parcel: Path, target: Path) -> None:
        """Make of a `parcel` that arrived what instances can be launched from, at the new path `target`."""
        raise UsageError(f"driver {self.name}", f"what an instance has become does not travel as {way}", "leave it out")

    def own_cpu_s(self) -> float:
        """CPU seconds used by processes of the driver itself, its instances left out; 0 where it has none."""
        return 0.0

    def close(self) -> None:  # noqa: B027 - most drivers hold nothing
        """Release what the driver itself holds: launcher process, connection, event loop."""


def drivers() -> dict[str, type[Driver]]:
    """Every driver by name: all modules of `runtime/drivers/` are imported, which touches nothing else."""
    for module in pkgutil.iter_modules(runtime.drivers.__path__):
        importlib.import_module(f"runtime.drivers.{module.name}")
    return dict(Driver._registry)


def find_driver(name: str) -> type[Driver]:
    """The driver called `name`. Raises UsageError that lists the known ones."""
    known = drivers()
    if name not in known:
        raise UsageError(f"driver {name!r}", "no such driver", f"choose from {', '.join(sorted(known))}")
    return known[name]
