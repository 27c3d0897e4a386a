"""The smallest whole measurement on a host with KVM and cgroup v2: `tare bench` inside the stand-in, its report here.

The report is made where the libraries for it are; its journal says on which host it was measured. A run of its own
(`tox -e standin`), as every figure costs there many times what it does outside, and none means anything.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from harness.results import Outcome, Run
from tests.guest.standin import PLACE, StandIn

BENCH_S = 1500.0
TIME_FACTOR = 20
DRIVERS = ("native", "container", "microvm", "vm")


def test_smoke_runs_whole_and_its_report_says_kvm_and_cgroup_v2(standin: StandIn, tmp_path: Path) -> None:
    options = ("--profile", "smoke", "--time-factor", str(TIME_FACTOR), "--drivers", ",".join(DRIVERS), "--no-report")
    done = standin.tare("bench", *options, "--out", f"{PLACE}/results", timeout_s=BENCH_S)
    said = (done.stdout + done.stderr).decode(errors="replace")
    (tmp_path / "journal.jsonl").write_bytes(standin.run("cat", f"{PLACE}/results/journal.jsonl").check().stdout)
    run = Run.load(tmp_path)
    assert [(str(record.cell), record.reason) for record in run.records if record.outcome is not Outcome.OK] == [], said
    assert {record.cell for record in run.records} == set(run.header.cells)
    assert done.exit_code == 0, said
    assert run.header.host["cgroup"]["mode"] == "v2"
    accelerators = {entry.name: entry.facts["accelerator"] for entry in run.header.drivers if entry.kind == "vm"}
    assert accelerators == {"microvm": "kvm", "vm": "kvm"}
    report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "cgroup v2" in page
    assert "VMs by KVM" in page
    assert f"budget and time-outs × {TIME_FACTOR}" in page


def report(directory: Path) -> None:
    made = subprocess.run([sys.executable, "-m", "tare", "report", str(directory)], capture_output=True, check=False)
    assert made.returncode == 0, made.stderr.decode()
