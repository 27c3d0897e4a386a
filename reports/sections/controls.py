"""Control groups: limit, prioritise, account, freeze, each against its bound."""

from __future__ import annotations

from collections.abc import Iterator

from reports.claims import Row
from reports.mechanisms import functions
from reports.page import Column, Figure, Table, Value
from reports.sections.base import ClaimSection, View

WORDS = {True: "holds", False: "fails"}


class Controls(ClaimSection):
    """A matrix of functions and drivers, then every figure."""

    claim = "cgroups-do"
    metrics = (
        "enforcement.cpu_overrun",
        "enforcement.cpu_bites",
        "enforcement.memory_bites",
        "enforcement.pids_bite",
        "enforcement.io_overrun",
        "controls.share_error",
        "controls.accounted",
        "controls.freeze",
        "controls.thaw",
        "controls.frozen_cpu",
        "controls.thawed_cpu",
    )
    method = (
        "Limits are made to bite: CPU, memory, processes, direct writes. Shares: two instances, weights 1:3, one CPU.",
        "The account is read around work that counts its own CPU time; for a machine it holds the emulator's too.",
        "A busy instance is frozen, watched, thawed, watched again. A machine is its whole domain.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """None: each function has a unit of its own."""
        yield from ()

    def tables(self, view: View, row: Row) -> Iterator[Table]:
        """One row a function, one column a driver; then the numbers."""
        labels = [label for label in view.frame.labels() if view.frame.values("controls.share_error", label)]
        judged = {label: functions(view.evidence, row.claim, label) for label in labels}
        rows: list[tuple[Value | str, ...]] = [
            (name, *(_cell(judged[label][name]) for label in labels))
            for name in ("limit", "prioritise", "account", "freeze")
        ]
        columns = (Column("Function"), *(Column(label) for label in labels))
        if labels:
            caption = view.words.say("caption.controls")
            yield Table(slug="controls-matrix", caption=caption, columns=columns, rows=tuple(rows))
        yield from super().tables(view, row)


def _cell(holds: bool | None) -> Value:
    return Value("a figure is missing", absent=True) if holds is None else Value(WORDS[holds])
