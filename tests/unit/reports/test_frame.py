"""Runs as tables: medians per block, and a reason for every gap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.results import Run
from reports.frame import COLUMNS, Frame
from reports.sections.base import View
from tests.journals import Synthetic


@pytest.fixture
def frame(tmp_path: Path) -> Callable[..., Frame]:
    return lambda **shape: Frame(Run.load(Synthetic(**shape).write(tmp_path)))


def test_samples_hold_every_sample_in_order_warm_ups_included(frame: Callable[..., Frame]) -> None:
    made = frame(blocks=2)
    assert tuple(made.samples.columns) == COLUMNS
    assert len(made.samples) == sum(len(record.samples) for record in made.run.records)
    assert set(made.samples["phase"]) == {"measure", "warmup"}
    assert made.samples["labels"].str.contains("antagonist=fsync").any()


def test_warm_ups_never_enter_a_figure(frame: Callable[..., Frame]) -> None:
    assert max(frame(blocks=3).blocks("startup.ready", "container").values()) < 1.0


def test_a_block_counts_once_however_many_samples_it_has(frame: Callable[..., Frame]) -> None:
    made = frame(blocks=3)
    assert len(made.values("density.launch", "container")) > 3
    assert list(made.blocks("density.launch", "container")) == [0, 1, 2]


def test_labels_select_samples(frame: Callable[..., Frame]) -> None:
    made = frame(blocks=2)
    assert made.conditions("leakage.leak", "antagonist") == ("placebo", "cpu", "fsync")
    assert made.blocks("leakage.leak", "container", antagonist="fsync")[0] > 0.05


def test_metric_finds_its_workload_by_the_longest_name(frame: Callable[..., Frame]) -> None:
    made = frame(blocks=1)
    assert made.workload("overhead.disk_randwrite_iops") == "overhead_disk"
    assert made.workload("startup.ready") == "startup"
    assert made.workload("idler.cpu") == "idler"


@pytest.mark.parametrize(
    ("shape", "metric", "label", "key"),
    [
        ({"drivers": ("native",)}, "startup.ready", "vm", "absent.no_driver"),
        ({"unusable": {"vm": "no QEMU"}}, "startup.ready", "vm", "absent.unusable"),
        ({"workloads": ("startup",)}, "idle.cpu", "container", "absent.no_workload"),
        ({}, "density.instances", "native", "absent.not_planned"),
        ({"failing": {("startup", "vm"): "timed out"}}, "startup.ready", "vm", "absent.failed"),
        ({"blocks": 0}, "startup.ready", "container", "absent.not_reached"),
        ({}, "idle.memory_cgroup", "native", "absent.no_sample"),
    ],
)
def test_every_gap_has_its_own_reason(
    frame: Callable[..., Frame], shape: dict[str, object], metric: str, label: str, key: str
) -> None:
    made = frame(**{"blocks": 2, **shape})
    assert made.blocks(metric, label) == {}
    assert made.why_absent(metric, label).key == key


def test_what_an_instance_told_of_its_accelerator_stands_above_the_header(frame: Callable[..., Frame]) -> None:
    made = frame(blocks=1, accelerator="unknown")
    assert (made.accelerator("vm"), made.mark("vm"), made.accelerator("container")) == ("unknown", "TCG?", "")
    told = replace(made.run.facts[-1], driver="vm", facts={"accelerator": "KVM"})
    again = Frame(replace(made.run, facts=(*made.run.facts, told)))
    assert (again.accelerator("vm"), again.emulated("vm"), again.mark("vm")) == ("kvm", False, "")
    forced = replace(told, facts=told.facts | {"accelerator forced": "yes"})
    demanded = Frame(replace(made.run, facts=(*made.run.facts, forced)))
    assert (demanded.accelerator("vm"), demanded.emulated("vm"), demanded.mark("vm")) == ("unknown", True, "TCG?")


def test_a_long_reason_is_cut_inside_a_cell(frame: Callable[..., Frame]) -> None:
    why = frame(blocks=1, failing={("idle", "vm"): "x" * 500}).why_absent("idle.cpu", "vm")
    assert why.values["reason"] == "x" * 90 + "…"


def test_failures_are_tallied_and_not_measured(view_of: Callable[..., View]) -> None:
    made = view_of(blocks=4, failing={("idle", "vm"): "died"}).frame
    tally = made.tally("idle", "vm")
    assert tally is not None
    assert (tally.attempted, tally.ok, tally.failed, tally.reasons) == (4, 0, 4, (("died", 4),))
