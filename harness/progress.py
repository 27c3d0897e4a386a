"""What a run shows while it goes on: a line per finished cell, what runs now, the time that remains.

On a terminal the last line moves; elsewhere (a log, a pipe) everything is plain lines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from harness.assignment import Observer
from harness.results import Outcome, Record, Run
from runtime.errors import printable

_STYLE = {Outcome.OK: "green", Outcome.FAILED: "bold red", Outcome.SKIPPED: "yellow"}


def duration(seconds: float) -> str:
    """`1 h 05 min`, `4 min 10 s`, `12 s`, `0.4 s`."""
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    if seconds >= 60:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def amount(value: float, unit: str) -> str:
    """Three digits and the unit a person would say: `8.66 ms`, `266 MiB`, `4.45e+03 events/s`."""
    steps = {"s": ("s", "ms", "µs"), "B": ("B", "KiB", "MiB", "GiB"), "B/s": ("B/s", "KiB/s", "MiB/s", "GiB/s")}
    names, factor = steps.get(unit, (unit,)), 1e-3 if unit == "s" else 1024.0
    power = 0
    while power < len(names) - 1 and (0 < abs(value) < 1 if unit == "s" else abs(value) >= 1024):
        value, power = value / factor, power + 1
    return f"{value:.3g} {names[power]}".rstrip()


def own_cost(run: Run) -> str:
    """A line on what the harness itself took from the host it measured; empty where the journal does not say."""
    own = run.own_cpu()
    if own is None:
        return ""
    return f"the harness itself used {own.cpu_s:.1f} s of CPU in {duration(own.elapsed_s)}, {own.fraction:.1%} of a CPU"


def figure(record: Record, prefer: Sequence[str] = (), units: Mapping[str, str] | None = None) -> str:
    """The end of a cell's line: its reason, or one metric's name, median and count: the first of `prefer`, or any."""
    if record.outcome is not Outcome.OK:
        return printable(record.reason)
    names = [sample.metric for sample in record.samples]
    first = next((name for name in prefer if name in names), names[0])
    values = sorted(sample.value for sample in record.samples if sample.metric == first)
    more = f", {len(values)} samples" if len(values) > 1 else ""
    return f"{first} {amount(values[len(values) // 2], (units or {}).get(first, ''))}{more}"


class Display(Observer):
    """Shows a run on `stream`; a context manager. The moving line appears only on a terminal.

    `prefer` names the metrics to show of a cell that has several, `units` the unit of each.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False, soft_wrap=not stream.isatty())
        self._live = self._console.is_terminal
        self.prefer: Sequence[str] = ()
        self.units: Mapping[str, str] = {}
        self._what = ""
        self._left_s = 0.0
        # One refresh a second: the display must not be a load on the host that is measured.
        self._progress = Progress(
            SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(),
            console=self._console, refresh_per_second=1, transient=True,
        )  # fmt: skip
        self._task = self._progress.add_task("", start=True)

    def __enter__(self) -> Self:
        if self._live:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live:
            self._progress.stop()

    def running(self, what: str, left_s: float) -> None:
        """Show what begins now."""
        self._what, self._left_s = what, left_s
        self._show("")

    def saying(self, text: str) -> None:
        """Show a cell's own progress beside its name."""
        self._show(text)

    def _show(self, text: str) -> None:
        if self._live:
            more = f": {text}" if text else ""
            self._progress.update(self._task, description=f"{self._what}{more} · {duration(self._left_s)} left")

    def ended(self, record: Record, left_s: float) -> None:
        """One line for a finished cell."""
        self._left_s = left_s
        style = _STYLE[record.outcome]
        line = Text.assemble(
            f"{record.block + 1:>3}  ",
            (f"{record.outcome:<7}", style),
            f"  {record.cell!s:<34} {duration(record.elapsed_ns / 1e9):>9}  ",
            figure(record, self.prefer, self.units),
        )
        if not self._live:
            line.append(f"  ({duration(left_s)} left)")
        self._console.print(line, soft_wrap=True)

    def noted(self, text: str) -> None:
        """One line for anything else."""
        self._console.print(Text(printable(text)), soft_wrap=True)
