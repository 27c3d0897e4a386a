"""What a run is made of and whom it tells: the engine's input and its audience."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.profiles import Profile
from harness.results import Record
from harness.schedule import Planned
from runtime.driver import Driver, Prepared
from runtime.spec import InstanceSpec
from workloads.base import Workload


class Observer:
    """What a run tells about itself while it goes on. The default says nothing."""

    def running(self, what: str, left_s: float) -> None:
        """`what` begins; the run is expected to last `left_s` more."""

    def saying(self, text: str) -> None:
        """The running cell reports its progress in a few words."""

    def ended(self, record: Record, left_s: float) -> None:
        """A cell has ended and its record is on the disk."""

    def noted(self, text: str) -> None:
        """Something worth a line happened."""


@dataclass(kw_only=True)
class Assignment:
    """All that a run is made of.

    `unusable` drivers are skipped for the reasons given. `records` and `facts_of` (drivers) are what an
    earlier part of the run left.
    """

    profile: Profile
    seed: int
    planned: Sequence[Planned]
    workloads: Mapping[str, type[Workload]]
    drivers: Mapping[str, Driver]
    unusable: Mapping[str, str] = field(default_factory=dict)
    spec: InstanceSpec
    prepared: dict[str, Prepared] = field(default_factory=dict)
    records: Sequence[Record] = ()
    facts_of: frozenset[str] = frozenset()
    logs: Path
