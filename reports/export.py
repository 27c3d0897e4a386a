"""The claims table and the samples in forms that a paper or a program takes: CSV, Parquet, LaTeX, pytest-benchmark.

The figures are the page's own or the journal's: nothing is judged here.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any

from harness import replay
from harness.results import Cell, ResultsError, Run
from reports import cells
from reports.claims import Estimate, Row
from reports.frame import Frame
from reports.units import exact
from reports.words import Words

if TYPE_CHECKING:
    import pandas as pd

    from reports.sections.base import View

SPECIAL = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "×": r"$\times$", "÷": r"$\div$", "≥": r"$\geq$", "µ": r"$\mu$",
    "\u00a0": "~", "−": "$-$", "–": "--", "—": "---",
}  # fmt: skip


def claims_csv(rows: Sequence[Row], words: Words) -> bytes:
    """One line a claim: id, claimed, measured in full precision with unit, interval, n, verdict, reason."""
    out = io.StringIO()
    writer = csv.writer(out)
    sides = ("container", "vm")
    figures = [
        f"{side}_{name}"
        for side in sides
        for name in ("driver", "claimed", "value", "unit", "low", "high", "n", "tcg", "note")
    ]
    writer.writerow(
        ["claim", *figures, "ratio_vm_to_container", "ratio_low", "ratio_high", "refusal", "verdict", "reason"]
    )
    for row in rows:
        claimed = row.claim.texts["en"]
        contrast = row.contrast
        ends = (contrast.value, contrast.low, contrast.high) if contrast else (None,) * 3
        writer.writerow([
            row.claim.id,
            *_side(row.container, claimed["container"], words),
            *_side(row.vm, claimed["vm"], words),
            *(("" if value is None else exact(value)) for value in ends),
            contrast.code if contrast else "",
            words.say(f"verdict.{row.ruling}"),
            words.tell(row.reason),
        ])  # fmt: skip
    return out.getvalue().encode("utf-8")


def _side(estimates: Sequence[Estimate], claimed: str, words: Words) -> list[str]:
    if not estimates:
        return ["", claimed, "not measured", "", "", "", "0", "", ""]
    first = estimates[0]
    if first.value is None:
        return [first.label, claimed, cells.cell(first, words).text, "", "", "", "0", "", ""]
    low, high = (exact(first.interval.low), exact(first.interval.high)) if first.interval else ("", "")
    note = words.tell(first.note) if first.note else ""
    return [
        first.label,
        claimed,
        exact(first.value),
        first.unit,
        low,
        high,
        str(first.n),
        "yes" if first.emulated else "no",
        note,
    ]


def samples(frame: Frame) -> pd.DataFrame:
    """Every sample of the run, warm-ups included, in the order measured: `frame.COLUMNS`, then the value's unit."""
    return frame.samples.assign(unit=[frame.unit(name) for name in frame.samples["metric"]])


def samples_csv(frame: Frame) -> bytes:
    """The samples, with a line of headings."""
    return str(samples(frame).to_csv(index=False)).encode("utf-8")


def samples_parquet(frame: Frame) -> bytes:
    """The samples as Apache Parquet. Raises ResultsError where pyarrow is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ResultsError("export parquet", "pyarrow is not installed", "pip install 'tare[parquet]', or take csv")
    return bytes(samples(frame).to_parquet(None, engine="pyarrow", index=False))


def pytest_benchmark(run: Run) -> bytes:
    """What `pytest-benchmark compare` reads: each cell that has a time or a rate, under the name that pytest gives it.

    The samples are those that `tox -e bench` replays (`harness.replay`); the host goes by its fingerprint.
    """
    header = run.header
    tare = {
        "run_id": header.run_id, "profile": header.profile, "seed": header.seed, "fingerprint": header.fingerprint,
    }  # fmt: skip
    document = {
        "machine_info": {"node": header.fingerprint[:8], "cpu": {"brand_raw": header.host.get("cpu", {}).get("model")}},
        "commit_info": {"id": header.host.get("tare", {}).get("commit", "")},
        "benchmarks": list(filter(None, (_benchmark(run, cell) for cell in sorted(header.cells)))),
        "datetime": header.started_utc,
        "version": metadata.version("pytest-benchmark"),
        "tare": tare,
    }
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def _benchmark(run: Run, cell: Cell) -> dict[str, Any] | None:
    from pytest_benchmark.stats import Stats

    records = [record for record in run.records if record.cell == cell]
    chosen = replay.choose(run.header.metrics, records, run.header.settings.get("key_metrics", ()))
    if chosen is None:
        return None
    make: Callable[[], Any] = Stats
    stats = make()
    for seconds in chosen.seconds:
        stats.update(seconds)
    return {
        "group": cell.workload,
        "name": str(cell),
        "fullname": f"{replay.TEST_FILE}::{cell}",
        "params": None,
        "param": None,
        "extra_info": replay.extra_info(run.header.metrics, records, chosen),
        "options": {"timer": "VirtualClock"},
        "stats": {**stats.as_dict(), "iterations": 1, "data": stats.data},
    }


def latex(text: str) -> str:
    """`text` with everything that LaTeX would act on taken literally."""
    return "".join(SPECIAL.get(letter, letter) for letter in re.sub(r"[\r\n\t]+", " ", text))


def claims_latex(rows: Sequence[Row], words: Words) -> bytes:
    """A booktabs table of the claims; what it needs is said in its first line."""
    lines = [
        r"% needs \usepackage{booktabs}; Chinese text needs xelatex with xeCJK",
        r"\begin{tabular}{@{}llrrrl@{}}",
        r"\toprule",
        " & ".join(
            latex(words.say(f"head.{name}")) for name in ("blank", "claim", "container", "vm", "ratio", "verdict")
        )
        + r" \\",
        r"\midrule",
    ]
    for row in rows:
        claimed = " / ".join(words.own_text(row.claim.texts, side) for side in ("container", "vm"))
        lines.append(" & ".join(latex(text) for text in (
            words.own_text(row.claim.texts, "row"),
            claimed,
            _short(row.container, words),
            _short(row.vm, words),
            _ratio(row, words),
            words.say(f"verdict.{row.ruling}"),
        )) + r" \\")  # fmt: skip
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""]).encode("utf-8")


def _ratio(row: Row, words: Words) -> str:
    value = cells.contrast(row.contrast, words)
    return f"{value.text} ({value.note})" if value.note else value.text


def _short(estimates: Sequence[Estimate], words: Words) -> str:
    if not estimates or estimates[0].value is None:
        return words.say("note.not_measured")
    return cells.figure(estimates[0]) + (f" ({estimates[0].mark})" if estimates[0].mark else "")


FORMATS: dict[str, tuple[str, Callable[[View], bytes]]] = {
    "csv": ("samples.csv", lambda view: samples_csv(view.frame)),
    "parquet": ("samples.parquet", lambda view: samples_parquet(view.frame)),
    "latex": ("claims.tex", lambda view: claims_latex(view.rows, view.words)),
    "pytest-benchmark": ("pytest-benchmark.json", lambda view: pytest_benchmark(view.frame.run)),
}  # by name: the file it is written to, and how it is made
