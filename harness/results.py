"""A run's data as it lies in its journal: header, records, facts, events; how to read them back.

`journal.jsonl` in the run's directory is canonical: one JSON object a line, described by
`harness/schema/journal.schema.json`, and nothing that does not obey it is read. This module reads and shapes;
writing crash-safely is `harness.journal`'s work, and judging is `harness.stats`'s.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from runtime.errors import TareError, printable
from workloads.metric import Better, Metric, Phase, Sample

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

SCHEMA_VERSION = 1
SCHEMA = Path(__file__).parent / "schema" / "journal.schema.json"
JOURNAL = "journal.jsonl"
_LARGEST = 1 << 64  # no count or clock is beyond, and a float holds it
_SHOWN = 200  # characters of a complaint, which quotes what it is about


class ResultsError(TareError):
    """A run directory or its journal cannot be used."""


class Outcome(StrEnum):
    """How a cell of a block ended."""

    OK = "ok"
    FAILED = "failed"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """A workload on a driver. `label` is the driver's name, or another for its A/A twin (`native~aa`)."""

    workload: str
    driver: str
    label: str

    def __str__(self) -> str:
        return f"{self.workload}[{self.label}]"


@dataclass(frozen=True, slots=True)
class DriverEntry:
    """A driver of the run: what it is, whether it worked here, and the facts that belong beside its figures.

    A VM driver's facts hold `accelerator`: `kvm` or `tcg`.
    """

    name: str
    kind: str
    usable: bool
    reason: str = ""
    mend: str = ""
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHeader:
    """The first line of a journal: all that was decided and known before the first cell ran."""

    run_id: str
    started_utc: str
    profile: str
    settings: dict[str, Any]
    seed: int
    command: str
    drivers: tuple[DriverEntry, ...]
    metrics: tuple[Metric, ...]
    cells: tuple[Cell, ...]
    host: dict[str, Any]
    fingerprint: str
    image: dict[str, str]

    def driver(self, name: str) -> DriverEntry | None:
        """The entry of driver `name`, or None if it was not part of the run."""
        return next((entry for entry in self.drivers if entry.name == name), None)

    def metric(self, name: str) -> Metric | None:
        """The metric called `name`, or None if no workload of the run defines it."""
        return next((metric for metric in self.metrics if metric.name == name), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One cell in one block: every raw sample, or why there are none.

    `position` is the cell's place in the block's random order. `started_ns` is the host's monotonic
    clock, `started_utc` the wall clock. `host_state` is what the host was doing around it (steal,
    pressure, frequency, load). `timeline` is the instance's, monotonic ns, where the cell had one.
    """

    cell: Cell
    block: int
    position: int
    started_utc: str
    started_ns: int
    elapsed_ns: int
    outcome: Outcome
    reason: str = ""
    samples: tuple[Sample, ...] = ()
    timeline: tuple[tuple[str, int], ...] = ()
    host_state: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What an instance of `driver` looked like from inside: the raw material of the parity table."""

    driver: str
    facts: dict[str, str]
    limits: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A turn in the run's life: `started`, `resumed`, `interrupted`, `finished`, with its figures (seconds).

    Also `leftover` (an instance left something on the host; it was swept), `facts-failed`, `stopped`
    (why no further block was begun); `detail` says what in one line.
    """

    event: str
    at_utc: str
    figures: dict[str, float] = field(default_factory=dict)
    detail: str = ""


Line = RunHeader | Record | Facts | Event


def to_json(line: Line) -> dict[str, Any]:
    """The JSON object of a journal line: its fields, plus `type` and `schema`."""
    names = {RunHeader: "run", Record: "record", Facts: "facts", Event: "event"}
    return {"type": names[type(line)], "schema": SCHEMA_VERSION, **asdict(line)}


def from_json(raw: dict[str, Any]) -> Line:
    """The inverse of `to_json`. Raises ResultsError for another schema version or what the schema refuses."""
    version = raw.get("schema")
    if version != SCHEMA_VERSION:
        raise ResultsError(
            "journal", f"schema version {version!r}, this Tare reads {SCHEMA_VERSION}", "use the Tare that wrote it"
        )
    validator = _validators().get(str(raw.get("type")))
    if validator is None:
        raise ResultsError("journal", f"unknown line type {raw.get('type')!r}", "use the Tare that wrote it")
    fault = next(validator.iter_errors(raw), None)
    if fault is not None:
        raise ResultsError("journal", f"malformed {raw['type']} line: {_told(fault.json_path, fault.message)}")
    body = {key: value for key, value in raw.items() if key not in ("type", "schema")}
    match raw["type"]:
        case "run":
            body["drivers"] = tuple(DriverEntry(**entry) for entry in body["drivers"])
            body["metrics"] = tuple(
                Metric(**{**metric, "better": Better(metric["better"])}) for metric in body["metrics"]
            )
            body["cells"] = tuple(Cell(**cell) for cell in body["cells"])
            return RunHeader(**body)
        case "record":
            body["cell"] = Cell(**body["cell"])
            body["outcome"] = Outcome(body["outcome"])
            body["samples"] = tuple(Sample(**{**sample, "phase": Phase(sample["phase"])}) for sample in body["samples"])
            body["timeline"] = tuple((name, at_ns) for name, at_ns in body["timeline"])
            return Record(**body)
        case "facts":
            body["limits"] = tuple(body["limits"])
            return Facts(**body)
        case _:
            return Event(**body)


@cache
def _validators() -> Mapping[str, Validator]:
    """A validator for each type of line."""
    from jsonschema import Draft202012Validator  # which takes longer to import than most journals to read

    schema = json.loads(SCHEMA.read_bytes())
    types = ("run", "record", "facts", "event")
    return {name: Draft202012Validator({"$defs": schema["$defs"], "$ref": f"#/$defs/{name}"}) for name in types}


def _told(path: str, message: str) -> str:
    text = printable(f"{path.removeprefix('$.')}: {message}")
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _object(row: bytes) -> dict[str, Any]:
    """The JSON object of a line. Raises ResultsError for anything else, and for a number that no journal holds."""
    try:
        raw = json.loads(row, parse_constant=_no_number, parse_float=_float, parse_int=_int)
    except (ValueError, RecursionError) as error:
        raise ResultsError("journal", f"not JSON: {error}"[:_SHOWN]) from error
    if not isinstance(raw, dict):
        raise ResultsError("journal", "not a JSON object")
    return raw


def _demand_new(line: Line, before: Sequence[Line], done: set[tuple[Cell, int]]) -> None:
    """Raise ResultsError for what a journal holds once: its header, and what came of a cell in a block."""
    if isinstance(line, RunHeader) and before:
        raise ResultsError("journal", "a second run begins")
    if isinstance(line, Record):
        if (line.cell, line.block) in done:
            raise ResultsError("journal", f"a second record of {line.cell} in block {line.block}")
        done.add((line.cell, line.block))


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is too large a number")
    return value


def _int(text: str) -> int:
    value = int(text)
    if abs(value) > _LARGEST:
        raise ValueError(f"{text} is too large a number")
    return value


@dataclass(frozen=True, slots=True)
class OwnCpu:
    """CPU seconds that the harness and its drivers used themselves, instances left out, over the seconds of the run."""

    cpu_s: float
    elapsed_s: float

    @property
    def fraction(self) -> float:
        """The share of one CPU."""
        return self.cpu_s / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run as read from its directory. Records are in the order they were measured."""

    directory: Path
    header: RunHeader
    records: tuple[Record, ...]
    facts: tuple[Facts, ...]
    events: tuple[Event, ...]

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read `directory`/journal.jsonl. A torn last line (a crash while writing) is dropped; any other damage raises.

        Raises ResultsError, with the line number, for a missing, unreadable or malformed journal.
        """
        path = directory / JOURNAL
        try:
            text = path.read_bytes()
        except OSError as error:
            raise ResultsError(
                f"run {directory}", error.strerror or str(error), "name the directory of a run: results/<time>-<host>"
            ) from error
        lines: list[Line] = []
        done: set[tuple[Cell, int]] = set()
        # What follows the last newline was being written when the writer died: torn, even where it parses.
        for number, row in enumerate(text.split(b"\n")[:-1], start=1):
            if not row:
                continue
            try:
                line = from_json(_object(row))
                _demand_new(line, lines, done)
            except ResultsError as error:
                do = error.do or "restore it from a copy"
                raise ResultsError(f"journal {path}, line {number}", error.why, do) from error
            lines.append(line)
        if not lines or not isinstance(lines[0], RunHeader):
            raise ResultsError(f"journal {path}", "it does not begin with a run header", "start the run anew")
        return cls(
            directory=directory,
            header=lines[0],
            records=tuple(line for line in lines if isinstance(line, Record)),
            facts=tuple(line for line in lines if isinstance(line, Facts)),
            events=tuple(line for line in lines if isinstance(line, Event)),
        )

    def own_cpu(self) -> OwnCpu | None:
        """Summed over the parts of the run that ended in order; None where none says so."""
        parts = [event.figures for event in self.events if {"harness_cpu_s", "elapsed_s"} <= event.figures.keys()]
        elapsed_s = sum(part["elapsed_s"] for part in parts)
        return OwnCpu(sum(part["harness_cpu_s"] for part in parts), elapsed_s) if elapsed_s > 0 else None
