"""Rulings on the claims about what containers are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from reports.claims import Row, Ruling
from reports.mechanisms import NAMESPACES
from reports.sections.base import View
from workloads.metric import Sample

Judge = Callable[..., Row]


@pytest.fixture
def ruled(view_of: Callable[..., View]) -> Judge:
    """The row of a claim, on a run that measured `given` besides the usual."""

    def rule(claim: str, given: Mapping[tuple[str, str], Sequence[Sample]], **shape: object) -> Row:
        (row,) = [row for row in view_of(given=given, **shape).rows if row.claim.id == claim]
        return row

    return rule


def looks(*shared: str) -> list[Sample]:
    """One visit of the namespaces, of which these kinds are shared with the host."""
    return [
        Sample(
            "namespaces.separated", float(kind not in shared), labels={"namespace": kind, "direction": direction}
        )
        for kind in (*NAMESPACES, "time")
        for direction in ("inward", "outward")
    ]  # fmt: skip


def test_seven_kinds_apart_confirm_and_need_no_machine(ruled: Judge) -> None:
    row = ruled("namespaces", {("namespaces", "container"): looks("time")})
    assert (row.ruling, row.container[0].value) == (Ruling.CONFIRMED, 7)
    assert row.vm[0].value is None


def test_a_shared_kind_qualifies_and_is_named(ruled: Judge) -> None:
    row = ruled("namespaces", {("namespaces", "container"): looks("user", "time"), ("namespaces", "vm"): looks()})
    assert row.ruling is Ruling.QUALIFIED
    assert (row.reason.values["rest"], row.container[0].value, row.vm[0].value) == ("user", 6, 7)


def test_nothing_apart_refutes(ruled: Judge) -> None:
    assert ruled("namespaces", {("namespaces", "container"): looks(*NAMESPACES)}).ruling is Ruling.REFUTED


def test_what_is_seen_outside_alone_does_not_count_against_the_view_inside(ruled: Judge) -> None:
    samples = looks()
    samples += [Sample("namespaces.separated", 0.0, labels={"namespace": "pid", "direction": "outward"})]
    assert ruled("namespaces", {("namespaces", "container"): samples}).ruling is Ruling.CONFIRMED


def test_machine_alone_rules_nothing(ruled: Judge) -> None:
    assert ruled("namespaces", {("namespaces", "vm"): looks()}).ruling is Ruling.UNMEASURABLE
