"""What many nights said: a directory of small summaries, one a run, and whether the latest is worse than those before.

A summary holds a value a block for every series that has enough blocks, so that an interval can still be drawn years
after the journal is gone. Not a store of runs: keep the journals of what is published.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from harness import compare
from harness.compare import Change, Series
from harness.results import Run
from harness.stats import MIN_BLOCKS
from runtime.errors import TareError, UsageError
from workloads.metric import Better

SCHEMA_VERSION = 1
MIN_NIGHTS = 3  # fewer say nothing of how nights differ


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One run in brief. `tare` is the version that measured, `settings` its profile's."""

    run_id: str
    started_utc: str
    profile: str
    settings: dict[str, Any]
    fingerprint: str
    tare: str
    series: tuple[Series, ...]

    @classmethod
    def of(cls, run: Run) -> Self:
        """What is worth keeping of `run`. Raises UsageError when no series has enough blocks to be judged."""
        kept = tuple(each for each in compare.series(run).values() if len(each.values) >= MIN_BLOCKS)
        if not kept:
            raise UsageError(
                f"run {run.directory}", f"no cell has {MIN_BLOCKS} blocks", "add runs of profile quick or longer"
            )
        header = run.header
        version = header.host.get("tare", {})
        return cls(
            run_id=header.run_id,
            started_utc=header.started_utc,
            profile=header.profile,
            settings=header.settings,
            fingerprint=header.fingerprint,
            tare=str(version.get("commit") or version.get("version") or ""),
            series=kept,
        )

    def to_json(self) -> dict[str, Any]:
        """As it lies on disk."""
        return {"schema": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read one. Raises TareError for what is damaged or of another version."""
        try:
            raw = json.loads(path.read_bytes())
            _demand(raw, dict)
            version = raw.pop("schema", None)
            if version != SCHEMA_VERSION:
                raise TareError(
                    f"summary {path}",
                    f"schema version {version!r}, this Tare reads {SCHEMA_VERSION}",
                    "add the run again from its journal",
                )
            raw["series"] = tuple(_series(each) for each in raw["series"])
            summary = cls(**raw)
            _demand(summary.settings, dict)
            for text in (summary.run_id, summary.started_utc, summary.profile, summary.fingerprint, summary.tare):
                _demand(text, str)
            return summary
        except OSError as error:
            raise TareError(f"summary {path}", error.strerror or str(error), "make it readable") from error
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise TareError(f"summary {path}", f"malformed: {error}", "add the run again from its journal") from error


def _series(raw: dict[str, Any]) -> Series:
    _demand(raw, dict)
    series = Series(**{**raw, "better": Better(raw["better"]), "values": tuple(raw["values"])})
    for text in (series.metric, series.label, series.condition, series.unit, series.setting):
        _demand(text, str)
    if not series.values:
        raise ValueError(f"{series.key} has no values")
    for value in (*series.values, series.margin):
        _demand(value, int, float)
        if not math.isfinite(value):
            raise ValueError(f"{series.key} holds {value}")
    return series


def _demand(value: object, *kinds: type) -> None:
    """Raise TypeError for what is of no such type; true is no number."""
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise TypeError(f"{value!r:.60} is of another type")


def add(directory: Path, run: Run) -> Path:
    """Keep a summary of `run`; returns where. Whole or not at all, the same run twice is one."""
    summary = Summary.of(run)
    stamp = summary.started_utc[:19].replace("-", "").replace(":", "").replace("T", "t")
    target = directory / f"{stamp}z-{summary.run_id}.json"
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(summary.to_json(), separators=(",", ":"), allow_nan=False) + "\n")
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise TareError(f"history {directory}", error.strerror or str(error), "choose another with --dir") from error
    return target


def load(directory: Path) -> list[Summary]:
    """Every summary, oldest first. Raises TareError when there is none or one cannot be read."""
    found = [Summary.load(path) for path in sorted(directory.glob("*.json"))]
    if not found:
        raise TareError(f"history {directory}", "there is nothing in it", "fill it with: tare history add RUN_DIR")
    return sorted(found, key=lambda each: each.started_utc)


def window(summaries: Sequence[Summary], nights: int) -> tuple[list[Summary], Summary]:
    """The latest summary and, before it, up to `nights` of the same host and profile. Raises UsageError for too few."""
    *earlier, latest = summaries
    alike = [
        each
        for each in earlier
        if (each.profile, each.fingerprint) == (latest.profile, latest.fingerprint) and each.settings == latest.settings
    ][-nights:]
    if len(alike) < MIN_NIGHTS:
        raise UsageError(
            "history",
            f"{len(alike)} earlier runs of this host and profile {latest.profile}, at least {MIN_NIGHTS} are needed",
            "add more runs",
        )
    return alike, latest


def check(earlier: Sequence[Summary], latest: Summary) -> list[Change]:
    """The latest night against all blocks of those before.

    Nights differ by more than blocks do: the margin is at least the farthest that any earlier night lay from the rest.
    """
    found = []
    for late in latest.series:
        nights = [each for summary in earlier for each in summary.series if each.key == late.key]
        if len(nights) < MIN_NIGHTS or any(each.setting != late.setting for each in nights):
            found.append(compare.judge(nights[-1] if nights and nights[-1].setting != late.setting else None, late))
            continue
        pooled = Series(
            **{
                **{name: getattr(late, name) for name in ("metric", "label", "condition", "unit", "better", "setting")},
                "values": tuple(value for each in nights for value in each.values),
                "margin": max(each.margin for each in nights),
            }
        )
        found.append(compare.judge(pooled, late, spread(nights)))
    return compare.corrected(found)


def spread(nights: Sequence[Series]) -> float:
    """How far a night lay from the median of all nights at the most, as a proportion; 0 where that has no sense."""
    middles = [median(each.values) for each in nights]
    if not all(value > 0 for value in middles):
        return 0.0
    centre = median(middles)
    return math.expm1(max(abs(math.log(value / centre)) for value in middles))


def show(summaries: Sequence[Summary], select: str = "") -> list[str]:
    """A line a run and, where `select` is part of a series' name, one a series with its median by night."""
    lines = [
        f"{each.started_utc[:19]}  {each.profile:8}  {each.fingerprint[:8]}  {each.tare[:12] or '-':12}  "
        f"{len(each.series)} series"
        for each in summaries
    ]
    if not select:
        return lines
    keys = dict.fromkeys(one.key for each in summaries for one in each.series if select in one.key)
    if not keys:
        raise UsageError(f"series {select!r}", "no summary has one of that name", "see the names in: tare compare A B")
    for key in keys:
        values = [next((one for one in each.series if one.key == key), None) for each in summaries]
        unit = next(one.unit for one in values if one is not None)
        told = "  ".join("-" if one is None else f"{median(one.values):.5g}" for one in values)
        lines.append(f"{key} ({unit}): {told}")
    return lines
