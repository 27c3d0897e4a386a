"""Runs against runs: the rank interval's coverage by simulation, verdicts, refusals by name, exit codes, history."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tare
from harness import compare, history
from harness.results import Run
from harness.shift import beyond_p, shift_interval
from harness.stats import Refusal, Verdict
from runtime.errors import TareError, UsageError
from tests.journals import Synthetic

WORKLOADS = ("startup", "overhead_cpu")


def run_at(directory: Path, **wishes: object) -> Run:
    return Run.load(Synthetic(workloads=WORKLOADS, **wishes).write(directory))  # type: ignore[arg-type]


def code(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        tare.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def draw(shape: str, rng: random.Random) -> float:
    if shape == "heavy":
        return rng.gauss(0, 1) / max(1e-3, abs(rng.gauss(0, 1)))
    if shape == "bimodal":
        return rng.choice((0.0, 4.0)) + rng.gauss(0, 0.5)
    return rng.gauss(0, 1)


@pytest.mark.parametrize("shape", ["normal", "heavy", "bimodal"])
@pytest.mark.parametrize(("early", "late"), [(6, 6), (10, 7), (40, 40)])
def test_interval_holds_the_shift_as_often_as_it_says(shape: str, early: int, late: int) -> None:
    rng, held, trials, shift = random.Random(f"{shape}{early}"), 0, 400, 0.7
    for _ in range(trials):
        interval = shift_interval(
            [draw(shape, rng) for _ in range(early)], [draw(shape, rng) + shift for _ in range(late)]
        )
        assert interval is not None
        held += interval.low <= shift <= interval.high
    assert held / trials > 0.95 - 3.5 * math.sqrt(0.95 * 0.05 / trials)


def test_too_few_values_have_no_interval() -> None:
    assert shift_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) is None
    assert shift_interval([], [1.0]) is None


def test_least_p_is_that_of_two_samples_wholly_apart() -> None:
    before, after = [float(n) for n in range(6)], [100.0 + n for n in range(6)]
    assert beyond_p(before, after, 1.0) == pytest.approx(2 / math.comb(12, 6))
    assert beyond_p(after, before, 1.0) == pytest.approx(2 / math.comb(12, 6))
    assert beyond_p(before, before, 1.0) == 1.0


def test_rank_counts_are_a_distribution() -> None:
    from harness.shift import _counts

    assert sum(_counts(7, 5)) == math.comb(12, 7)
    assert _counts(7, 5) == _counts(7, 5)[::-1]


def test_same_again_raises_no_alarm(tmp_path: Path) -> None:
    alarms = 0
    for seed in range(40):
        before = run_at(tmp_path / f"a{seed}", seed=seed)
        after = run_at(tmp_path / f"b{seed}", seed=1000 + seed)
        found = compare.changes(compare.series(before), compare.series(after))
        alarms += bool(compare.regressions(found))
    assert alarms <= 2


def test_slower_start_and_lower_rate_are_both_regressions(tmp_path: Path) -> None:
    before = run_at(tmp_path / "a")
    after = run_at(
        tmp_path / "b", seed=8, scale={("startup.ready", "container"): 1.3, ("overhead.cpu_events", "native"): 0.7}
    )
    found = {each.key: each for each in compare.changes(compare.series(before), compare.series(after))}
    slower = found["startup.ready[container]"]
    assert slower.verdict is Verdict.SLOWER
    assert slower.ci_low is not None
    assert slower.ci_high is not None
    assert slower.ci_low < 1.3 < slower.ci_high
    assert found["overhead.cpu_events[native]"].verdict is Verdict.SLOWER
    assert found["startup.ready[microvm]"].verdict is not Verdict.SLOWER


def relabelled(run: Run, **labels: str) -> Run:
    """The same run, every sample with these labels, `{block}` filled in."""
    records = tuple(
        replace(
            record,
            samples=tuple(
                replace(each, labels={name: text.format(block=record.block) for name, text in labels.items()})
                for each in record.samples
            ),
        )
        for record in run.records
    )
    return replace(run, records=records)


def test_what_came_about_meanwhile_is_no_condition(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a")
    found = compare.series(relabelled(run, settled_s="0.{block}", limiter="cap{block}", way="layer"))
    assert len(found["startup.ready[container] way=layer"].values) == 10
    assert len(found) == len(compare.series(run))


def test_a_floor_that_is_too_high_calls_nothing_equal(tmp_path: Path) -> None:
    one = compare.series(run_at(tmp_path / "a"))["startup.ready[container]"]
    assert compare.judge(one, one).verdict is Verdict.EQUIVALENT
    loud = compare.judge(one, replace(one, margin=0.3))
    assert loud.verdict is Verdict.INCONCLUSIVE
    assert "too high to call anything equal" in loud.reason


def test_improvement_is_no_regression(tmp_path: Path) -> None:
    before, after = run_at(tmp_path / "a"), run_at(tmp_path / "b", scale={("startup.ready", "container"): 0.5})
    found = compare.changes(compare.series(before), compare.series(after))
    assert [each.key for each in found if each.verdict is Verdict.FASTER] == ["startup.ready[container]"]
    assert compare.regressions(found) == []


def test_few_blocks_and_what_one_side_lacks_are_refused(tmp_path: Path) -> None:
    before, after = run_at(tmp_path / "a", blocks=3), run_at(tmp_path / "b", drivers=("native", "container"))
    found = {each.key: each for each in compare.changes(compare.series(before), compare.series(after))}
    assert found["startup.ready[container]"].refusal is Refusal.FEW_BLOCKS
    assert found["startup.ready[vm]"].refusal is Refusal.NO_DATA
    assert found["startup.ready[vm]"].ratio is None


def test_another_accelerator_is_refused(tmp_path: Path) -> None:
    before, after = run_at(tmp_path / "a", accelerator="tcg"), run_at(tmp_path / "b", accelerator="kvm")
    found = {each.key: each for each in compare.changes(compare.series(before), compare.series(after))}
    assert found["startup.ready[vm]"].refusal is Refusal.PARITY
    assert found["startup.ready[container]"].refusal is None


def test_unlike_hosts_and_profiles_are_refused_by_name(tmp_path: Path) -> None:
    header = run_at(tmp_path / "a").header
    other = replace(header, fingerprint="1" * 64, host={**header.host, "kernel": {"release": "6.9"}})
    with pytest.raises(UsageError, match=r"kernel release 6\.1\.0 and 6\.9"):
        compare.demand_alike(header, other)
    with pytest.raises(UsageError, match="profile: quick and full"):
        compare.demand_alike(header, replace(header, profile="full"))
    with pytest.raises(UsageError, match="settings of profile quick: budget_s"):
        compare.demand_alike(header, replace(header, settings={"budget_s": 1}))
    compare.demand_alike(header, header)


def test_exit_code_tells_a_regression_only_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_at(tmp_path / "a")
    run_at(tmp_path / "b", scale={("startup.ready", "container"): 1.5})
    run_at(tmp_path / "c", profile="full")
    words = ["compare", str(tmp_path / "a"), str(tmp_path / "b")]
    assert code(*words) == 0
    assert code(*words, "--fail-on", "regression") == 1
    assert "startup.ready[container]" in capsys.readouterr().err
    assert code("compare", str(tmp_path / "a"), str(tmp_path / "c")) == 2
    assert "profile: quick and full" in capsys.readouterr().err
    assert code(*words, "--json") == 0
    told = {each["key"]: each for each in json.loads(capsys.readouterr().out)}
    assert told["startup.ready[container]"]["verdict"] == "slower"


def test_journal_of_another_version_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_at(tmp_path / "a")
    journal = tmp_path / "a/journal.jsonl"
    journal.write_text(journal.read_text().replace('"schema": 1', '"schema": 99'))
    assert code("compare", str(tmp_path / "a"), str(tmp_path / "a")) == 1
    assert "schema version 99" in capsys.readouterr().err


def test_floor_says_of_every_metric_whether_its_control_lies_inside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quiet = [str(run_at(tmp_path / str(seed), seed=seed).directory) for seed in range(3)]
    assert code("floor", *quiet) == 0
    said = capsys.readouterr().out
    assert said.count("  inside") == 3 * len(compare.controls(Run.load(Path(quiet[0])))) > 6
    shifted = run_at(tmp_path / "shifted").directory
    journal = shifted / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for line in lines:
        if line["type"] == "record" and line["cell"]["label"] == "native~aa":
            line["samples"] = [{**sample, "value": sample["value"] * 1.2} for sample in line["samples"]]
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert code("floor", quiet[0], str(shifted)) == 1
    assert "outside: startup.spawned[native~aa] in" in capsys.readouterr().err
    assert code("floor", str(shifted), "--json") == 1
    told = {each["key"]: each for each in json.loads(capsys.readouterr().out)[str(shifted)]}
    assert told["startup.ready[native~aa]"]["inside"] is False


def test_floor_without_a_control_or_with_few_blocks_judges_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for shape in ({"twin": False}, {"blocks": 3}):
        directory = run_at(tmp_path / next(iter(shape)), **shape).directory
        assert code("floor", str(directory)) == 1
        assert "no control to judge" in capsys.readouterr().err


def nights(directory: Path, scales: list[float]) -> Path:
    for night, scale in enumerate(scales):
        run = run_at(directory / f"run{night}", seed=night, scale={("startup.ready", "container"): scale})
        header = replace(run.header, run_id=f"night{night}", started_utc=f"2026-01-{night + 1:02}T00:00:00Z")
        history.add(directory / "history", replace(run, header=header))
    return directory / "history"


def test_latest_night_is_held_against_those_before(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = nights(tmp_path, [1.0, 1.02, 0.98, 1.01])
    assert code("history", "check", "--dir", str(kept)) == 0
    kept = nights(tmp_path / "worse", [1.0, 1.02, 0.98, 1.4])
    capsys.readouterr()
    assert code("history", "check", "--dir", str(kept)) == 1
    assert "1 regressions: startup.ready[container]" in capsys.readouterr().err


def test_nights_that_differ_widen_the_margin(tmp_path: Path) -> None:
    earlier, latest = history.window(history.load(nights(tmp_path, [1.0, 1.3, 0.8, 1.2])), 10)
    found = {each.key: each for each in history.check(earlier, latest)}
    assert found["startup.ready[container]"].verdict is not Verdict.SLOWER
    assert found["startup.ready[container]"].margin > 0.15


def test_same_run_twice_is_one_night(tmp_path: Path) -> None:
    run = run_at(tmp_path / "a")
    assert history.add(tmp_path / "h", run) == history.add(tmp_path / "h", run)
    assert [path.suffix for path in (tmp_path / "h").iterdir()] == [".json"]


def test_few_nights_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = nights(tmp_path, [1.0, 1.0])
    assert code("history", "check", "--dir", str(kept)) == 2
    assert code("history", "check", "--dir", str(tmp_path / "absent")) == 1
    assert "tare history add" in capsys.readouterr().err


WRONG: list[Any] = [None, True, 7, float("nan"), {}, ["1"], [float("inf")], [10**400]]


@pytest.mark.parametrize("name", ["run_id", "started_utc", "profile", "fingerprint", "tare", "settings", "series"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:9])
def test_a_summary_with_a_field_of_another_type_is_refused(tmp_path: Path, name: str, wrong: object) -> None:
    kept = nights(tmp_path, [1.0])
    path = next(kept.glob("*.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), name: ["a"] if wrong == {} else wrong}))
    with pytest.raises(TareError, match="malformed"):
        history.load(kept)


@pytest.mark.parametrize("name", ["metric", "label", "condition", "unit", "setting", "better", "values", "margin"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: str(wrong)[:9])
def test_a_summary_with_a_series_of_another_type_is_refused(tmp_path: Path, name: str, wrong: object) -> None:
    kept = nights(tmp_path, [1.0])
    path = next(kept.glob("*.json"))
    whole = json.loads(path.read_text())
    whole["series"][0][name] = "x" if (name, wrong) == ("margin", 7) else wrong
    path.write_text(json.dumps(whole))
    with pytest.raises(TareError, match="malformed"):
        history.load(kept)


def test_damaged_and_foreign_summaries_are_refused_by_name(tmp_path: Path) -> None:
    kept = nights(tmp_path, [1.0])
    path = next(kept.glob("*.json"))
    path.write_text(path.read_text().replace('"schema":1', '"schema":7'))
    with pytest.raises(TareError, match="schema version 7"):
        history.load(kept)
    path.write_text("{}x")
    with pytest.raises(TareError, match="malformed"):
        history.load(kept)
    path.write_text("[]")
    with pytest.raises(TareError, match="malformed"):
        history.load(kept)


def test_smoke_run_cannot_be_kept(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="6 blocks"):
        history.add(tmp_path / "h", run_at(tmp_path / "a", blocks=1))
    assert not (tmp_path / "h").exists()


def test_shown_by_night(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = nights(tmp_path, [1.0, 1.0])
    assert code("history", "show", "-k", "startup.ready[container]", "--dir", str(kept)) == 0
    assert "startup.ready[container] (s)" in capsys.readouterr().out
    assert code("history", "show", "-k", "nothing", "--dir", str(kept)) == 2


def test_other_words_are_an_images_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TARE_ROOT", str(tmp_path))
    assert code("history", "no/image", "--no-trunc") == 1
    assert "image no/image" in capsys.readouterr().err
