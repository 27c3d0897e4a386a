"""CSV and LaTeX: the page's figures in full, and nothing that a reader's tool would obey."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable

from reports import export
from reports.sections.base import View


def table(view: View) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(export.claims_csv(view.rows, view.words).decode())))


def test_csv_has_one_line_a_claim_with_figures_in_full(view_of: Callable[..., View]) -> None:
    view = view_of()
    found = table(view)
    assert [line["claim"] for line in found] == [row.claim.id for row in view.rows]
    startup = found[0]
    assert float(startup["container_value"]) == view.rows[0].container[0].value
    assert (startup["vm_tcg"], startup["refusal"]) == ("yes", "software-emulation")
    assert found[-1]["verdict"] == "not measured"


def test_csv_of_a_gap_says_why_and_is_not_zero(view_of: Callable[..., View]) -> None:
    startup = table(view_of(unusable={"vm": "no QEMU"}))[0]
    assert startup["vm_value"] == "not measured: vm does not work here: no QEMU"


def test_samples_csv_holds_every_sample(view_of: Callable[..., View]) -> None:
    view = view_of(blocks=2)
    lines = list(csv.DictReader(io.StringIO(export.samples_csv(view.frame).decode())))
    assert len(lines) == len(view.frame.samples)
    assert float(lines[0]["value"]) == view.frame.samples["value"].iloc[0]


def test_latex_takes_every_special_letter_literally() -> None:
    assert export.latex("a_b & 5 % #1 {x} ~^ $ \\input") == (
        r"a\_b \& 5 \% \#1 \{x\} \textasciitilde{}\textasciicircum{} \$ \textbackslash{}input"
    )
    assert "\n" not in export.latex("two\nlines")


def test_latex_table_has_one_line_a_claim_with_six_cells(view_of: Callable[..., View]) -> None:
    view = view_of(blocks=2, unusable={"vm": "100% & broken_"})
    text = export.claims_latex(view.rows, view.words).decode()
    lines = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(lines) == 1 + len(view.rows)
    assert {line.replace(r"\&", "").count("&") for line in lines} == {5}
    assert r"\toprule" in text
