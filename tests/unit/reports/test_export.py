"""What other tools take: the page's figures in full, and nothing that a reader's tool would obey."""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.results import ResultsError
from reports import cli, export
from reports.sections.base import View
from tests.journals import Synthetic


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


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.export, list(map(str, arguments)), catch_exceptions=True)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return Synthetic(blocks=3, drivers=("native", "container"), workloads=("startup", "overhead_cpu")).write(
        tmp_path / "one"
    )


@pytest.mark.parametrize("form", export.FORMATS)
def test_every_format_is_written_beside_the_journal_and_named(made: Path, form: str) -> None:
    result = run(made, "--format", form)
    assert result.exit_code == 0, result.output
    target = Path(result.output.strip())
    assert target.parent == made
    assert target.stat().st_size > 0
    assert {path.name for path in made.iterdir()} == {"journal.jsonl", target.name}


def test_dash_is_standard_output_and_a_name_is_taken(made: Path, tmp_path: Path) -> None:
    printed = run(made, "--format", "csv", "-o", "-").output
    assert run(made, "--format", "csv", "-o", tmp_path / "all.csv").exit_code == 0
    assert (tmp_path / "all.csv").read_text() == printed
    assert {line["unit"] for line in csv.DictReader(io.StringIO(printed))} == {"s", "events/s"}


def test_a_place_that_cannot_be_written_is_one_line_and_leaves_nothing(made: Path) -> None:
    (made / "taken").mkdir()
    (made / "taken" / "file").write_text("mine")
    for place in (made / "no" / "such.csv", made / "taken"):
        with pytest.raises(ResultsError, match="--output"):
            cli.write(place, b"content")
    assert {path.name for path in made.iterdir()} == {"journal.jsonl", "taken"}


def test_parquet_holds_the_samples_with_their_types(made: Path, tmp_path: Path) -> None:
    import pandas as pd

    table = tmp_path / "samples.parquet"
    assert run(made, "--format", "parquet", "-o", table).exit_code == 0
    found, own = pd.read_parquet(table), export.samples(cli.view_of(made, "en").frame)
    assert list(found.columns) == list(own.columns)
    assert found["value"].tolist() == own["value"].tolist()
    assert (str(found["block"].dtype), str(found["value"].dtype)) == ("int64", "float64")


def test_parquet_without_pyarrow_is_refused_with_what_to_install(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    error = run(made, "--format", "parquet").exception
    assert isinstance(error, ResultsError)
    assert "tare[parquet]" in str(error)
    assert {path.name for path in made.iterdir()} == {"journal.jsonl"}


def test_pytest_benchmark_compares_two_exported_runs(made: Path, tmp_path: Path) -> None:
    slower = {("startup.spawned", "container"): 2.0}
    other = Synthetic(blocks=3, drivers=("native", "container"), workloads=("startup",), scale=slower, seed=8).write(
        tmp_path / "two"
    )
    for directory in (made, other):
        assert run(directory, "--format", "pytest-benchmark").exit_code == 0
    files = [str(directory / "pytest-benchmark.json") for directory in (made, other)]
    argv = [sys.executable, "-m", "pytest_benchmark", "compare", *files, "--csv", "table.csv"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Failed to load" not in done.stderr
    table = csv.DictReader(io.StringIO((tmp_path / "table.csv").read_text()))
    one, two = sorted(float(line["median"]) for line in table if line["name"].endswith("startup[container]"))
    assert 1.8 < two / one < 2.2


def test_pytest_benchmark_has_times_and_rates_and_nothing_that_is_neither(view_of: Callable[..., View]) -> None:
    document = json.loads(export.pytest_benchmark(view_of(blocks=2).frame.run))
    cells = {each["name"]: each for each in document["benchmarks"]}
    assert "footprint[container]" not in cells
    assert cells["overhead_cpu[container]"]["extra_info"]["replayed_unit"] == "s/event"
    assert cells["startup[native~aa]"]["fullname"] == "harness/test_cells.py::startup[native~aa]"
    assert cells["startup[vm]"]["stats"]["rounds"] == 2
    assert "node" in document["machine_info"]
