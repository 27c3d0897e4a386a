"""A run as tables: every sample in long form, medians per block, and why a figure is absent.

Nothing is judged here and nothing averaged across blocks. An absent figure is a `Message`, so that
no reader of a frame can turn it into a blank or a zero.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from harness.results import Cell, Outcome, Record, Run
from workloads.metric import Metric, Phase

if TYPE_CHECKING:
    import pandas as pd

SHORT = 90  # letters of a reason inside a cell; the table of failures has all of it
COLUMNS = ("workload", "driver", "label", "block", "position", "started_ns", "metric", "phase", "value", "labels")


@dataclass(frozen=True, slots=True)
class Message:
    """A sentence by its key in the catalogue (`templates/strings.toml`) with the values that fill it."""

    key: str
    values: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """How the records of one cell ended. `reasons` are those of failures and skips, most frequent first."""

    cell: Cell
    ok: int
    failed: int
    skipped: int
    reasons: tuple[tuple[str, int], ...]

    @property
    def attempted(self) -> int:
        """Records that began: skipped ones were never attempted."""
        return self.ok + self.failed


def labels_text(labels: dict[str, str]) -> str:
    """Labels as one cell of a table: `condition=placebo n=10`, keys in order."""
    return " ".join(f"{key}={value}" for key, value in sorted(labels.items()))


@dataclass(frozen=True)
class Frame:
    """A run, with its samples in long form."""

    run: Run

    @cached_property
    def samples(self) -> pd.DataFrame:
        """One row a sample, in the order measured. Columns: COLUMNS; `labels` is text, `value` in the metric's unit."""
        import pandas as pd

        rows = [
            (
                record.cell.workload,
                record.cell.driver,
                record.cell.label,
                record.block,
                record.position,
                record.started_ns,
                sample.metric,
                str(sample.phase),
                float(sample.value),
                labels_text(sample.labels),
            )
            for record in self.run.records
            for sample in record.samples
        ]
        return pd.DataFrame(rows, columns=list(COLUMNS))

    @cached_property
    def block_count(self) -> int:
        """Blocks in which at least one cell was attempted."""
        return len({record.block for record in self.run.records if record.outcome is not Outcome.SKIPPED})

    def records(self, workload: str, label: str) -> list[Record]:
        """The records of one cell, in the order measured."""
        return [
            record for record in self.run.records if record.cell.workload == workload and record.cell.label == label
        ]

    def values(self, metric: str, label: str, **where: str) -> list[tuple[int, float, dict[str, str]]]:
        """(block, value, labels) of every measured sample whose labels include `where`. Warm-ups are left out."""
        workload = self.workload(metric)
        return [
            (record.block, float(sample.value), sample.labels)
            for record in self.records(workload, label)
            if record.outcome is Outcome.OK
            for sample in record.samples
            if sample.metric == metric
            and sample.phase is Phase.MEASURE
            and all(sample.labels.get(key) == value for key, value in where.items())
        ]

    def blocks(self, metric: str, label: str, **where: str) -> dict[int, float]:
        """Block → median of its samples. The blocks are the replicates; samples within one never count as n."""
        found: dict[int, list[float]] = {}
        for block, value, _ in self.values(metric, label, **where):
            found.setdefault(block, []).append(value)
        return {block: _median(values) for block, values in sorted(found.items())}

    def conditions(self, metric: str, key: str) -> tuple[str, ...]:
        """The values that label `key` takes on `metric`, in the order first seen."""
        seen: dict[str, None] = {}
        for record in self.run.records:
            for sample in record.samples:
                if sample.metric == metric and key in sample.labels:
                    seen.setdefault(sample.labels[key])
        return tuple(seen)

    def workload(self, metric: str) -> str:
        """The workload of the run that has `metric` (`overhead.cpu_events` → `overhead_cpu`), else its first word."""
        flat = metric.replace(".", "_") + "_"
        names = {tally.cell.workload for tally in self.tallies if flat.startswith(tally.cell.workload + "_")}
        return max(names, key=len, default=metric.partition(".")[0])

    def metric(self, name: str) -> Metric | None:
        """The metric as the run defines it, or None."""
        return self.run.header.metric(name)

    def unit(self, name: str) -> str:
        """The unit of metric `name`; empty if the run does not define it."""
        metric = self.metric(name)
        return metric.unit if metric else ""

    def accelerator(self, label: str) -> str:
        """`kvm`, `tcg` or `unknown` for a VM's label, empty for anything else.

        What an instance's facts say stands above what was known before the first one ran. KVM that was demanded,
        and won no race, may itself be emulated: that is unknown.
        """
        driver = label.partition("~")[0]
        entry = self.run.header.driver(driver)
        if entry is None or entry.kind != "vm":
            return ""
        told = (*(facts.facts for facts in self.run.facts if facts.driver == driver), entry.facts)
        known = next((facts for facts in told if facts.get("accelerator", "").lower() in ("kvm", "tcg")), {})
        name = known.get("accelerator", "unknown").lower()
        return "unknown" if name == "kvm" and known.get("accelerator forced") == "yes" else name

    def emulated(self, label: str) -> bool:
        """Whether `label` is a VM of which it is not known that hardware virtualised it."""
        return self.accelerator(label) in ("tcg", "unknown")

    def has_figures(self, label: str) -> bool:
        """Whether any cell of `label` gave a sample."""
        return any(record.samples for record in self.run.records if record.cell.label == label)

    def mark(self, label: str) -> str:
        """What stands beside each figure of `label`: TCG, `TCG?` where the accelerator is unknown, or nothing."""
        return {"tcg": "TCG", "unknown": "TCG?"}.get(self.accelerator(label), "")

    def labels(self, kind: str | None = None) -> tuple[str, ...]:
        """Labels of the run's usable drivers of `kind` (all kinds if None), twins last within their driver."""
        kinds = {entry.name: entry.kind for entry in self.run.header.drivers}
        found = {cell.label: cell.driver for cell in self.run.header.cells}
        order = [entry.name for entry in self.run.header.drivers]
        return tuple(
            label
            for label, driver in sorted(
                found.items(), key=lambda item: (order.index(item[1]) if item[1] in order else 99, item[0])
            )
            if kind is None or kinds.get(driver) == kind
        )

    @cached_property
    def tallies(self) -> tuple[Tally, ...]:
        """One tally a cell, planned cells first and in the header's order."""
        cells = dict.fromkeys([*self.run.header.cells, *(record.cell for record in self.run.records)])
        return tuple(self._tally(cell) for cell in cells)

    def tally(self, workload: str, label: str) -> Tally | None:
        """The tally of one cell, or None if it was neither planned nor run."""
        return next((t for t in self.tallies if t.cell.workload == workload and t.cell.label == label), None)

    def _tally(self, cell: Cell) -> Tally:
        records = [record for record in self.run.records if record.cell == cell]
        outcomes = Counter(record.outcome for record in records)
        reasons = Counter(record.reason for record in records if record.outcome is not Outcome.OK)
        return Tally(
            cell=cell,
            ok=outcomes[Outcome.OK],
            failed=outcomes[Outcome.FAILED],
            skipped=outcomes[Outcome.SKIPPED],
            reasons=tuple(reasons.most_common()),
        )

    def why_absent(self, metric: str, label: str) -> Message:
        """Why there is no measured sample of `metric` for `label`. Call it only when there is none."""
        workload, driver = self.workload(metric), label.partition("~")[0]
        entry = self.run.header.driver(driver)
        if entry is None:
            return Message("absent.no_driver", {"driver": driver})
        if not entry.usable:
            return Message("absent.unusable", {"driver": driver, "reason": entry.reason or "no reason recorded"})
        tally = self.tally(workload, label)
        if tally is None:
            planned = any(cell.workload == workload for cell in self.run.header.cells)
            return Message(
                "absent.not_planned" if planned else "absent.no_workload", {"profile": self.run.header.profile}
            )
        if tally.failed:
            return Message(
                "absent.failed",
                {"failed": tally.failed, "attempted": tally.attempted, "reason": _first(tally.reasons)},
            )
        if tally.skipped:
            return Message("absent.skipped", {"reason": _first(tally.reasons)})
        return Message("absent.no_sample" if tally.ok else "absent.not_reached")


def _first(reasons: tuple[tuple[str, int], ...]) -> str:
    reason = next((reason for reason, _ in reasons if reason), "no reason recorded")
    return reason if len(reason) <= SHORT else f"{reason[:SHORT]}…"


def _median(values: list[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
