"""`tare report` and `tare export`: a run's directory in, files out; a report also prints its table."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.results import JOURNAL, ResultsError, Run
from reports.words import LANGUAGES

if TYPE_CHECKING:
    from reports.sections.base import View

RESULTS = Path("results")
_FORMATS = ("csv", "parquet", "latex", "pytest-benchmark")


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path), required=False)
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of the report.")
@click.option("--output", "-o", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the page.")
def report(run_dir: Path | None, lang: str, output: Path | None) -> None:
    """Write the report of RUN_DIR (the newest under results/ if not said) and print its table."""
    from reports import render

    directory = run_dir if run_dir is not None else newest(RESULTS)
    view = view_of(directory, lang)
    target = output or directory / ("report.html" if lang == "en" else f"report.{lang}.html")
    write(target, render.page(view).encode())
    for line in terminal(view):
        click.echo(line)
    click.echo(str(target))


@click.command()
@click.argument("run_dir", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(_FORMATS), required=True, help="Samples, claims table, or replay.")
@click.option("--lang", type=click.Choice(LANGUAGES), default="en", show_default=True, help="Language of the table.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Where to write it (- is standard output); beside the journal if not said.",
)  # fmt: skip
def export(run_dir: Path, form: str, lang: str, output: Path | None) -> None:
    """Write RUN_DIR for other tools: samples (csv, parquet), the claims table (latex), pytest-benchmark's JSON."""
    from reports.export import FORMATS

    name, make = FORMATS[form]
    content = make(view_of(run_dir, lang))
    if output == Path("-"):
        click.echo(content, nl=False)
        return
    target = output or run_dir / name
    write(target, content)
    click.echo(str(target))


def view_of(directory: Path, lang: str) -> View:
    """The run in `directory`, judged, with the words of a language."""
    from reports import render
    from reports.claims import ClaimSet, Evidence
    from reports.frame import Frame
    from reports.words import Words

    return render.view_of(Evidence(Frame(Run.load(directory)), ClaimSet.load()), Words.load(lang))


def newest(results: Path) -> Path:
    """The run under `results` whose journal was written last. Raises ResultsError if there is none."""
    journals = sorted(results.glob(f"*/{JOURNAL}"), key=lambda path: path.stat().st_mtime)
    if not journals:
        raise ResultsError(
            f"runs under {results}/", "there are none", "measure first with: tare bench, or name RUN_DIR"
        )
    return journals[-1].parent


def write(target: Path, content: bytes) -> None:
    """Put `content` at `target` at once or not at all. Raises ResultsError when it cannot be written."""
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".tare-", delete=False) as file:
            temporary = Path(file.name)
            try:
                file.write(content)
                file.flush()
                temporary.chmod(0o644)
                temporary.replace(target)
            except OSError:
                temporary.unlink()
                raise
    except OSError as error:
        raise ResultsError(
            f"file {target}", error.strerror or str(error), "choose another place with --output"
        ) from error


def terminal(view: View) -> Sequence[str]:
    """The claims table for a terminal: ruled by rich on one, plain lines of aligned columns elsewhere."""
    from reports.terminal import lines

    columns = os.environ.get("COLUMNS", "")
    width = int(columns) if columns.isdecimal() else 0
    return lines(view, rich=sys.stdout.isatty(), width=width or None)
