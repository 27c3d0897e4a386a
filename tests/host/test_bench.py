"""`tare bench` for real, on native and container: whole, and killed in the middle, cleaned and resumed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.results import Outcome, Record, ResultsError, Run
from runtime.driver import Host, find_driver
from tests.fixtures import bench_host  # noqa: F401 - a fixture
from tests.unit.harness.engine import demand_schema

BENCH = (sys.executable, "-m", "tare", "bench")
# The times of the profile are for a host that is not busy.
SMALL = ("--profile", "smoke", "--drivers", "native,container", "--no-report", "--time-factor", "4")
# Of each kind of thing on the host something; the whole run has them all.
SOME = ("-k", "startup or teardown or footprint or overhead or namespaces or network or delivery")
LIMIT_S = 300


def tare(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tare", *arguments],
        env=environment(host),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def environment(host: Host) -> dict[str, str]:
    return {**os.environ, "TARE_ROOT": str(host.root.parent)}


def leftovers(host: Host) -> list[str]:
    found = []
    for name in ("native", "container"):
        driver = find_driver(name)(host)
        try:
            found += driver.leftovers()
        finally:
            driver.close()
    return found


@pytest.fixture
def host(request: pytest.FixtureRequest) -> Host:
    host = request.getfixturevalue("bench_host")
    assert isinstance(host, Host)
    return host


def test_a_smoke_run_measures_every_cell_and_leaves_nothing(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = tare(host, "bench", *SMALL, "--seed", "1", "--out", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.load(out)
    demand_schema(out)
    assert {record.cell for record in run.records} == set(run.header.cells)
    assert {str(record.outcome) for record in run.records} == {"ok"}
    assert {facts.driver for facts in run.facts} == {"native", "container"}
    figures = next(event.figures for event in run.events if event.event == "finished")
    assert (
        figures["harness_cpu_fraction"] < 0.25
    )  # the small profile's; what the real ones must reach is measured there
    assert leftovers(host) == []


def test_a_run_killed_and_interrupted_again_and_again_is_cleaned_and_resumed(host: Host, tmp_path: Path) -> None:
    out, rng = tmp_path / "out", random.Random(2)
    kept: tuple[Record, ...] = ()
    ways = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM)
    words: tuple[str, ...] = (*SMALL, *SOME, "--seed", "2", "--out", str(out))
    with (tmp_path / "log").open("wb") as log:
        for number in ways:
            process = subprocess.Popen([*BENCH, *words], env=environment(host), stdout=log, stderr=log)
            await_records(process, out, len(kept) + rng.randint(1, 4))
            process.send_signal(number)
            process.wait()
            assert tare(host, "clean").returncode == 0
            assert leftovers(host) == []
            before, kept = kept, Run.load(out).records
            assert kept[: len(before)] == before
            words = ("--resume", str(out), "--no-report")
    done = tare(host, "bench", *words)
    assert done.returncode == 0, done.stdout + done.stderr
    run = Run.load(out)
    demand_schema(out)
    assert run.records[: len(kept)] == kept
    keys = [(record.cell, record.block) for record in run.records]
    assert len(keys) == len(set(keys))
    assert {record.cell for record in run.records} == set(run.header.cells)
    assert all(record.outcome is Outcome.OK for record in run.records)
    turns = [event.event for event in run.events if event.event in ("started", "resumed", "finished")]
    assert turns == ["started", *["resumed"] * len(ways), "finished"]


def test_ctrl_c_in_the_middle_leaves_a_clean_host_and_says_how_to_go_on(host: Host, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [*BENCH, *SMALL, "--out", str(out)],
        env=environment(host),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    await_records(process, out, 3)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"tare bench --resume {out}" in output
    assert Run.load(out).events[-1].event == "interrupted"
    assert leftovers(host) == []


def recorded(out: Path) -> int:
    """How many records the journal holds; none while its first line is being written."""
    try:
        return len(Run.load(out).records)
    except ResultsError:
        return 0


def await_records(process: subprocess.Popen[bytes] | subprocess.Popen[str], out: Path, count: int) -> None:
    until_s = time.monotonic() + LIMIT_S
    while recorded(out) < count:
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < until_s
        time.sleep(0.05)
