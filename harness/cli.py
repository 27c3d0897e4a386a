"""`tare bench` and `tare doctor`: options in, exit codes out; what they do lies in the other modules."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import click

from harness import bench as benching
from harness.profiles import PROFILES
from harness.progress import Display, own_cost
from harness.results import Outcome, Run
from runtime.driver import host_from_env

_REPORT_S = 300


def _names(_ctx: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in value.split(",") if word.strip()) if value else ()


@click.command()
@click.option("-k", "select", metavar="EXPR", default="", help="Only cells whose name matches, as in pytest.")
@click.option("--profile", metavar="NAME", help=f"One of {', '.join(PROFILES)}; quick if not said.")
@click.option("--drivers", metavar="A,B", callback=_names, help="Which drivers; the profile's if not said.")
@click.option("--out", type=click.Path(path_type=Path), help="Where the results go: a new or empty directory.")
@click.option("--seed", type=int, metavar="N", help="Repeat the order of a run that had this seed.")
@click.option("--resume", type=click.Path(path_type=Path), metavar="DIR", help="Go on with an interrupted run.")
@click.option("--time-factor", type=float, metavar="F", help="Multiply budget and time-outs on a slow host.")
@click.option("--tune", is_flag=True, help="Set governor, turbo, swap and the like for the run, then put them back.")
@click.option("--identify", is_flag=True, help="Also record the host's name and serial numbers.")
@click.option("--no-report", is_flag=True, help="Leave the report to a later `tare report`.")
@click.option("--list", "list_only", is_flag=True, help="Name the cells, measure nothing.")
def bench(
    select: str,
    profile: str | None,
    drivers: tuple[str, ...],
    out: Path | None,
    seed: int | None,
    resume: Path | None,
    time_factor: float | None,
    tune: bool,
    identify: bool,
    no_report: bool,
    list_only: bool,
) -> int:
    """Measure, and write a report."""
    options = benching.Options(
        profile=profile, drivers=drivers, select=select, out=out, seed=seed, resume=resume, time_factor=time_factor,
        tune=tune, identify=identify,
    )  # fmt: skip
    plan = benching.draft(options)
    if list_only:
        click.echo("\n".join(str(one.cell) for one in plan.planned))
        return 0
    with Display(sys.stdout) as display, benching.opened(plan, host_from_env(), display) as run:
        display.prefer = plan.profile.key_metrics
        display.units = plan.units()
        display.noted(benching.summary(plan, run))
        run.engine.run()
        failed = run.engine.count(Outcome.FAILED)
    if not no_report:
        report(run.directory)
    click.echo(own_cost(Run.load(run.directory)))
    if failed:
        click.echo(f"{failed} cells failed; see their reasons above and in {run.directory / 'logs'}", err=True)
    return 1 if failed else 0


def report(directory: Path) -> int:
    """Have the report made, in a process of its own: this one stays free of pandas. Returns its exit code."""
    sys.stdout.flush()
    made = subprocess.run(  # it writes to the same terminal, which the one runner for commands would swallow
        [sys.executable, "-m", "tare", "report", str(directory)], check=False, timeout=_REPORT_S
    )
    return made.returncode


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Machine-readable.")
def doctor(as_json: bool) -> int:
    """Say whether this host can measure, and what to do where it cannot."""
    import harness.doctor as checking

    checks = checking.checks(host_from_env())
    if as_json:
        click.echo(json.dumps([checking.to_json(check) for check in checks], indent=2))
    else:
        click.echo(checking.render(checks))
    return checking.exit_code(checks)
