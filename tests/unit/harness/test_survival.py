"""What a run survives: kills at any moment, a host that sleeps, a disk that fills, tools that talk nonsense."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from harness import hoststate
from harness.assignment import Observer
from harness.profiles import Entry
from harness.results import JOURNAL, Outcome, Record, Run
from harness.runner import Interrupted
from runtime.driver import Kind
from runtime.instance import ExecResult
from tests.fakes import Behaviour, FakeInstance
from tests.unit.harness.engine import Bench, demand_schema, order, standard_workloads, tiny_profile, workload
from workloads.base import Context, Stage, all_workloads
from workloads.metric import Sample

SUSPENDED = "the host was suspended in the middle of it"


def everything(run: Run) -> set[tuple[str, int]]:
    return {(str(record.cell), record.block) for record in run.records}


def slow_bench(directory: Path) -> Bench:
    """Four blocks, every cell long enough to be hit."""

    def slow(name: str) -> Callable[[Context], Iterator[Sample]]:
        def measure(context: Context) -> Iterator[Sample]:
            time.sleep(0.004)
            yield Sample(f"{name}.value", 1.0)

        return measure

    workloads = {name: workload(name, kind.stage, slow(name)) for name, kind in standard_workloads().items()}
    return Bench(directory, workloads=workloads, profile=tiny_profile(min_blocks=4, max_blocks=4))


class Telling(Observer):
    """Writes to a pipe after `begin` turns of the run, and halts for good a few turns later."""

    def __init__(self, pipe: int, begin: int) -> None:
        self._pipe, self._left = pipe, begin

    def running(self, what: str, left_s: float) -> None:
        self._turn()

    def ended(self, record: Record, left_s: float) -> None:
        self._turn()

    def _turn(self) -> None:
        self._left -= 1
        if self._left == 0:
            os.write(self._pipe, b".")
        if self._left == -4:
            time.sleep(60)


def run_in_a_child(directory: Path, observer: Observer) -> int:
    pid = os.fork()
    if pid == 0:  # pragma: no cover - the child, which never returns into pytest
        signal.signal(signal.SIGINT, signal.default_int_handler)
        code = 1
        try:
            slow_bench(directory).run(observer)
            code = 0
        except (Interrupted, KeyboardInterrupt):  # the latter before or after anything is measured
            code = 130
        finally:
            os._exit(code)
    return pid


def test_a_run_killed_and_interrupted_at_random_moments_and_resumed_gives_the_full_set(tmp_path: Path) -> None:
    whole = slow_bench(tmp_path / "whole").run()
    rng, torn = random.Random(11), tmp_path / "torn"
    journal, codes = torn / "run" / JOURNAL, list[int]()
    for number in [signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM] * 3:
        kept = journal.read_bytes() if journal.exists() else b""
        reading, writing = os.pipe()
        pid = run_in_a_child(torn, Telling(writing, rng.randint(1, 4)))
        assert os.read(reading, 1) == b"."
        time.sleep(rng.uniform(0.0, 0.03))
        os.kill(pid, number)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os.close(reading)
        os.close(writing)
        assert journal.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
        for driver in ("native", "container"):
            shutil.rmtree(torn / driver, ignore_errors=True)  # fakes count their instances anew in each process
    assert {code for code in codes if code >= 0} == {130}
    assert codes.count(-signal.SIGKILL) == 6
    run = slow_bench(torn).run()
    assert order(run.records) == order(whole.records)
    assert everything(run) == everything(whole)
    assert len(run.records) == len(whole.records)
    assert {record.outcome for record in run.records} == {Outcome.OK}
    demand_schema(torn / "run")


class Sleeping(Observer):
    """A host that sleeps for a second while what `during` names is going on, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, during: str) -> None:
        self._patch, self._during = monkeypatch, during

    def running(self, what: str, left_s: float) -> None:
        if self._during in what:
            readings = iter([0])
            self._during = "never again"
            self._patch.setattr(hoststate, "_suspended_ns", lambda: next(readings, 10**9))


def voided(run: Run) -> list[str]:
    assert {r.reason.partition(": ")[2] for r in run.records if r.outcome is Outcome.FAILED} == {SUSPENDED}
    return [str(r.cell) for r in run.records if r.outcome is Outcome.FAILED]


def test_a_suspended_host_voids_the_cell_it_slept_in_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hoststate, "_suspended_ns", lambda: 0)
    run = Bench(tmp_path).run(Sleeping(monkeypatch, "two[container], block 2"))
    assert voided(run) == ["two[container]"]


def test_a_host_that_slept_while_an_instance_booted_voids_its_startup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hoststate, "_suspended_ns", lambda: 0)
    real = FakeInstance.wait_ready

    def asleep(instance: FakeInstance, timeout_s: float) -> None:
        real(instance, timeout_s)
        if instance.driver.name == "container" and not instance.ordinal:
            monkeypatch.setattr(hoststate, "_suspended_ns", lambda: 10**9)

    monkeypatch.setattr(FakeInstance, "wait_ready", asleep)
    assert voided(Bench(tmp_path).run()) == ["boot[container]"]


def test_a_disk_that_fills_in_a_workload_is_a_counted_failure_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(context: Context) -> Iterator[Sample]:
        if context.driver.name == "container":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/var/tmp/scratch")
        yield Sample("one.value", 1.0)

    real = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if path.name == "logs":  # not even the log of failures has room
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        real(path, mode, parents, exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    run = Bench(tmp_path, workloads=standard_workloads() | {"one": workload("one", Stage.SESSION, full)}).run()
    failed = [record for record in run.records if record.outcome is Outcome.FAILED]
    assert {str(record.cell) for record in failed} == {"one[container]"}
    assert all("No space left on device" in record.reason and not record.samples for record in failed)
    assert run.events[-1].event == "finished"


GARBAGE = (b"", b"Segmentation fault\n", b"{", b"\xff\xfe\x00", b"events per second: nan\n", b"[1, 2, 3]")


@pytest.mark.parametrize("output", GARBAGE)
def test_output_of_a_tool_that_does_not_parse_is_a_counted_failure_and_the_run_goes_on(
    tmp_path: Path, output: bytes
) -> None:
    def nonsense(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        tool = next((word for word in ("sysbench", "fio", "gauge") if word in " ".join(argv)), None)
        return ExecResult(tuple(argv), 0, output, b"", 1_000_000) if tool else None

    workloads = {name: kind for name, kind in all_workloads().items() if name.startswith("overhead_")}
    assert len(workloads) >= 3
    profile = tiny_profile(
        min_blocks=1, max_blocks=1, entries={name: Entry(params={"seconds": 0.01}, expect_s=0.01) for name in workloads}
    )
    kinds = {"container": Kind.CONTAINER}
    talking = Bench(tmp_path, workloads=workloads, profile=profile, kinds=kinds)
    talking.drivers["container"].behaviour = Behaviour(reply=nonsense)
    run = talking.run()
    assert {record.cell.workload for record in run.records} == set(workloads)
    assert {record.outcome for record in run.records} == {Outcome.FAILED}
    assert all(record.reason and "\n" not in record.reason and not record.samples for record in run.records)
    assert run.events[-1].event == "finished"


@pytest.mark.parametrize("victim", ["one", "two", "own", "last", "end"])
def test_an_instance_that_dies_at_any_stage_fails_its_cell_with_a_reason_and_the_run_goes_on(
    tmp_path: Path, victim: str
) -> None:
    def die(context: Context) -> Iterator[Sample]:
        instance = context.instance if context.instance is not None else context.launch()
        if context.driver.name == "container":
            assert isinstance(instance, FakeInstance)
            instance.kill()
            instance.exec(("true",), 1)
        yield Sample(f"{victim}.value", 1.0)

    workloads = standard_workloads()
    bench = Bench(tmp_path, workloads=workloads | {victim: workload(victim, workloads[victim].stage, die)})
    run = bench.run()
    dead: list[Record] = [record for record in run.records if str(record.cell) == f"{victim}[container]"]
    assert {record.outcome for record in dead} == {Outcome.FAILED}
    assert all(record.reason and not record.samples for record in dead)
    assert {record.outcome for record in run.records if record.cell.driver == "native"} == {Outcome.OK}
    assert run.events[-1].event == "finished"
    assert bench.open_instances() == []
