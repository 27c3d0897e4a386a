"""The order of a run and when it has seen enough: pure functions of the profile, a seed and what was measured.

Nothing here launches, waits or looks at a clock. The same seed gives the same order, whatever was
already done, so that a resumed run goes on as the interrupted one would have.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from harness import stats
from harness.profiles import Profile
from harness.results import Cell, Record
from harness.stats import StopRule
from runtime.driver import Kind
from workloads.base import Stage, Workload
from workloads.metric import Phase

BASELINE = "native"
TWIN = "~aa"
_ORDER = (Stage.LAUNCH, Stage.SESSION, Stage.TEARDOWN, Stage.OWN)


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell with all that decides how it runs: stage, when, parameters, time-out and expected time.

    `once`: in a closing visit instead of the blocks. `rare`: in the first block alone.
    """

    cell: Cell
    stage: Stage
    once: bool
    rare: bool
    params: dict[str, float] = field(hash=False)
    limit_s: float
    expect_s: float

    def due(self, block: int) -> bool:
        """Whether the cell belongs to this block."""
        return not self.once and (block == 0 or not self.rare)


@dataclass(frozen=True, slots=True)
class Visit:
    """One driver's turn in a block: its cells in the order they run; `first` is the position of the first."""

    block: int
    driver: str
    label: str
    first: int
    cells: tuple[Planned, ...]


def plan(
    profile: Profile,
    drivers: Mapping[str, Kind],
    workloads: Mapping[str, type[Workload]],
    select: Callable[[Cell], bool] = lambda cell: True,
    emulated: Container[str] = (),
) -> tuple[Planned, ...]:
    """Every cell of a run, sorted by workload and label, before any order.

    `emulated` are the drivers that run under software emulation, as far as that is known. The baseline
    (kind NATIVE) appears a second time under a label ending in `~aa`, for what is
    measured on a shared instance: its two columns are the same thing and must agree.
    """
    found = []
    for name, workload in sorted(workloads.items()):
        entry = profile.entry(name)
        for driver, kind in drivers.items():
            if kind not in workload.kinds or not entry.takes(driver):
                continue
            twin = kind is Kind.NATIVE and workload.stage is not Stage.OWN and not entry.once
            for label in (driver, driver + TWIN) if twin else (driver,):
                cell = Cell(workload=name, driver=driver, label=label)
                if select(cell):
                    found.append(
                        Planned(
                            cell=cell,
                            stage=workload.stage,
                            once=entry.once,
                            rare=driver in entry.rare and driver in emulated,
                            params=entry.params_for(driver, kind),
                            limit_s=entry.limit_s,
                            expect_s=entry.expect_s + entry.boots * profile.boot_s(driver),
                        )
                    )
    return tuple(sorted(found, key=lambda planned: planned.cell))


def block_visits(planned: Iterable[Planned], seed: int, block: int) -> tuple[Visit, ...]:
    """Block number `block`: one visit a label, in an order and with session orders drawn from (seed, block)."""
    due = [one for one in planned if one.due(block)]
    return _visits(due, _rng(f"{seed}:{block}"), block, 0)


def closing_visits(planned: Iterable[Planned], seed: int) -> tuple[Visit, ...]:
    """The visits after the last block, for the cells that run once; they belong to block 0, after its cells."""
    planned = list(planned)
    first = sum(not one.once for one in planned)
    return _visits([one for one in planned if one.once], _rng(f"{seed}:closing"), 0, first)


def _visits(planned: Iterable[Planned], rng: random.Random, block: int, position: int) -> tuple[Visit, ...]:
    by_label: dict[str, list[Planned]] = defaultdict(list)
    for one in sorted(planned, key=lambda one: one.cell):
        by_label[one.cell.label].append(one)
    labels = sorted(by_label)
    rng.shuffle(labels)
    visits = []
    for label in labels:
        cells = by_label[label]
        rng.shuffle(cells)
        cells.sort(key=lambda one: _ORDER.index(one.stage))  # stable: the draw decides within a stage
        visits.append(Visit(block, cells[0].cell.driver, label, position, tuple(cells)))
        position += len(cells)
    return tuple(visits)


def cell_rng(seed: int, block: int, cell: Cell) -> random.Random:
    """The random source of one cell in one block."""
    return _rng(f"{seed}:{block}:{cell}")


def _rng(key: str) -> random.Random:
    return random.Random(key)  # noqa: S311 - it must be repeatable, not secret


def stop_rule(profile: Profile) -> StopRule:
    """When the profile looks at its precision, and what it wants to see."""
    return StopRule(min_blocks=profile.min_blocks, target=profile.target_half_width, look_every=profile.look_every)


def enough(profile: Profile, blocks: int, widths: Sequence[float]) -> str:
    """Why no further block is needed after `blocks` of them, or an empty string.

    `widths` are the relative CI half-widths of the widest key metric at each look so far, infinite
    where one could not be had. Nothing here knows which driver is ahead.
    """
    if blocks < profile.min_blocks:
        return ""
    if blocks >= profile.max_blocks:
        return f"{blocks} blocks, the profile's most"
    rule = stop_rule(profile)
    return rule.should_stop(widths) if rule.looks(blocks) else ""


def next_look(profile: Profile, blocks: int) -> int:
    """How many blocks there will be at the next look, when `blocks` were finished; at most `max_blocks`."""
    rule = stop_rule(profile)
    return next((look for look in range(blocks, profile.max_blocks) if rule.looks(look)), profile.max_blocks)


def widest(records: Iterable[Record], metrics: Container[str]) -> float:
    """The relative half-width of the widest interval among `metrics`, each label against native; infinite for none."""
    series: dict[tuple[str, str], list[tuple[int, float]]] = defaultdict(list)
    for record in records:
        for sample in record.samples:
            if sample.phase is Phase.MEASURE and sample.metric in metrics:
                series[sample.metric, record.cell.label].append((record.block, sample.value))
    medians = {key: stats.per_block(values) for key, values in series.items()}
    widths = [
        stats.relative_half_width(stats.ratio(medians[metric, BASELINE], values).interval)
        for (metric, label), values in medians.items()
        if label != BASELINE and (metric, BASELINE) in medians
    ]
    return max(widths, default=math.inf)


class Forecast:
    """How long things take: the median of what was measured of the like, before that the profile's expectation."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        self._cells: dict[Cell, list[float]] = defaultdict(list)
        self._boots: dict[str, list[float]] = defaultdict(list)

    def note_cell(self, cell: Cell, elapsed_s: float) -> None:
        """A cell took this long."""
        self._cells[cell].append(elapsed_s)

    def note_boot(self, driver: str, elapsed_s: float) -> None:
        """Launching, waiting for and closing a visit's shared instance took this long, its cells not counted."""
        self._boots[driver].append(elapsed_s)

    def cell_s(self, planned: Planned) -> float:
        """Seconds the cell is expected to take."""
        measured = self._cells.get(planned.cell)
        return median(measured) if measured else planned.expect_s

    def boot_s(self, driver: str) -> float:
        """Seconds to launch, await and close one shared instance of `driver`."""
        measured = self._boots.get(driver)
        return median(measured) if measured else self._profile.boot_s(driver)

    def shared_s(self, driver: str, cells: Iterable[Planned]) -> float:
        """Seconds for `cells` on one shared instance, its launch and end included."""
        return self.boot_s(driver) + sum(self.cell_s(one) for one in cells)

    def parts_s(self, driver: str, cells: Iterable[Planned]) -> list[float]:
        """Seconds for each part of a visit that can be left out: the shared instance with its cells, each own cell."""
        cells = list(cells)
        shared = [one for one in cells if one.stage is not Stage.OWN]
        own_s = [self.cell_s(one) for one in cells if one.stage is Stage.OWN]
        return [self.shared_s(driver, shared), *own_s] if shared else own_s

    def visits_s(self, visits: Iterable[Visit]) -> float:
        """Seconds all of `visits` are expected to take."""
        return sum(sum(self.parts_s(visit.driver, visit.cells)) for visit in visits)

    def left_s(self, planned: Iterable[Planned], done: Container[tuple[Cell, int]], blocks: int) -> float:
        """Seconds until `blocks` blocks and the closing visits are done, when `done` already are."""
        total_s = 0.0
        boots: dict[tuple[str, str, bool], int] = defaultdict(int)
        for one in planned:
            due = (0,) if one.once else [block for block in range(blocks) if one.due(block)]
            missing = sum((one.cell, block) not in done for block in due)
            total_s += missing * self.cell_s(one)
            if one.stage is not Stage.OWN:
                key = (one.cell.driver, one.cell.label, one.once)
                boots[key] = max(boots[key], missing)
        return total_s + sum(self.boot_s(driver) * count for (driver, _, _), count in boots.items())
