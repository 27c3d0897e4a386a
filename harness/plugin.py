"""pytest as the front door: one test per cell; the engine measures in its own order, then each test replays its cell.

Loaded with `-p harness.plugin` beside `harness/bench.ini`. Selecting with -k and -m decides what is
measured; the verdict of a test is its cell's outcome. pytest-benchmark's own table, JSON, compare and
compare-fail then work on the replayed samples. The journal stays canonical.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from harness import bench, cli, environment, replay
from harness.attempt import utc
from harness.progress import Display, own_cost
from harness.results import Cell, Outcome, Record, Run, RunHeader
from runtime.driver import host_from_env
from runtime.errors import TareError

CELL = pytest.StashKey[Cell]()
BENCH = pytest.StashKey["Front"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of `tare bench`, under the same names."""
    group = parser.getgroup("tare", "measuring containers and virtual machines")
    group.addoption("--profile", metavar="NAME", help="smoke, quick (the default), standard or full.")
    group.addoption("--drivers", metavar="A,B", default="", help="Which drivers; the profile's if not said.")
    group.addoption("--out", type=Path, metavar="DIR", help="Where the results go: a new or empty directory.")
    group.addoption("--seed", type=int, metavar="N", help="Repeat the order of a run that had this seed.")
    group.addoption("--resume", type=Path, metavar="DIR", help="Go on with an interrupted run.")
    group.addoption("--time-factor", type=float, metavar="F", help="Multiply budget and time-outs.")
    group.addoption("--tune", action="store_true", help="Set governor, turbo, swap and the like for the run.")
    group.addoption("--identify", action="store_true", help="Also record the host's name and serial numbers.")
    group.addoption("--no-report", action="store_true", help="Leave the report to a later `tare report`.")


def pytest_configure(config: pytest.Config) -> None:
    """Decide what could be measured and where its results would go; nothing is touched yet."""
    option = config.option
    options = bench.Options(
        profile=option.profile,
        drivers=tuple(name for name in option.drivers.split(",") if name),
        out=option.out,
        seed=option.seed,
        resume=option.resume,
        time_factor=option.time_factor,
        tune=option.tune,
        identify=option.identify,
    )
    try:
        plan = bench.draft(options)
    except TareError as error:
        raise pytest.UsageError(f"tare: {error}") from error
    for name in sorted({one.cell.workload for one in plan.planned} | {str(d.kind) for d in plan.drivers.values()}):
        config.addinivalue_line("markers", f"{name}: cells of this workload or kind of driver")
    front = Front(config, plan)
    config.stash[BENCH] = front
    config.pluginmanager.register(front, "tare-front")
    if option.benchmark_json is None and not option.collectonly:
        option.benchmark_json = front.directory / "benchmark.json"


class Front:
    """One pytest session in front of one run."""

    def __init__(self, config: pytest.Config, plan: bench.Draft) -> None:
        self._config = config
        self.plan = plan
        self.fingerprint = "" if config.option.collectonly else environment.fingerprint(environment.capture())
        self.directory = (
            plan.run.directory if plan.run else plan.out or bench.default_directory(utc(), self.fingerprint)
        )
        self.header: RunHeader | None = None
        self._records: tuple[Record, ...] = ()
        self._finished = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_pycollect_makeitem(
        self, collector: pytest.Module | pytest.Class, name: str, obj: object
    ) -> list[pytest.Item] | None:
        """The one test function becomes an item a cell, named like `startup[container]`."""
        if name != "measured_cell":
            return None
        return [self._item(collector, obj, one.cell) for one in self.plan.planned]

    def _item(self, collector: pytest.Module | pytest.Class, obj: object, cell: Cell) -> pytest.Item:
        item = pytest.Function.from_parent(collector, name=str(cell), callobj=obj)
        item.stash[CELL] = cell
        item.add_marker(pytest.mark.benchmark(timer=replay.VirtualClock(), group=cell.workload))
        for mark in (cell.workload, str(self.plan.drivers[cell.driver].kind)):
            item.add_marker(mark)
        return item

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Generator[None, object, object]:
        """Measure everything that was selected, in the schedule's order, before the first test asks for it."""
        chosen = {item.stash[CELL] for item in session.items if CELL in item.stash}
        if chosen and not session.testsfailed and not session.config.option.collectonly:
            try:
                with self._uncaptured():
                    self._measure(chosen)
            except TareError as error:
                pytest.exit(f"tare: {error}", returncode=error.exit_code)
        return (yield)

    def _measure(self, chosen: set[Cell]) -> None:
        with Display(sys.stdout) as display:
            display.noted("")
            display.prefer = self.plan.profile.key_metrics
            display.units = self.plan.units()
            keep = chosen.__contains__
            with bench.opened(self.plan, host_from_env(), display, keep=keep, directory=self.directory) as run:
                self.header = run.header
                display.noted(bench.summary(self.plan, run))
                try:
                    run.engine.run()
                    self._finished = True
                finally:
                    self._records = run.engine.records

    def _uncaptured(self) -> AbstractContextManager[None]:
        capture: Any = self._config.pluginmanager.getplugin("capturemanager")
        return capture.global_and_fixture_disabled() if capture else nullcontext()

    def records(self, cell: Cell) -> tuple[Record, ...]:
        """What was measured of `cell`."""
        return tuple(record for record in self._records if record.cell == cell)

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_machine_info(self, machine_info: dict[str, Any]) -> None:
        """The host goes by its fingerprint: its name is nobody's business."""
        machine_info["node"] = (self.header.fingerprint if self.header else self.fingerprint)[:8]

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_update_json(self, output_json: dict[str, Any]) -> None:
        """Say which run the replayed samples are of."""
        if self.header is not None:
            output_json["tare"] = {
                "run_id": self.header.run_id,
                "profile": self.header.profile,
                "seed": self.header.seed,
                "fingerprint": self.header.fingerprint,
            }

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The report, after pytest's own tables."""
        if self._finished and not self._config.option.no_report:
            terminalreporter.ensure_newline()
            terminalreporter.flush()
            if cli.report(self.directory) != 0:
                terminalreporter.write_line(f"the report failed; try again: tare report {self.directory}", red=True)
        elif self.header is not None:
            terminalreporter.write_line(f"results in {self.directory}")
        if self._finished:
            terminalreporter.write_line(own_cost(Run.load(self.directory)))


def verdict(records: tuple[Record, ...]) -> None:
    """Fail a cell's test if any block failed, skip it if nothing was measured."""
    failed = [record for record in records if record.outcome is Outcome.FAILED]
    if failed:
        pytest.fail(f"{len(failed)} of {len(records)} blocks failed: {failed[0].reason}", pytrace=False)
    if not any(record.outcome is Outcome.OK for record in records):
        pytest.skip(records[0].reason if records else "not measured")
