"""`tare report`: a run's directory in, one HTML file and a table on the terminal out."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import click

from harness.results import JOURNAL, ResultsError, Run
from reports.words import LANGUAGES

RESULTS = Path("results")


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path), required=False)
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of the report.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the page.")
def report(run_dir: Path | None, lang: str, output: Path | None) -> None:
    """Write the report of RUN_DIR (the newest under results/ if not said) and print its table."""
    from reports import render
    from reports.claims import ClaimSet, Evidence
    from reports.frame import Frame
    from reports.words import Words

    directory = run_dir if run_dir is not None else newest(RESULTS)
    frame = Frame(Run.load(directory))
    words = Words.load(lang)
    view = render.view_of(Evidence(frame, ClaimSet.load()), words)
    target = output or directory / ("report.html" if lang == "en" else f"report.{lang}.html")
    write(target, render.page(view))
    for line in terminal(view):
        click.echo(line)
    click.echo(str(target))


def newest(results: Path) -> Path:
    """The run under `results` whose journal was written last. Raises ResultsError if there is none."""
    journals = sorted(results.glob(f"*/{JOURNAL}"), key=lambda path: path.stat().st_mtime)
    if not journals:
        raise ResultsError(
            f"runs under {results}/", "there are none", "measure first with: tare bench, or name RUN_DIR"
        )
    return journals[-1].parent


def write(target: Path, text: str) -> None:
    """Put `text` at `target` at once or not at all. Raises ResultsError when it cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", dir=target.parent, prefix=".report-", delete=False
        ) as file:
            file.write(text)
        temporary = Path(file.name)
        temporary.chmod(0o644)
        temporary.replace(target)
    except OSError as error:
        raise ResultsError(
            f"report {target}", error.strerror or str(error), "choose another place with --output"
        ) from error


def terminal(view: object) -> Sequence[str]:
    """The claims table for a terminal: ruled by rich on one, plain lines of aligned columns elsewhere."""
    from reports.sections.base import View
    from reports.terminal import lines

    assert isinstance(view, View)
    width = int(os.environ.get("COLUMNS", "0")) or None
    return lines(view, rich=sys.stdout.isatty(), width=width)
