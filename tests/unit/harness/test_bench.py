"""Opening a run: what is asked for is decided or refused before anything is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from harness import bench, cli, doctor, environment, profiles, tune
from harness.assignment import Observer
from harness.bench import Options
from harness.hostchecks import Check, Status
from harness.results import Run
from harness.runner import Interrupted
from runtime import tuning
from runtime.driver import Prepared
from runtime.errors import TareError, UsageError
from runtime.ledger import boot_id
from runtime.spec import InstanceSpec
from tests.fakes import FakeDriver, fake_host
from tests.unit.harness import fakebench, trees
from tests.unit.harness.engine import Stopping, demand_schema


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fakebench.install(monkeypatch)
    monkeypatch.setenv("TARE_ROOT", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def run(tmp_path: Path, options: Options, observer: Observer | None = None) -> Run:
    with bench.opened(bench.draft(options), fake_host(tmp_path / "state"), observer or Observer()) as opened:
        opened.engine.run()
    return Run.load(opened.directory)


def test_a_draft_takes_what_the_profile_says_and_what_the_user_says_instead() -> None:
    plan = bench.draft(Options(drivers=("container",), select="startup", seed=5))
    assert (plan.profile.name, plan.seed, list(plan.drivers)) == ("quick", 5, ["container"])
    assert [str(one.cell) for one in plan.planned] == ["startup[container]"]
    assert set(bench.draft(Options()).drivers) == {"native", "container"}


def test_without_a_seed_one_is_drawn() -> None:
    assert len({bench.draft(Options()).seed for _ in range(3)}) > 1


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options(profile="fast"), "no such profile"),
        (Options(drivers=("odd",)), "no such driver"),
        (Options(select="nothing"), "no cell matches"),
        (Options(select="a and"), "a word is missing"),
        (Options(seed=-1), "not a whole number from 0"),
        (Options(seed=1 << 64), "not a whole number from 0"),
    ],
)
def test_a_wrong_name_is_a_usage_error(options: Options, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        bench.draft(options)


def test_results_go_under_the_time_and_the_fingerprint(tmp_path: Path) -> None:
    done = run(tmp_path, Options())
    assert done.directory.parent == Path("results")
    assert done.directory.name.endswith("z-" + environment.fingerprint({"cpu": {"model": "fake"}})[:8])
    demand_schema(done.directory)


def test_the_header_repeats_the_run(tmp_path: Path) -> None:
    header = run(tmp_path, Options(drivers=("native",), seed=9, out=tmp_path / "out")).header
    assert header.command == "tare bench --profile quick --drivers native --seed 9"
    assert {metric.name.split(".")[0] for metric in header.metrics} >= {"startup", "footprint"}
    narrow = bench.draft(Options(drivers=("native",), seed=9, select="startup or idle"))
    assert bench.command(narrow) == "tare bench --profile quick --drivers native -k 'startup or idle' --seed 9"
    assert {cell.label for cell in header.cells} == {"native", "native~aa"}


def test_an_interrupted_run_is_resumed_with_its_own_profile_drivers_and_seed(tmp_path: Path) -> None:
    out = tmp_path / "out"
    whole = run(tmp_path, Options(seed=4, out=tmp_path / "whole"))
    with pytest.raises(Interrupted):
        run(tmp_path, Options(seed=4, out=out), Stopping(8))
    resumed = run(tmp_path, Options(resume=out))
    assert resumed.header.seed == 4
    assert {(r.cell, r.block) for r in resumed.records} == {(r.cell, r.block) for r in whole.records}
    assert len(resumed.records) == len(whole.records)


def test_a_tuned_run_says_so_and_is_resumed_as_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proc, sys = trees.bare_metal(tmp_path / "host")
    trees.grow(proc, {"sys/kernel/random/boot_id": "one\n"})
    huge_pages, out = sys / "kernel/mm/transparent_hugepage/enabled", tmp_path / "out"
    monkeypatch.setattr(tune, "tuned", partial(tune.tuned, proc=proc, sys=sys))
    seen: list[str] = []

    def capture() -> dict[str, dict[str, str]]:
        seen.append(tuning.reading(huge_pages))
        return {}

    monkeypatch.setattr(environment, "capture", capture)
    with pytest.raises(Interrupted):
        run(tmp_path, Options(seed=4, out=out, tune=True), Stopping(8))
    header = run(tmp_path, Options(resume=out)).header
    assert " --tune --seed 4" in header.command
    assert header.host["tuned"]["huge pages"] == "always → madvise"
    assert seen == ["madvise", "madvise"]
    assert tuning.reading(huge_pages) == "always"
    run(tmp_path, Options(seed=4, out=tmp_path / "plain"))
    assert seen[2:] == ["always"]


def test_the_machine_is_named_only_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "identity", lambda: {"host_name": "web01"})
    assert "identity" not in run(tmp_path, Options(out=tmp_path / "plain")).header.host
    named = run(tmp_path, Options(out=tmp_path / "named", identify=True)).header
    assert named.host["identity"] == {"host_name": "web01"}
    assert named.fingerprint == environment.fingerprint({"cpu": {"model": "fake"}})


def test_a_new_run_puts_back_what_a_killed_one_changed(tmp_path: Path) -> None:
    setting, host = tmp_path / "setting", fake_host(tmp_path / "state")
    setting.write_text("during")
    change = {"name": "x", "path": str(setting), "before": "before", "during": "during"}
    trees.grow(host.run, {tuning.NOTE: json.dumps({"boot": boot_id(), "changes": [change]})})
    noted: list[str] = []

    class Listening(Observer):
        def noted(self, text: str) -> None:
            noted.append(text)

    run(tmp_path, Options(out=tmp_path / "out"), Listening())
    assert "put back after a killed run: x: before" in noted
    assert setting.read_text() == "before"


def test_times_stretch_by_the_factor_and_windows_do_not(tmp_path: Path) -> None:
    plain, slow = bench.draft(Options(seed=4)), bench.draft(Options(seed=4, time_factor=20.0))
    assert slow.profile.budget_s == 20 * plain.profile.budget_s
    assert slow.profile.boot_s("vm") == 20 * plain.profile.boot_s("vm")
    assert slow.profile.ready_s == {kind: 20 * ready_s for kind, ready_s in plain.profile.ready_s.items()}
    assert [one.limit_s for one in slow.planned] == [20 * one.limit_s for one in plain.planned]
    assert [one.params for one in slow.planned] == [one.params for one in plain.planned]
    assert "time_factor" not in plain.profile.settings()
    assert " --time-factor 20 --seed 4" in bench.command(slow)
    for factor in (0.5, 0.0, float("nan"), 1e308, float("inf")):
        with pytest.raises(UsageError, match="from 1 to 1000"):
            bench.draft(Options(time_factor=factor))


def test_a_stretched_run_says_so_and_is_resumed_as_stretched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(Interrupted):
        run(tmp_path, Options(seed=4, out=out, time_factor=3.0), Stopping(8))
    demand_schema(out)
    resumed = run(tmp_path, Options(resume=out))
    assert resumed.header.settings["time_factor"] == 3.0
    assert bench.draft(Options(resume=out)).profile.time_factor == 3.0


@pytest.mark.parametrize(
    "said", [{"seed": 1}, {"profile": "quick"}, {"drivers": ("native",)}, {"select": "x"}, {"time_factor": 2.0}]
)
def test_what_a_resumed_run_began_with_cannot_be_said_again(tmp_path: Path, said: dict[str, object]) -> None:
    out = run(tmp_path, Options(out=tmp_path / "out")).directory
    with pytest.raises(UsageError, match="leave it out beside --resume"):
        bench.draft(Options(resume=out, **said))  # type: ignore[arg-type]


def test_a_run_of_another_host_is_not_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = run(tmp_path, Options(out=tmp_path / "out")).directory
    before = (out / "journal.jsonl").read_bytes()
    monkeypatch.setattr(environment, "capture", lambda: {"cpu": {"model": "another"}})
    with pytest.raises(TareError, match="another host"):
        run(tmp_path, Options(resume=out))
    assert (out / "journal.jsonl").read_bytes() == before


def test_a_user_who_is_not_root_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(TareError, match=r"not root.*root shell"):
        run(tmp_path, Options())
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_seen_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=5 << 20))
    with pytest.raises(TareError, match="only 5 MiB free"):
        run(tmp_path, Options())
    assert list(tmp_path.iterdir()) == []


def test_a_directory_in_use_or_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(TareError, match="is not empty"):
        run(tmp_path, Options(out=tmp_path / "out"))
    with pytest.raises(TareError, match="not a writable directory"):
        run(tmp_path, Options(out=tmp_path / "out" / "mine" / "deeper"))


def test_no_usable_driver_is_one_line_with_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "FAKE_BENCH", '{"native": {"usable": false}, "container": {"usable": false, "reason": "no cgroup"}}'
    )
    fakebench.install(monkeypatch)
    with pytest.raises(TareError, match="container: no cgroup"):
        run(tmp_path, Options())
    assert list(tmp_path.glob("results*")) == []


def test_under_software_emulation_rare_cells_run_in_the_first_block_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for accelerator, expected in (("tcg", [0]), ("kvm", [0, 1])):
        monkeypatch.setenv("FAKE_BENCH", f'{{"container": {{"facts": {{"accelerator": "{accelerator}"}}}}}}')
        fakebench.install(monkeypatch)
        monkeypatch.setattr(profiles, "PROFILES", {"quick": fakebench.quick(rare=("container",))})
        records = run(tmp_path, Options(out=tmp_path / accelerator)).records
        assert [r.block for r in records if str(r.cell) == "overhead_cpu[container]"] == expected
        assert [r.block for r in records if str(r.cell) == "startup[container]"] == [0, 1]


def test_a_drivers_facts_are_those_after_it_was_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = FakeDriver.prepare

    def prepare(self: FakeDriver, spec: InstanceSpec) -> Prepared:
        self.behaviour.facts["accelerator"] = "tcg"
        return real(self, spec)

    monkeypatch.setattr(FakeDriver, "prepare", prepare)
    entry = run(tmp_path, Options(drivers=("container",), select="startup")).header.driver("container")
    assert entry is not None
    assert entry.facts == {"accelerator": "tcg"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_run_ended_while_a_driver_prepares_gives_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    closed = list[str]()
    monkeypatch.setattr(FakeDriver, "prepare", lambda driver, spec: os.kill(os.getpid(), number))
    monkeypatch.setattr(FakeDriver, "close", lambda driver: closed.append(driver.name))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Options(out=tmp_path / "out"))
    assert set(closed) == {"native", "container"}


def test_a_driver_that_cannot_be_prepared_is_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeDriver.prepare

    def prepare(self: FakeDriver, spec: InstanceSpec) -> Prepared:
        if self.name == "container":
            raise TareError("firmware", "there is none", "install ovmf")
        return real(self, spec)

    monkeypatch.setattr(FakeDriver, "prepare", prepare)
    done = run(tmp_path, Options(select="startup"))
    skipped = [record for record in done.records if record.cell.driver == "container"]
    assert [(str(r.outcome), "firmware: there is none (install ovmf)" in r.reason) for r in skipped] == [
        ("skipped", True)
    ]


def test_the_command_measures_reports_and_says_where(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.bench, ["--out", "out", "-k", "startup", "--seed", "1"], standalone_mode=False)
    assert done.return_value == 0, done.output
    assert "results in out" in done.output
    assert done.output.splitlines()[-2] == "REPORT OF out"
    assert done.output.splitlines()[-1].startswith("the harness itself used ")
    assert done.output.count("startup[native~aa]") == 2


def test_the_command_lists_cells_and_touches_nothing(tmp_path: Path) -> None:
    done = CliRunner().invoke(cli.bench, ["--list"], standalone_mode=False)
    assert "startup[container]" in done.output.splitlines()
    assert list(tmp_path.iterdir()) == []


def test_failed_cells_make_the_command_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_BENCH", '{"container": {"fail_exec": "sysbench cpu"}}')
    fakebench.install(monkeypatch)
    done = CliRunner().invoke(cli.bench, ["--out", "out", "--no-report"], standalone_mode=False)
    assert done.return_value == 1
    assert "2 cells failed" in done.output
    assert "told to fail" in done.output


@pytest.mark.parametrize(("status", "code"), [(Status.OK, 0), (Status.BLOCK, 1)])
def test_the_doctor_says_what_it_found_in_words_and_in_json(
    monkeypatch: pytest.MonkeyPatch, status: Status, code: int
) -> None:
    monkeypatch.setattr(doctor, "checks", lambda host: [Check("kvm", status, "it is there", "modprobe kvm")])
    done = CliRunner().invoke(cli.doctor, [], standalone_mode=False)
    assert (done.return_value, "it is there" in done.output, "modprobe kvm" in done.output) == (code, True, True)
    done = CliRunner().invoke(cli.doctor, ["--json"], standalone_mode=False)
    assert done.return_value == code
    assert json.loads(done.output)[0]["name"] == "kvm"
