"""Parity: a ratio of speeds is refused where the sides were not given the same, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from harness.stats import Refusal
from reports import render
from reports.sections.base import View

KVM = {"accelerator": "kvm", "workloads": ("startup", "growth")}


def told(**vm: str) -> dict[str, dict[str, str]]:
    return {"vm": vm}


@pytest.mark.parametrize(
    ("shape", "what"),
    [
        ({"told": told(cpus="2")}, "CPUs: 1 on container, 2 on vm"),
        ({"told": {"container": {"cpu_model": "EPYC"}, "vm": {"cpu_model": "qemu64"}}}, "CPU model: EPYC on container"),
        ({"memory": {"vm": 1 << 29}}, "memory (memory.max): 268435456 on container, 536870912 on vm"),
    ],
)
def test_sides_that_were_not_given_the_same_are_refused(
    view_of: Callable[..., View], shape: dict[str, object], what: str
) -> None:
    view = view_of(**KVM, **shape)
    speed, disk = (view.evidence.comparisons[name] for name in ("startup.ready", "growth.marginal_allocated"))
    assert speed.refusal is Refusal.PARITY
    assert what in speed.reason
    assert disk.refusal is not Refusal.PARITY
    assert any(what in line for line in render.banner(view))


def test_equal_sides_pass_and_native_needs_no_limits(view_of: Callable[..., View]) -> None:
    view = view_of(**KVM, told={"native": {"cpus": "2"}}, memory={"native": 1})
    assert view.evidence.comparisons["startup.ready"].refusal is None
    assert view.evidence.broken_parity("native", "container") == ""


def test_cpus_beyond_the_quota_do_not_count(view_of: Callable[..., View]) -> None:
    view = view_of(**KVM, told={"container": {"cpus": "8"}}, settings={"limits": {"cpus": 1.0}})
    assert view.evidence.broken_parity("container", "vm") == ""


def test_the_model_that_an_emulator_makes_up_is_not_held_against_it(view_of: Callable[..., View]) -> None:
    models = {"container": {"cpu_model": "EPYC"}, "vm": {"cpu_model": "QEMU TCG"}}
    assert view_of(told=models).evidence.broken_parity("container", "vm") == ""
