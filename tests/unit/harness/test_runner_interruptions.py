"""The engine interrupted, killed or out of disk, on fakes: resumed, and nothing left behind."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from harness.assignment import Observer
from harness.journal import JournalError
from harness.runner import Interrupted
from runtime.driver import Kind
from tests.fakes import SPEC, Behaviour
from tests.unit.harness.engine import (
    Bench,
    Stopping,
    demand_schema,
    everything,
    order,
)


def test_a_run_interrupted_at_ten_random_moments_and_resumed_gives_the_full_set_in_the_same_order(
    tmp_path: Path,
) -> None:
    whole = Bench(tmp_path / "whole").run()
    bench, rng, errors = Bench(tmp_path / "torn"), random.Random(5), list[Interrupted]()
    while True:
        try:
            run = bench.run(Stopping(rng.randint(2, 9), rng.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])))
            break
        except Interrupted as error:
            errors.append(error)
        assert bench.open_instances() == []
        assert bench.load().events[-1].event == "interrupted"
    interruptions = len(errors)
    assert interruptions >= 10
    assert {(error.exit_code, "--resume" in error.do) for error in errors} == {(130, True)}
    assert order(run.records) == order(whole.records)
    assert Counter(event.event for event in run.events)["interrupted"] == interruptions
    assert len(run.facts) == 2
    demand_schema(tmp_path / "torn" / "run")


def test_an_interruption_during_launch_waits_until_the_instance_is_known(tmp_path: Path) -> None:
    bench = Bench(tmp_path, behaviours={"container": Behaviour(launch_s=0.2)}, kinds={"container": Kind.CONTAINER})
    signal.signal(signal.SIGALRM, signal.SIG_DFL)

    class During(Observer):
        def running(self, what: str, left_s: float) -> None:
            if "starts" in what:
                pid = os.getpid()
                if os.fork() == 0:  # pragma: no cover - the child
                    time.sleep(0.1)
                    os.kill(pid, signal.SIGINT)
                    os._exit(0)

    with pytest.raises(Interrupted):
        bench.run(During())
    os.wait()
    assert len(bench.drivers["container"].instances) == 1
    assert bench.open_instances() == []


def test_what_the_harness_used_is_summed_over_the_parts_of_an_interrupted_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(Interrupted):
        bench.run(Stopping(9))
    parts = [event.figures for event in bench.run().events if event.event in ("interrupted", "finished")]
    own = bench.load().own_cpu()
    assert own is not None
    assert len(parts) == 2
    assert own.cpu_s == sum(part["harness_cpu_s"] for part in parts)
    assert own.elapsed_s == sum(part["elapsed_s"] for part in parts)
    assert own.fraction == own.cpu_s / own.elapsed_s


def test_what_a_killed_run_left_is_swept_before_anything_is_measured(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    stale = bench.drivers["container"].launch(bench.drivers["container"].prepare(SPEC))
    stale.closed = True
    seen: list[list[str]] = []

    class Watching(Observer):
        def running(self, what: str, left_s: float) -> None:
            seen.append(bench.drivers["container"].leftovers())

    run = bench.run(Watching())
    assert not any(seen)
    assert [event.event for event in run.events][:2] == ["started", "leftover"]


def test_a_journal_that_can_no_longer_be_written_ends_the_run_and_gives_the_host_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = os.fsync, [9]

    def fsync(fd: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        real(fd)

    bench = Bench(tmp_path)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(JournalError, match="No space left"):
        bench.run()
    monkeypatch.undo()
    assert bench.open_instances() == []
    assert len(bench.load().records) > 0
    run = bench.run()
    assert {(record.cell, record.block) for record in run.records} == everything(bench)
