"""`tare compare`, `floor` and `history`: options in, exit codes out (1 for a regression where asked, 2 for usage)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from harness.compare import Change

_DIRECTORY = Path("results/history")
_FAIL_ON = click.option(
    "--fail-on", type=click.Choice(["regression"]), help="Exit 1 when something is surely worse, by more than ±δ."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
_DIR = click.option(
    "--dir", "directory", type=click.Path(path_type=Path), default=_DIRECTORY, show_default=True, help="Where it lies."
)


@click.command()
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@_FAIL_ON
@_JSON
def compare(before: Path, after: Path, fail_on: str | None, as_json: bool) -> int:
    """Set run AFTER against run BEFORE, metric by metric: ratio, interval, margin, verdict."""
    import harness.compare as comparing
    from harness.results import Run

    early, late = Run.load(before), Run.load(after)
    comparing.demand_alike(early.header, late.header)
    if early.header.image != late.header.image:
        click.echo("note: the runs measured different builds of the image", err=True)
    return _told(comparing.changes(comparing.series(early), comparing.series(late)), fail_on, as_json)


def _told(found: Sequence[Change], fail_on: str | None, as_json: bool) -> int:
    import harness.compare as comparing

    worse = comparing.regressions(found)
    if as_json:
        click.echo(json.dumps([each.to_json() for each in found], indent=1))
    else:
        click.echo("\n".join(comparing.table(found)))
    if worse and fail_on:
        click.echo(f"{len(worse)} regressions: {', '.join(each.key for each in worse)}", err=True)
    return 1 if worse and fail_on else 0


@click.command()
@click.argument("runs", type=click.Path(path_type=Path), nargs=-1, required=True)
@_JSON
def floor(runs: tuple[Path, ...], as_json: bool) -> int:
    """Say of RUNS whether two runs of the same thing agree: every metric's A/A control, inside its own margin or not.

    Exit 1 when one lies outside, or none could be judged.
    """
    import harness.compare as comparing
    from harness.results import Run

    found = {str(directory): comparing.controls(Run.load(directory)) for directory in runs}
    if as_json:
        click.echo(json.dumps({name: [each.to_json() for each in one] for name, one in found.items()}, indent=1))
    else:
        for name, one in found.items():
            click.echo("\n".join([f"{name}:", *comparing.control_table(one)]))
    outside = [f"{each.key} in {name}" for name, one in found.items() for each in one if each.inside is False]
    blind = [name for name, one in found.items() if not any(each.inside is not None for each in one)]
    if outside:
        click.echo(f"outside: {', '.join(outside)}", err=True)
    if blind:
        click.echo(f"no control to judge in: {', '.join(blind)}", err=True)
    return 1 if outside or blind else 0


class _History(click.Group):
    """Runs' history; any other word is an image's name, whose history is `docker history`'s."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] in self.commands:
            return super().resolve_command(ctx, args)
        from runtime.commands import images

        return "", images.history, args


@click.group(cls=_History, context_settings={"ignore_unknown_options": True}, invoke_without_command=False)
def history() -> None:
    """Keep a summary of every run and check the latest (add, show, check); or an IMAGE's layers, as in Docker."""


@history.command("add")
@click.argument("run_dir", type=click.Path(path_type=Path))
@_DIR
def add(run_dir: Path, directory: Path) -> None:
    """Keep a summary of RUN_DIR."""
    import harness.history as keeping
    from harness.results import Run

    click.echo(str(keeping.add(directory, Run.load(run_dir))))


@history.command("show")
@click.option("-k", "select", default="", metavar="TEXT", help="Also the medians of series with TEXT in their names.")
@_DIR
@_JSON
def show(select: str, directory: Path, as_json: bool) -> None:
    """List what is kept."""
    import harness.history as keeping

    found = keeping.load(directory)
    click.echo(json.dumps([each.to_json() for each in found]) if as_json else "\n".join(keeping.show(found, select)))


@history.command("check")
@click.option("--window", default=10, show_default=True, type=click.IntRange(3), help="How many earlier runs count.")
@_DIR
@_JSON
def check(window: int, directory: Path, as_json: bool) -> int:
    """Set the latest run against those before it; exit 1 when something is surely worse."""
    import harness.history as keeping

    earlier, latest = keeping.window(keeping.load(directory), window)
    return _told(keeping.check(earlier, latest), "regression", as_json)
