"""`tare report`: what it writes, what it prints, and one line for every mistake."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from harness.results import JOURNAL, ResultsError
from reports import cli, render
from reports.claims import SEED, ClaimSet, Evidence
from reports.sections.base import View
from reports.terminal import lines
from reports.words import Words
from tests.journals import Synthetic

SMALL = {"blocks": 1, "drivers": ("native",), "workloads": ("startup",)}


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli.report, list(arguments), catch_exceptions=True)


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return Synthetic(**SMALL).write(tmp_path / "results" / "one")  # type: ignore[arg-type]


def test_report_is_written_beside_the_journal_and_named(made: Path) -> None:
    result = run(str(made))
    assert result.exit_code == 0, result.output
    assert (made / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    assert result.output.splitlines()[-1] == str(made / "report.html")
    assert "Startup" in result.output


@pytest.mark.parametrize("columns", ["wide", "-5", "0", ""])
def test_a_width_that_is_none_is_passed_over(made: Path, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert run(str(made)).exit_code == 0


def test_report_in_chinese_has_a_name_of_its_own(made: Path) -> None:
    assert run(str(made), "--lang", "zh").exit_code == 0
    assert "启动" in (made / "report.zh.html").read_text(encoding="utf-8")


def test_newest_run_is_reported_by_default(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older = Synthetic(**SMALL).write(made.parent / "older")  # type: ignore[arg-type]
    os.utime(older / JOURNAL, (1, 1))
    monkeypatch.chdir(made.parent.parent)
    assert cli.newest(cli.RESULTS) == Path("results/one")


def test_no_run_at_all_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="measure first"):
        cli.newest(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "empty", "torn", "foreign"])
def test_journal_that_cannot_be_read_is_one_line(tmp_path: Path, damage: str) -> None:
    if damage != "missing":
        text = {"empty": "", "torn": '{"type": "run"\n{}\n', "foreign": '{"type": "run", "schema": 99}\n'}[damage]
        (tmp_path / JOURNAL).write_text(text)
    result = run(str(tmp_path))
    assert isinstance(result.exception, ResultsError)
    assert "\n" not in str(result.exception)


def test_place_that_cannot_be_written_is_one_line(made: Path) -> None:
    result = run(str(made), "--output", str(made / "no" / "such" / "report.html"))
    assert isinstance(result.exception, ResultsError)
    assert "--output" in str(result.exception)


def test_plain_table_has_no_control_sequences_and_fits(view_of: Callable[..., View]) -> None:
    text = lines(view_of(), rich=False)
    assert "\x1b" not in "".join(text)
    assert max(map(len, text)) <= 100
    assert sum("TCG" in line for line in text) >= 5


def test_claims_without_a_rule_are_told_together(view_of: Callable[..., View], tmp_path: Path) -> None:
    bare = re.sub(r'rule = "(max_only|cgroups_do)"', "", SEED.read_text(encoding="utf-8"))
    (tmp_path / "bare.toml").write_text(bare, encoding="utf-8")
    evidence = Evidence(view_of().frame, ClaimSet.load(tmp_path / "bare.toml"))
    text = " ".join(lines(render.view_of(evidence, Words.load("en")), rich=False))
    assert "Caps only, Control groups: not measured" in text


def test_table_on_a_terminal_fits_its_width(view_of: Callable[..., View]) -> None:
    assert "\x1b" in "".join(lines(view_of(), rich=True, width=120))


def test_brackets_in_a_reason_are_shown_and_not_obeyed(view_of: Callable[..., View]) -> None:
    view = view_of(blocks=6, unusable={"container": "[red]gone[/red]"})
    assert "[red]" in "".join(line.replace(" ", "") for line in lines(view, rich=False, width=200))
