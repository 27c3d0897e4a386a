"""Carries a schedule out: visits, cells, one journal record each; counts failures and goes on.

Not when or in which order (`harness.schedule`), not what is measured (`workloads`), not what is shown
(an `Observer`). Everything that must be given back to the host is, however the run ends.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

from harness import schedule
from harness.assignment import Assignment, Observer
from harness.attempt import FailureLog, attempt, utc
from harness.guard import Guard
from harness.hoststate import HostState, host_state
from harness.journal import Journal
from harness.results import Cell, Event, Facts, Outcome, Record
from harness.schedule import Forecast, Planned, Visit
from runtime.driver import Driver, Kind, Prepared
from runtime.errors import TareError
from runtime.instance import Instance
from workloads import parity
from workloads.base import Context, Stage

_GRACE_S = 10.0  # beyond a cell's own limit, before a call counts as hung
_CLOSE_S = 90.0  # a virtual machine is asked to shut down before it is ended
_SWEEP_S = 300.0  # of a driver whose instances all died at once
TIME_BUDGET = "time budget"


class Interrupted(TareError):
    """The run was ended from outside; it can be resumed."""

    exit_code = 130


class Engine:
    """Runs an assignment once, writing to `journal` and telling `observer`."""

    def __init__(self, assignment: Assignment, journal: Journal, observer: Observer | None = None) -> None:
        self._work = assignment
        self._profile = assignment.profile
        self._journal = journal
        self._observer = observer or Observer()
        self._guard = Guard()
        self._done = {(record.cell, record.block) for record in assignment.records}
        self._records = list(assignment.records)
        self._facts_of = set(assignment.facts_of)
        self._forecast = Forecast(self._profile)
        self._prepared = dict(assignment.prepared)
        self._live: list[Instance] = []
        self._widths: list[float] = []
        self._closing = schedule.closing_visits(self._usable(), assignment.seed)
        self._hung = False
        self._log = FailureLog(assignment.logs)
        self._spent_s = sum(record.elapsed_ns for record in assignment.records) / 1e9
        self._began_s = time.monotonic()
        for record in assignment.records:
            if record.outcome is Outcome.OK:
                self._forecast.note_cell(record.cell, record.elapsed_ns / 1e9)

    def run(self) -> None:
        """Measure all that is not done yet.

        Raises Interrupted (Ctrl-C, SIGTERM, SIGHUP) after the host was cleaned, JournalError if the
        journal cannot be written.
        """
        self._began_s = time.monotonic()
        began_cpu_s = self._own_cpu_s()
        self._event("resumed" if self._done else "started")
        try:
            with self._guard, _collected_between_visits():
                self._skip_unusable()
                self._sweep_all()
                self._blocks()
                for visit in self._closing:
                    self._visit(visit)
        except KeyboardInterrupt:
            self._event("interrupted", self._figures(began_cpu_s))
            raise Interrupted(
                "bench", "interrupted", f"continue with: tare bench --resume {self._journal.path.parent}"
            ) from None
        self._event("finished", self._figures(began_cpu_s))

    def count(self, outcome: Outcome) -> int:
        """How many records of the whole run, earlier parts included, ended so."""
        return sum(record.outcome is outcome for record in self._records)

    @property
    def records(self) -> tuple[Record, ...]:
        """All records so far, earlier parts of the run included, in the order they were measured."""
        return tuple(self._records)

    def _usable(self) -> list[Planned]:
        """What can be measured, in the plan's order."""
        return [one for one in self._work.planned if one.cell.driver not in self._work.unusable]

    def _skip_unusable(self) -> None:
        for driver, reason in self._work.unusable.items():
            cells = [one for one in self._work.planned if one.cell.driver == driver and (one.cell, 0) not in self._done]
            for position, one in enumerate(cells):
                self._write(_empty(one.cell, 0, position, Outcome.SKIPPED, reason), quietly=True)
            if cells:
                self._observer.noted(f"{driver}: {len(cells)} cells skipped: {reason}")

    def _blocks(self) -> None:
        planned = self._usable()
        if not any(not one.once for one in planned):
            return
        for block in range(self._profile.max_blocks):
            if schedule.stop_rule(self._profile).looks(block):
                self._widths.append(schedule.widest(self._records, self._profile.key_metrics))
            visits = self._visits(block)
            begun = any(self._todo(visit) != visit.cells for visit in visits)
            reason = "" if begun else schedule.enough(self._profile, block, self._widths)
            if not reason and not begun and block >= self._profile.min_blocks:
                wanted_s = self._forecast.visits_s([*visits, *self._closing])
                if wanted_s > self._budget_left_s():
                    reason = f"{TIME_BUDGET}: no further block fits into {self._profile.budget_s:g} s"
            if reason:
                self._event("stopped", {"blocks": block}, reason)
                return
            for visit in visits:
                self._visit(visit)
        self._event("stopped", {"blocks": self._profile.max_blocks}, "the profile's most blocks")

    def _visits(self, block: int) -> tuple[Visit, ...]:
        return schedule.block_visits(self._usable(), self._work.seed, block)

    def _fits(self, part_s: float, one: Planned, block: int) -> bool:
        """Whether there is time for this part of a visit and for what is owed and comes before it.

        That is whatever costs less, so that the dearest falls first, and every cell that has but one
        chance: a block more or less is a wider interval, a closing visit is a row of the report.
        """
        closing_s = self._parts_s(self._closing)
        if one.once:
            return part_s + sum(each for each in closing_s if each < part_s) <= self._budget_left_s()
        blocks = range(block, max(block + 1, self._profile.min_blocks))
        cheaper_s = [each for owed in blocks for each in self._parts_s(self._visits(owed)) if each < part_s]
        return part_s + sum(closing_s) + sum(cheaper_s) <= self._budget_left_s()

    def _parts_s(self, visits: Iterable[Visit]) -> list[float]:
        return [part_s for visit in visits for part_s in self._forecast.parts_s(visit.driver, self._todo(visit))]

    def _todo(self, visit: Visit) -> tuple[Planned, ...]:
        return tuple(one for one in visit.cells if (one.cell, visit.block) not in self._done)

    def _visit(self, visit: Visit) -> None:
        todo = self._todo(visit)
        if not todo:
            return
        self._guard.check()
        shared = [one for one in todo if one.stage is not Stage.OWN]
        if shared and not self._fits(self._forecast.shared_s(visit.driver, shared), shared[0], visit.block):
            for one in shared:
                self._skip(one, visit.block, self._position(visit, one), TIME_BUDGET)
            todo = tuple(one for one in todo if one.stage is Stage.OWN)
            shared = []
        driver = self._work.drivers[visit.driver]
        try:
            prepared = self._prepare(driver)
        except Exception as error:  # noqa: BLE001 - whatever a driver raises is a counted failure, the run goes on
            reason = self._log.reason(error, f"{driver.name} prepare")
            for one in todo:
                self._fail(one, visit, f"not prepared: {reason}")
            return
        try:
            if shared:
                self._shared(visit, driver, prepared, shared)
            for one in todo:
                if one.stage is Stage.OWN:
                    self._own(visit, driver, prepared, one)
        finally:
            self._give_back(driver)

    def _own(self, visit: Visit, driver: Driver, prepared: Prepared, one: Planned) -> None:
        if not self._fits(self._forecast.cell_s(one), one, visit.block):
            self._skip(one, visit.block, self._position(visit, one), TIME_BUDGET)
        else:
            self._cell(visit, one, driver, prepared, None)

    def _shared(self, visit: Visit, driver: Driver, prepared: Prepared, todo: Sequence[Planned]) -> None:
        began_s, before = time.monotonic(), host_state()
        self._observer.running(f"{visit.label} starts, block {visit.block + 1}", self.left_s())
        instance: Instance | None = None
        try:
            instance = self._start(driver, prepared)
        except Exception as error:  # noqa: BLE001 - as above
            reason = self._log.reason(error, f"{visit.label} launch, block {visit.block}")
            for one in todo:
                self._fail(one, visit, f"no instance: {reason}", began_s)
            return
        boot_s = time.monotonic() - began_s
        lost = ""
        for one in todo:
            if one.stage is Stage.TEARDOWN:
                continue
            if lost:
                self._fail(one, visit, lost)
                continue
            record = self._cell(visit, one, driver, prepared, instance, before if one.stage is Stage.LAUNCH else None)
            if not _alive(instance):
                lost = f"the instance died during {one.cell.workload}: {record.reason or 'without a word'}"[:300]
            elif self._hung:
                lost = f"something still runs in the instance: {record.reason}"[:300]
        if not lost:
            self._facts(driver, instance)
        began_s, before = time.monotonic(), host_state()
        close_error = self._close(instance)
        self._forecast.note_boot(driver.name, boot_s + time.monotonic() - began_s)
        for one in todo:
            if one.stage is Stage.TEARDOWN and (lost or close_error):
                self._fail(one, visit, lost or f"not closed cleanly: {close_error}")
            elif one.stage is Stage.TEARDOWN:
                self._cell(visit, one, driver, prepared, instance, before)

    def _cell(
        self,
        visit: Visit,
        one: Planned,
        driver: Driver,
        prepared: Prepared,
        instance: Instance | None,
        before: HostState | None = None,
    ) -> Record:
        """Run one cell and write its record; a failure is in the record, never raised.

        `before` is the host's state when what the cell measures began, if that was earlier.
        """
        self._observer.running(f"{one.cell}, block {visit.block + 1}", self.left_s())
        context = Context(
            driver=driver,
            prepared=prepared,
            launch=lambda spec=None: self._start(driver, driver.prepare(spec) if spec else prepared),
            peer=self._peer,
            params=one.params,
            rng=schedule.cell_rng(self._work.seed, visit.block, one.cell),
            instance=instance,
            deadline_ns=time.monotonic_ns() + int(one.limit_s * 1e9),
            say=self._observer.saying,
        )
        tried = attempt(
            self._work.workloads[one.cell.workload](),
            context,
            before=before or host_state(),
            guard=self._guard,
            hard_s=self._hard_s(one, driver),
            log=self._log,
            where=f"{one.cell}, block {visit.block}",
        )
        self._hung = tried.hung
        strays = self._close_strays(instance)
        reason = tried.reason or strays
        timed = instance is not None and one.stage in (Stage.LAUNCH, Stage.TEARDOWN)
        record = Record(
            cell=one.cell,
            block=visit.block,
            position=self._position(visit, one),
            started_utc=tried.started_utc,
            started_ns=tried.started_ns,
            elapsed_ns=tried.elapsed_ns,
            outcome=Outcome.FAILED if reason else Outcome.OK,
            reason=reason,
            samples=() if reason else tried.samples,
            timeline=instance.timeline.events() if timed and instance is not None else (),
            host_state=tried.host_state,
        )
        self._forecast.note_cell(one.cell, tried.elapsed_ns / 1e9)
        self._write(record)
        return record

    def _hard_s(self, one: Planned, driver: Driver) -> float:
        """When a cell counts as hung: its own limit, the readiness of an instance it may launch, and some grace."""
        launches = one.stage in (Stage.LAUNCH, Stage.OWN)
        return one.limit_s + (self._profile.ready_s[driver.kind] if launches else 0.0) + _GRACE_S

    def _start(self, driver: Driver, prepared: Prepared) -> Instance:
        """Launch and wait until ready. An instance that does not become so is closed before the error goes on."""
        self._guard.check()
        ready_s = self._profile.ready_s[driver.kind]
        with self._guard.critical(), self._guard.limit(ready_s + _GRACE_S, f"launch by {driver.name}"):
            instance = driver.launch(prepared)
            self._live.append(instance)
        try:
            with self._guard.limit(ready_s + _GRACE_S, f"readiness of {instance.id}"):
                instance.wait_ready(ready_s)
            if not _alive(instance):
                raise TareError(f"launch by {driver.name}", "it said success and nothing runs")
        except Exception:
            self._close(instance)
            raise
        return instance

    def _peer(self) -> Instance:
        """A native instance, which is in the host's own network. Raises TareError where no such driver takes part."""
        usable = [driver for name, driver in self._work.drivers.items() if name not in self._work.unusable]
        native = next((driver for driver in usable if driver.kind is Kind.NATIVE), None)
        if native is None:
            raise TareError("the host's end of a network", "the native driver takes no part", "add native to --drivers")
        return self._start(native, self._prepare(native))

    def _close(self, instance: Instance) -> str:
        """Close, in any case forget, and return in one line what went wrong, or an empty string."""
        reason = ""
        with self._guard.critical():
            instance.timeline.stamp("closing")
            try:
                with self._guard.limit(_CLOSE_S, f"close of {instance.id}"):
                    instance.close()
            except Exception as error:  # noqa: BLE001 - as above
                reason = self._log.reason(error, f"close of {instance.id}")
            if instance in self._live:
                self._live.remove(instance)
        return reason

    def _close_strays(self, shared: Instance | None) -> str:
        """Close whatever a workload launched, but not `shared`; closing what it closed itself does no harm."""
        strays = [instance for instance in self._live if instance is not shared]
        return next(filter(None, [self._close(instance) for instance in strays]), "")

    def _give_back(self, driver: Driver) -> None:
        """Between visits the host holds nothing of the last one; what it still does is recorded and swept."""
        with self._guard.critical():
            self._close_strays(None)
            gc.collect()
            try:
                with self._guard.limit(_SWEEP_S, f"sweep of {driver.name}"):
                    left = driver.leftovers()
                    if left:
                        driver.sweep()
            except Exception as error:  # noqa: BLE001 - as above
                left = [f"could not be looked for or swept: {self._log.reason(error, f'{driver.name} sweep')}"]
            if left:
                self._event("leftover", {"count": len(left)}, f"{driver.name}: {'; '.join(left)}"[:1000])
                self._observer.noted(f"{driver.name} left {len(left)} things behind, swept: {left[0]}")

    def _sweep_all(self) -> None:
        """Remove what a killed run left, so that it is not measured along."""
        for name, driver in self._work.drivers.items():
            if name not in self._work.unusable:
                self._give_back(driver)

    def _prepare(self, driver: Driver) -> Prepared:
        if driver.name not in self._prepared:
            self._observer.running(f"preparing {driver.name}", self.left_s())
            self._prepared[driver.name] = driver.prepare(self._work.spec)
        return self._prepared[driver.name]

    def _facts(self, driver: Driver, instance: Instance) -> None:
        """Once a driver: what an instance looks like from inside, and whether its limits are really there."""
        if driver.name in self._facts_of:
            return
        try:
            facts = parity.describe(instance)
            limits = tuple(asdict(reading) for reading in instance.limit_readings())
        except Exception as error:  # noqa: BLE001 - as above
            self._event("facts-failed", detail=f"{driver.name}: {self._log.reason(error, f'{driver.name} facts')}")
            return
        self._facts_of.add(driver.name)
        self._journal.append(Facts(driver=driver.name, facts=facts, limits=limits))

    def _fail(self, one: Planned, visit: Visit, reason: str, began_s: float | None = None) -> None:
        elapsed_ns = 0 if began_s is None else int((time.monotonic() - began_s) * 1e9)
        self._write(_empty(one.cell, visit.block, self._position(visit, one), Outcome.FAILED, reason, elapsed_ns))

    def _skip(self, one: Planned, block: int, position: int, reason: str) -> None:
        self._write(_empty(one.cell, block, position, Outcome.SKIPPED, reason))

    def _write(self, record: Record, *, quietly: bool = False) -> None:
        with self._guard.critical():
            self._journal.append(record)
            self._done.add((record.cell, record.block))
            self._records.append(record)
        if not quietly:
            self._observer.ended(record, self.left_s())

    def _event(self, event: str, figures: Mapping[str, float] | None = None, detail: str = "") -> None:
        self._journal.append(Event(event=event, at_utc=utc(), figures=dict(figures or {}), detail=detail))

    def _figures(self, began_cpu_s: float) -> dict[str, float]:
        """How long this part of the run took and how much of one CPU the harness itself used of it."""
        elapsed_s = time.monotonic() - self._began_s
        cpu_s = self._own_cpu_s() - began_cpu_s
        return {"elapsed_s": elapsed_s, "harness_cpu_s": cpu_s, "harness_cpu_fraction": cpu_s / max(elapsed_s, 1e-9)}

    def _own_cpu_s(self) -> float:
        """CPU seconds of this process and of the drivers' own, instances left out."""
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return usage.ru_utime + usage.ru_stime + sum(driver.own_cpu_s() for driver in self._work.drivers.values())

    def _position(self, visit: Visit, one: Planned) -> int:
        return visit.first + visit.cells.index(one)

    def _budget_left_s(self) -> float:
        return self._profile.budget_s - self._spent_s - (time.monotonic() - self._began_s)

    def left_s(self) -> float:
        """Seconds the run is expected to last from now: until the next look at the widths, never past the budget."""
        usable = self._usable()
        blocks = 0
        while (due := [one.cell for one in usable if one.due(blocks)]) and self._done.issuperset(
            (cell, blocks) for cell in due
        ):
            blocks += 1
        target = schedule.next_look(self._profile, blocks + 1)
        return max(0.0, min(self._forecast.left_s(usable, self._done, target), self._budget_left_s()))


def _empty(cell: Cell, block: int, position: int, outcome: Outcome, reason: str, elapsed_ns: int = 0) -> Record:
    now_ns = time.monotonic_ns()
    return Record(
        cell=cell,
        block=block,
        position=position,
        started_utc=utc(),
        started_ns=now_ns - elapsed_ns,
        elapsed_ns=elapsed_ns,
        outcome=outcome,
        reason=reason or "no reason given",
    )


def _alive(instance: Instance) -> bool:
    try:
        return instance.alive()
    except Exception:  # noqa: BLE001 - an instance that cannot say so is not alive
        return False


@contextmanager
def _collected_between_visits() -> Iterator[None]:
    """Keep the garbage collector out of timed intervals, where it would hold up the thread that stamps events."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()
