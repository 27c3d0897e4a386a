"""What the harness's tests share: tiny workloads, a tiny profile, and a run of them on fakes."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jsonschema

from harness import schedule
from harness.assignment import Assignment, Observer
from harness.journal import Journal
from harness.profiles import PROFILES, Entry, Profile
from harness.results import JOURNAL, Cell, DriverEntry, Record, Run, RunHeader
from harness.runner import Engine
from runtime.driver import Kind
from tests.fakes import SPEC, Behaviour, FakeDriver, fake_host
from workloads.base import Context, Stage, Workload
from workloads.metric import Better, Metric, Sample

SCHEMA = Path(__file__).parents[3] / "harness" / "schema" / "journal.schema.json"


def workload(
    name: str, stage: Stage, measure: Callable[[Context], Iterator[Sample]] | None = None, unit: str = "s"
) -> type[Workload]:
    """A workload that yields 1.0 unless told otherwise; not registered."""

    class Tiny(Workload):
        metrics = (Metric(f"{name}.value", unit, Better.LOWER, "a test's"),)

        def measure(self, context: Context) -> Iterator[Sample]:
            if measure is not None:
                yield from measure(context)
            else:
                yield Sample(f"{name}.value", 1.0)

    Tiny.name, Tiny.stage = name, stage
    return Tiny


def launching(context: Context) -> Iterator[Sample]:
    with context.launch() as instance:
        instance.exec(("true",), 1)
    yield Sample("own.value", 2.0)


def standard_workloads() -> dict[str, type[Workload]]:
    return {
        "boot": workload("boot", Stage.LAUNCH),
        "one": workload("one", Stage.SESSION),
        "two": workload("two", Stage.SESSION),
        "end": workload("end", Stage.TEARDOWN),
        "own": workload("own", Stage.OWN, launching),
        "last": workload("last", Stage.OWN),
    }


def tiny_profile(**changes: Any) -> Profile:
    base = replace(
        PROFILES["smoke"],
        name="tiny",
        min_blocks=2,
        max_blocks=2,
        budget_s=60.0,
        entries={name: Entry(expect_s=0.01) for name in ("boot", "one", "two", "end", "own")}
        | {"last": Entry(once=True, expect_s=0.01)},
        ready_s=dict.fromkeys(Kind, 2.0),
    )
    return replace(base, **changes)


@dataclass
class Bench:
    """One run of fakes in `directory`, which can be interrupted and resumed."""

    directory: Path
    profile: Profile = field(default_factory=tiny_profile)
    workloads: dict[str, type[Workload]] = field(default_factory=standard_workloads)
    kinds: dict[str, Kind] = field(default_factory=lambda: {"native": Kind.NATIVE, "container": Kind.CONTAINER})
    behaviours: dict[str, Behaviour] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    seed: int = 7

    def __post_init__(self) -> None:
        self.drivers = {
            name: FakeDriver(
                fake_host(self.directory / name), name=name, kind=kind, behaviour=self.behaviours.get(name)
            )
            for name, kind in self.kinds.items()
        }
        self.planned = schedule.plan(self.profile, self.kinds, self.workloads)

    def header(self) -> RunHeader:
        return header(cells=tuple(one.cell for one in self.planned), profile=self.profile, seed=self.seed)

    def run(self, observer: Observer | None = None) -> Run:
        """Begin the run, or go on with it, and read it back when it has ended."""
        directory = self.directory / "run"
        if (directory / JOURNAL).exists():
            journal, run = Journal.resume(directory)
        else:
            journal, run = Journal.create(directory, self.header()), None
        with journal:
            assignment = Assignment(
                profile=self.profile,
                seed=self.seed,
                planned=self.planned,
                workloads=self.workloads,
                drivers=self.drivers,
                unusable=self.unusable,
                spec=SPEC,
                records=run.records if run else (),
                facts_of=frozenset(facts.driver for facts in run.facts) if run else frozenset(),
                logs=directory / "logs",
            )
            Engine(assignment, journal, observer).run()
        return self.load()

    def load(self) -> Run:
        return Run.load(self.directory / "run")

    def open_instances(self) -> list[object]:
        return [each for driver in self.drivers.values() for each in driver.open_instances()]


def header(**changes: Any) -> RunHeader:
    profile = changes.pop("profile", None) or tiny_profile()
    values: dict[str, Any] = {
        "run_id": "0123456789abcdef",
        "started_utc": "2026-01-02T03:04:05.678Z",
        "profile": profile.name,
        "settings": profile.settings(),
        "seed": 7,
        "command": "tare bench",
        "drivers": (DriverEntry(name="native", kind="native", usable=True),),
        "metrics": (Metric("boot.value", "s", Better.LOWER, "a test's"),),
        "cells": (Cell("boot", "native", "native"),),
        "host": {"cpu": {"logical": 2}},
        "fingerprint": "f" * 64,
        "image": {"tare/debian:bookworm": "sha256:" + "0" * 64},
    }
    return RunHeader(**{**values, **changes})


def order(records: tuple[Record, ...]) -> list[tuple[int, int, str]]:
    return [(record.block, record.position, str(record.cell)) for record in records]


def demand_schema(directory: Path) -> int:
    """Validate every line of the journal against the committed schema; returns how many there are."""
    validator = jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text()))
    lines = (directory / JOURNAL).read_text().splitlines()
    for line in lines:
        validator.validate(json.loads(line))
    return len(lines)


def outcomes(records: tuple[Record, ...]) -> Counter[str]:
    return Counter(str(record.outcome) for record in records)


def everything(bench: Bench) -> set[tuple[Cell, int]]:
    return {(one.cell, block) for one in bench.planned for block in range(1 if one.once else 2)}


class Stopping(Observer):
    """Ends the run as a user would, at a chosen moment."""

    def __init__(self, after: int, number: int = signal.SIGINT) -> None:
        self.after, self.number, self.seen = after, number, 0

    def running(self, what: str, left_s: float) -> None:
        self._count()

    def ended(self, record: Record, left_s: float) -> None:
        self._count()

    def _count(self) -> None:
        self.seen += 1
        if self.seen == self.after:
            os.kill(os.getpid(), self.number)
