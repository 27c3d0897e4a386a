"""Rulings: what may be concluded from which evidence, and above all what may not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.results import ResultsError
from harness.stats import Comparison, Interval, Refusal
from reports import rules
from reports.claims import ClaimSet, Estimate, Evidence, Row, Ruling, judge
from reports.frame import Message
from reports.rules import Half, against, combine
from reports.sections.base import View

Judge = Callable[..., dict[str, Row]]
SLOW = {("startup.ready", "vm"): 10.0}
LARGE = {("footprint.image_allocated", "vm"): 4.0}
LEAKY = {("leakage.leak", "container"): 3.0, ("leakage.leak", "vm"): 0.1}


@pytest.fixture
def rows(view_of: Callable[..., View]) -> Judge:
    return lambda **shape: {row.claim.id: row for row in view_of(**shape).rows}


def ruled(row: Row) -> tuple[Ruling, str]:
    return row.ruling, row.reason.key


def test_emulation_forbids_what_is_about_hardware_and_nothing_else(rows: Judge) -> None:
    found = rows(scale=LARGE)
    for claim in ("startup", "performance", "isolation"):
        assert ruled(found[claim]) == (Ruling.UNMEASURABLE, "reason.emulation")
        assert found[claim].vm[0].emulated
    assert found["disk"].ruling is Ruling.CONFIRMED
    assert found["overhead-free"].ruling is Ruling.QUALIFIED


def test_an_accelerator_that_is_not_known_is_no_hardware(rows: Judge) -> None:
    found = rows(accelerator="unknown")
    for claim in ("startup", "performance", "isolation"):
        assert ruled(found[claim]) == (Ruling.UNMEASURABLE, "reason.unknown_accelerator")
        assert found[claim].vm[0].mark == "TCG?"


def test_hardware_machines_are_judged(rows: Judge) -> None:
    found = rows(accelerator="kvm", scale=SLOW | LARGE | LEAKY)
    assert ruled(found["startup"]) == (Ruling.CONFIRMED, "reason.both")
    assert found["disk"].ruling is Ruling.CONFIRMED
    assert ruled(found["isolation"]) == (Ruling.CONFIRMED, "half.isolation.all")


def test_leak_beside_one_antagonist_alone_is_named(rows: Judge) -> None:
    row = rows(accelerator="kvm")["isolation"]
    assert ruled(row) == (Ruling.QUALIFIED, "half.isolation.some")
    assert row.reason.values["names"] == "fsync"


def test_a_vm_that_starts_in_seconds_qualifies_the_claim(rows: Judge) -> None:
    row = rows(accelerator="kvm")["startup"]
    assert ruled(row) == (Ruling.QUALIFIED, "reason.container_only")


def test_a_container_that_takes_minutes_beside_a_fast_vm_refutes_it(rows: Judge) -> None:
    row = rows(accelerator="kvm", scale={("startup.ready", "container"): 1e5})["startup"]
    assert ruled(row) == (Ruling.REFUTED, "reason.neither")


@pytest.mark.parametrize(
    ("low", "estimate", "high", "holds"),
    [(50, 55, 59, True), (50, 55, 61, None), (59, 65, 70, None), (60, 65, 70, False)],
)
def test_rulings_rest_on_the_ends_of_intervals(low: float, estimate: float, high: float, holds: bool | None) -> None:
    interval = Interval(estimate, low, high, 0.97, 10)
    seen = Estimate(label="vm", metric="startup.ready", unit="s", value=estimate, interval=interval, n=10)
    assert against(seen, 60.0, below=True, key="half.startup").holds is holds
    opposite = against(seen, 60.0, below=False, key="half.startup").holds
    assert opposite is (None if holds is None else not holds)


def test_estimate_without_an_interval_decides_nothing() -> None:
    seen = Estimate(label="vm", metric="startup.ready", unit="s", value=1.0, n=3)
    assert against(seen, 60.0, below=True, key="half.startup").holds is None


@pytest.mark.parametrize("claim", ["startup", "disk", "performance", "isolation", "overhead-free"])
def test_fewer_than_six_blocks_conclude_nothing(rows: Judge, claim: str) -> None:
    assert ruled(rows(accelerator="kvm", blocks=5)[claim]) == (Ruling.UNMEASURABLE, "reason.few_blocks")


def test_smoke_profile_claims_nothing(rows: Judge) -> None:
    found = rows(accelerator="kvm", profile="smoke", cap=1000)
    assert {row.ruling for row in found.values()} == {Ruling.UNMEASURABLE, Ruling.UNMEASURED}


@pytest.mark.parametrize(
    ("shape", "key"),
    [
        ({"drivers": ("native",)}, "absent.no_driver"),
        ({"unusable": {"container": "no overlayfs"}}, "absent.unusable"),
        ({"failing": {("startup", "container"): "timed out"}}, "absent.failed"),
    ],
)
def test_a_missing_side_is_named_and_nothing_is_concluded(rows: Judge, shape: dict[str, object], key: str) -> None:
    row = rows(accelerator="kvm", **shape)["startup"]
    assert ruled(row) == (Ruling.UNMEASURABLE, "reason.missing")
    why = row.reason.values["why"]
    assert isinstance(why, Message)
    assert why.key == key
    assert row.container[0].value is None


def test_ramp_ended_by_its_cap_proves_no_bound(rows: Judge) -> None:
    row = rows(cap=40, limiter="cap")["density"]
    assert row.ruling is Ruling.UNMEASURABLE
    assert row.container[0].at_least
    assert row.contrast is not None
    assert row.contrast.value is None


def test_a_thousand_containers_are_a_thousand_whatever_ended_the_ramp(rows: Judge) -> None:
    row = rows(cap=1000, limiter="cap", blocks=1, drivers=("container", "microvm"), twin=False)["density"]
    # The made-up microVM reached as many: more than a few dozen.
    assert ruled(row) == (Ruling.QUALIFIED, "reason.container_only")
    assert row.vm[0].label == "microvm"


def test_ramp_ended_by_memory_is_a_measured_number(rows: Judge) -> None:
    row = rows(cap=40, limiter="memory")["density"]
    assert ruled(row) == (Ruling.QUALIFIED, "reason.vm_only")


def test_microvm_stands_in_only_where_the_claim_allows_it(rows: Judge) -> None:
    found = rows(accelerator="kvm", drivers=("native", "container", "microvm"), scale=LEAKY)
    assert found["isolation"].vm[0].label == "microvm"
    assert found["startup"].vm[0].label == "vm"
    assert found["startup"].ruling is Ruling.UNMEASURABLE


def test_leak_inside_the_placebo_is_no_leak(rows: Judge) -> None:
    row = rows(accelerator="kvm", scale={("leakage.leak", "container"): 0.25, ("leakage.leak", "vm"): 0.1})["isolation"]
    assert ruled(row) == (Ruling.REFUTED, "half.isolation.none")


def test_a_weak_part_is_named_though_the_mean_is_near(rows: Judge) -> None:
    scale = {
        ("overhead.disk_randwrite_iops", "container"): 0.98,
        ("overhead.disk_seqwrite_bandwidth", "container"): 1.1,
        ("overhead.memory_bandwidth", "container"): 1.1,
    }
    row = rows(accelerator="kvm", scale=scale)["performance"]
    assert ruled(row) == (Ruling.QUALIFIED, "reason.except_parts")
    assert row.reason.values["parts"] == "disk randwrite iops"


def test_a_part_with_a_refused_comparison_is_in_no_mean_and_too_many_of_them_are_a_refusal(
    view_of: Callable[..., View], monkeypatch: pytest.MonkeyPatch
) -> None:
    void: set[str] = set()
    compare = Evidence.compare

    def refuse(evidence: Evidence, metric: str, *labels: str, **where: str) -> Comparison | None:
        found = compare(evidence, metric, *labels, **where)
        return replace(found, refusal=Refusal.DRIFT, reason="told so") if found and metric in void else found

    monkeypatch.setattr(Evidence, "compare", refuse)
    scale = {("overhead.disk_randwrite_iops", "container"): 0.5}
    view = view_of(accelerator="kvm", scale=scale)

    def row() -> Row:
        return next(row for row in judge(view.evidence) if row.claim.id == "performance")

    dragged = row()
    void.add("overhead.disk_randwrite_iops")
    spared = row()
    assert (dragged.container[0].value or 0) < 0.95 < (spared.container[0].value or 0)
    assert (spared.container[0].note or Message("")).values == {"count": 3, "of": 16}
    void.add("overhead.cpu_events")
    assert ruled(row()) == (Ruling.UNMEASURABLE, "reason.gate")


def test_a_part_that_was_looked_at_once_is_in_no_mean_beside_parts_of_many_blocks() -> None:
    often = dict.fromkeys(range(8), 0.9)
    assert rules.geometric_mean([often, {0: 0.1}, {}]) == pytest.approx(often)
    assert rules.geometric_mean([{0: 0.4}, {0: 0.9}]) == pytest.approx({0: 0.6})


def test_nothing_used_is_less_than_something_used(rows: Judge) -> None:
    idle = {("idle.cpu", "container"): 0.0}
    assert ruled(rows(accelerator="kvm", scale=idle)["overhead-free"]) == (Ruling.CONFIRMED, "half.idle.all")


def test_an_emulated_vm_cannot_show_that_a_container_uses_less_cpu(rows: Judge) -> None:
    row = rows(scale={("idle.cpu", "container"): 0.0})["overhead-free"]
    assert ruled(row) == (Ruling.QUALIFIED, "half.idle.some")
    assert row.reason.values["rest"] == "cpu"


def test_claims_without_a_rule_say_so(view_of: Callable[..., View], tmp_path: Path) -> None:
    text = (Path(rules.__file__).parent / "claims" / "seed.toml").read_text()
    (tmp_path / "bare.toml").write_text(text.replace('rule = "disk"', ""))
    (row,) = [
        row
        for row in judge(Evidence(view_of(blocks=1).frame, ClaimSet.load(tmp_path / "bare.toml")))
        if row.claim.id == "disk"
    ]
    assert ruled(row) == (Ruling.UNMEASURED, "reason.no_workload")


def test_run_without_a_workload_says_so(rows: Judge) -> None:
    row = rows(workloads=("startup",), accelerator="kvm")["disk"]
    assert ruled(row) == (Ruling.UNMEASURED, "reason.not_in_run")


@pytest.mark.parametrize(
    ("container", "vm", "ruling"),
    [
        (True, True, Ruling.CONFIRMED),
        (False, False, Ruling.REFUTED),
        (True, False, Ruling.QUALIFIED),
        (False, True, Ruling.QUALIFIED),
        (True, None, Ruling.QUALIFIED),
        (None, True, Ruling.QUALIFIED),
        (None, None, Ruling.UNMEASURABLE),
        (False, None, Ruling.UNMEASURABLE),
        (None, False, Ruling.UNMEASURABLE),
    ],
)
def test_halves_combine(container: bool | None, vm: bool | None, ruling: Ruling) -> None:
    why = Message("plain", {"text": "why"})
    assert combine(Half(container, why), Half(vm, why))[0] is ruling


def test_limit_that_does_not_hold_refuses(view_of: Callable[..., View]) -> None:
    view = view_of(accelerator="kvm", unheld=("container",))
    found = {row.claim.id: row for row in view.rows}
    for claim in ("performance", "isolation"):
        assert ruled(found[claim]) == (Ruling.UNMEASURABLE, "reason.gate")
    contrast = found["startup"].contrast
    assert contrast is not None
    assert contrast.code == "limit-not-biting"


def test_claims_file_must_name_rules_that_exist(view_of: Callable[..., View], tmp_path: Path) -> None:
    text = (Path(rules.__file__).parent / "claims" / "seed.toml").read_text()
    (tmp_path / "odd.toml").write_text(text.replace('rule = "disk"', 'rule = "disc"'))
    evidence = Evidence(view_of(blocks=1).frame, ClaimSet.load(tmp_path / "odd.toml"))
    with pytest.raises(ResultsError, match="no rule 'disc'"):
        judge(evidence)


def test_claims_file_that_is_malformed_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("source = 1\n[[claim]]\nid = 3")
    with pytest.raises(ResultsError, match=r"claims file .*bad\.toml"):
        ClaimSet.load(tmp_path / "bad.toml")


def test_claims_file_with_a_claim_twice_is_refused(tmp_path: Path) -> None:
    claim = '[[claim]]\nid = "a"\nmetrics = []\ntested_by = ""\n'
    (tmp_path / "twice.toml").write_text(f'source = "s"\n{claim}{claim}')
    with pytest.raises(ResultsError, match="appears twice"):
        ClaimSet.load(tmp_path / "twice.toml")
