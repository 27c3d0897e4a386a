"""Estimates, contrasts and rulings as text, the same for the page, the terminal, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterable

from reports.claims import CONTAINER, VM, Contrast, Estimate, Row, Ruling
from reports.frame import Frame, Message
from reports.page import Value
from reports.units import digits, exact, human, span, times
from reports.words import Words


def figure(estimate: Estimate, significant: int = 2) -> str:
    """The figure alone, or an empty string where there is none."""
    if estimate.value is None:
        return ""
    return f"{'≥ ' if estimate.at_least else ''}{human(estimate.value, estimate.unit, significant)}"


def cell(estimate: Estimate, words: Words) -> Value:
    """A driver's figure as a cell: figure, note and TCG mark, or why there is none; the figure in full beside it."""
    if estimate.value is None:
        return Value(words.tell(estimate.why or Message("absent.no_sample")), absent=True)
    note = words.tell(estimate.note) if estimate.note else ""
    mark = estimate.mark
    return Value(figure(estimate), exact=exact(estimate.value), mark=mark, note=note)


def sentence(estimate: Estimate, words: Words) -> str:
    """A driver's figure inside a sentence, with its uncertainty and its mark, or why there is none."""
    if estimate.value is None:
        return words.tell(estimate.why or Message("absent.no_sample"))
    value = cell(estimate, words)
    label = "" if estimate.label in (CONTAINER, VM) else f"({estimate.label})"
    said = " ".join(filter(None, (figure(estimate, 3), value.mark, value.note, label)))
    if estimate.at_least:
        return said
    if estimate.interval is None:
        return words.say("answer.side_few", value=said, n=estimate.n)
    ends = span(estimate.interval.low, estimate.interval.high, estimate.unit, 3)
    return words.say("answer.side", value=said, span=ends, n=estimate.n)


def contrast(value: Contrast | None, words: Words) -> Value:
    """The ratio or difference with its interval; a refused one says its code beside the figures."""
    if value is None:
        return Value(words.say("note.no_ratio"), absent=True)
    why = words.tell(value.why) if value.why else ""
    if value.value is None:
        return Value(words.say("note.no_ratio"), exact=why, mark=value.code, absent=True)
    points = value.unit == "pp"
    text = f"{_signed(value.value)} pp" if points else times(value.value)
    ends = ""
    if value.low is not None and value.high is not None:
        low, high = (_signed(end) if points else times(end).removesuffix("×") for end in (value.low, value.high))
        ends = f"{low} to {high}" if points else f"{low}–{high}"
    return Value(text, exact=exact(value.value), mark=value.code, note=ends)


def _signed(points: float) -> str:
    return f"{'+' if points > 0 else '−' if points < 0 else ''}{digits(abs(points))}"


def ruling(row: Row, words: Words) -> str:
    """The verdict and its reason in one phrase."""
    word, reason = words.say(f"verdict.{row.ruling}"), words.tell(row.reason)
    if row.ruling in (Ruling.CONFIRMED, Ruling.REFUTED) and row.reason.key in ("reason.both", "reason.neither"):
        return word
    return f"{word}: {reason}" if words.language == "en" else f"{word}：{reason}"


def failures(frame: Frame, metrics: Iterable[str], words: Words) -> str:
    """`overhead_cpu[vm]: 2 of 10 failed` for each cell of these metrics that had failures; empty if none had."""
    workloads = {frame.workload(metric) for metric in metrics}
    return "; ".join(
        f"{tally.cell}: {words.say('note.failed', failed=tally.failed, attempted=tally.attempted)}"
        for tally in frame.tallies
        if tally.failed and tally.cell.workload in workloads
    )
