"""The pytest front, in processes of its own, on drivers that live in memory."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from harness.results import ResultsError, Run
from tests.unit.harness.engine import demand_schema

ROOT = Path(__file__).parents[3]


def started(directory: Path, *arguments: str, **behaviours: dict[str, Any]) -> subprocess.Popen[str]:
    """`tox -e bench`'s command in `directory`, running."""
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        str(ROOT / "harness" / "bench.ini"),
        "-p",
        "tests.unit.harness.fakebench",
    ]
    return subprocess.Popen(
        [*argv, "-p", "harness.plugin", "--rootdir", str(ROOT), str(ROOT / "harness" / "test_cells.py"), *arguments],
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TARE_ROOT": str(directory / "state"),
            "FAKE_BENCH": json.dumps(behaviours),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def front(directory: Path, *arguments: str, **behaviours: dict[str, Any]) -> tuple[int, str]:
    """Run it to its end; exit code and output."""
    with started(directory, *arguments, **behaviours) as process:
        output, _ = process.communicate(timeout=60)
    return process.returncode, output


def recorded(out: Path) -> int:
    """How many records the journal holds; none while its first line is being written."""
    try:
        return len(Run.load(out).records)
    except ResultsError:
        return 0


def touched(directory: Path) -> list[str]:
    """What lies there now; pytest-benchmark makes its storage whatever happens."""
    return [path.name for path in directory.iterdir() if path.name != ".benchmarks"]


def test_one_test_a_cell_replayed_into_pytest_benchmark(tmp_path: Path) -> None:
    code, output = front(tmp_path, "--out", "out", "--seed", "3", "--junitxml", "junit.xml")
    assert code == 0, output
    run = Run.load(tmp_path / "out")
    demand_schema(tmp_path / "out")
    cases = {case.attrib["name"] for case in ET.parse(tmp_path / "junit.xml").iter("testcase")}
    assert cases == {str(cell) for cell in run.header.cells}
    assert "startup[native~aa]" in cases
    assert f"{len(cases)} passed" in output
    assert "REPORT OF out" in output
    assert "the harness itself used " in output[output.index("REPORT OF out") :]
    benchmarks = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert benchmarks["tare"]["run_id"] == run.header.run_id
    assert benchmarks["machine_info"]["node"] == run.header.fingerprint[:8]
    by_name = {each["name"]: each for each in benchmarks["benchmarks"]}
    startup = by_name["startup[container]"]
    recorded = [
        sample.value
        for record in run.records
        if str(record.cell) == "startup[container]"
        for sample in record.samples
        if sample.metric == "startup.ready"
    ]
    assert startup["stats"]["data"] == recorded
    assert startup["extra_info"]["replayed"] == "startup.ready"
    assert startup["extra_info"]["replayed_unit"] == "s"
    assert startup["extra_info"]["metrics"]["startup.spawned"]["samples"] == len(recorded)
    cpu = by_name["overhead_cpu[container]"]
    rates = [r.samples[0].value for r in run.records if str(r.cell) == "overhead_cpu[container]"]
    assert cpu["stats"]["data"] == pytest.approx([1 / rate for rate in rates])
    assert cpu["extra_info"]["replayed_unit"] == "s/event"
    assert "footprint[container]" not in by_name


def test_k_and_m_decide_what_is_measured(tmp_path: Path) -> None:
    code, output = front(tmp_path, "--out", "k", "-k", "startup and not native")
    assert code == 0, output
    run = Run.load(tmp_path / "k")
    assert {str(cell) for cell in run.header.cells} == {"startup[container]"}
    assert {str(record.cell) for record in run.records} == {"startup[container]"}
    code, output = front(tmp_path, "--out", "m", "-m", "native and overhead_cpu")
    assert {str(cell) for cell in Run.load(tmp_path / "m").header.cells} == {
        "overhead_cpu[native]",
        "overhead_cpu[native~aa]",
    }


def test_collecting_touches_nothing(tmp_path: Path) -> None:
    code, output = front(tmp_path, "--collect-only", "-q")
    assert code == 0, output
    assert "startup[container]" in output
    assert touched(tmp_path) == []


def test_a_failed_cell_fails_its_test_with_the_reason_and_the_rest_passes(tmp_path: Path) -> None:
    code, output = front(tmp_path, "--out", "out", container={"fail_exec": "sysbench cpu"})
    assert code == 1
    assert "1 failed" in output
    assert "FAILED" in output
    assert "overhead_cpu[container]" in output
    assert "2 of 2 blocks failed" in output
    assert "told to fail" in output
    assert "REPORT OF out" in output


def test_an_unusable_driver_is_skipped_with_its_reason_and_the_exit_is_zero(tmp_path: Path) -> None:
    code, output = front(tmp_path, "--out", "out", container={"usable": False, "reason": "no such kernel feature"})
    assert code == 0, output
    assert "no such kernel feature" in output
    assert "skipped" in output


def test_compare_and_compare_fail_work_on_the_replayed_samples(tmp_path: Path) -> None:
    save = ("--benchmark-storage", "file://saved", "--benchmark-save")
    compare = ("--benchmark-storage", "file://saved", "--benchmark-compare", "--benchmark-compare-fail", "median:50%")
    code, output = front(tmp_path, "--out", "a", "-k", "startup", *save, "a")
    assert code == 0, output
    code, output = front(tmp_path, "--out", "b", "-k", "startup", *compare)
    assert code == 0, output
    code, output = front(tmp_path, "--out", "c", "-k", "startup", *compare, container={"slowness": 10.0})
    assert code != 0
    assert "Performance has regressed" in output
    assert "startup[container]" in output


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--profile", "fast"), "profile 'fast': no such profile"),
        (("--drivers", "native,odd"), "driver 'odd': no such driver"),
        (("--resume", "nowhere"), "run nowhere: No such file or directory"),
        (("--out", "taken"), "is not empty"),
    ],
)
def test_a_mistake_is_one_line_and_nothing_is_touched(tmp_path: Path, arguments: tuple[str, ...], why: str) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").write_text("mine")
    code, output = front(tmp_path, *arguments)
    assert code != 0
    assert "passed" not in output
    assert why in output
    assert "Traceback" not in output
    assert touched(tmp_path) == ["taken"]


def test_ctrl_c_exits_130_with_the_command_that_goes_on_and_resume_completes_the_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(tmp_path, "--out", "out", container={"exec_s": 0.1}) as process:
        until_s = time.monotonic() + 30
        while recorded(out) < 3:
            assert process.poll() is None
            assert time.monotonic() < until_s
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "tare bench --resume out" in output
    assert "REPORT" not in output
    before = Run.load(out)
    assert before.events[-1].event == "interrupted"
    code, output = front(tmp_path, "--resume", "out")
    assert code == 0, output
    run = Run.load(out)
    assert run.records[: len(before.records)] == before.records
    assert {record.cell for record in run.records} == set(run.header.cells)
    assert f"{len(run.header.cells)} passed" in output
    assert "REPORT OF out" in output
