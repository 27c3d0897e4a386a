"""Rulings on the claims about what containers are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest

from reports import render
from reports.claims import Row, Ruling
from reports.mechanisms import NAMESPACES
from reports.sections.base import View
from workloads.metric import Sample

Judge = Callable[..., Row]
Given = dict[tuple[str, str], list[Sample]]


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


def test_a_kind_that_any_look_found_shared_is_shared(ruled: Judge) -> None:
    row = ruled("namespaces", {("namespaces", "container"): looks("net") + looks()})
    assert row.reason.values["rest"] == "net"


def test_machine_alone_rules_nothing(ruled: Judge) -> None:
    assert ruled("namespaces", {("namespaces", "vm"): looks()}).ruling is Ruling.UNMEASURABLE


def parcels(layer: float = 1.1e6, whole: float = 3e8, changed: float = 4e6, slow: str = "whole disk") -> Given:
    """A delivery by container and microvm; `slow` takes longest."""

    def way(name: str, size: float) -> list[Sample]:
        labels = {"way": name}
        seconds = 9.0 if name == slow else 1.0
        return [
            Sample("delivery.bytes", size, labels=labels),
            Sample("delivery.stored", size, labels=labels),
            Sample("delivery.seconds", seconds, labels={**labels, "step": "total"}),
        ]

    machine = [*way("whole disk", whole), *way("changed clusters", changed)]
    return {("delivery", "container"): way("layer", layer), ("delivery", "microvm"): machine}


def test_a_disk_whose_changes_travel_alone_qualifies_the_claim(ruled: Judge) -> None:
    row = ruled("delivery", parcels())
    assert (row.ruling, row.reason.key) == (Ruling.QUALIFIED, "half.delivery.both")
    assert row.vm[0].label == "microvm"
    assert row.contrast is not None
    assert row.contrast.value == pytest.approx(3e8 / 1.1e6)


@pytest.mark.parametrize(
    ("shape", "ruling", "key"),
    [
        ({"changed": 1e8}, Ruling.CONFIRMED, "half.delivery.layer"),
        ({"slow": "layer"}, Ruling.QUALIFIED, "half.delivery.later"),
        ({"layer": 2e8}, Ruling.REFUTED, "half.delivery.large"),
    ],
)
def test_a_layer_against_a_whole_disk(ruled: Judge, shape: dict[str, float], ruling: Ruling, key: str) -> None:
    row = ruled("delivery", parcels(**shape))  # type: ignore[arg-type]
    assert (row.ruling, row.reason.key) == (ruling, key)


def test_a_container_alone_says_nothing_about_disks(ruled: Judge) -> None:
    given = parcels()
    del given["delivery", "microvm"]
    assert ruled("delivery", given).ruling is Ruling.UNMEASURABLE


@pytest.mark.parametrize(
    ("apart", "layer", "scale", "ruling", "key"),
    [
        (1.0, 1.1e6, 1.0, Ruling.CONFIRMED, "half.layers.thin"),
        (0.0, 1.1e6, 1.0, Ruling.REFUTED, "half.layers.seen"),
        (1.0, 1e8, 1.0, Ruling.REFUTED, "half.layers.thick"),
        (1.0, 1.1e6, 1000.0, Ruling.REFUTED, "half.layers.thick"),
    ],
)
def test_layers_are_shared_and_thin(
    ruled: Judge, apart: float, layer: float, scale: float, ruling: Ruling, key: str
) -> None:
    given = parcels(layer=layer) | {("layers", "container"): [Sample("layers.apart", apart)]}
    row = ruled("layers", given, scale={("growth.marginal_allocated", "container"): scale})
    assert (row.ruling, row.reason.key) == (ruling, key)


def test_what_one_byte_takes_is_told_where_it_was_measured(ruled: Judge) -> None:
    grown = [Sample("growth.marginal_allocated", 4e4), Sample("growth.copy_up", 9.6e6)]
    given = parcels() | {("layers", "container"): [Sample("layers.apart", 1.0)], ("growth", "container"): grown}
    row = ruled("layers", given, workloads=("footprint",))
    assert (row.ruling, row.reason.key) == (Ruling.CONFIRMED, "half.layers.thin_byte")
    assert row.reason.values["byte"] == "9.2\u00a0MiB"


def test_layers_without_a_delivery_are_open(ruled: Judge) -> None:
    row = ruled("layers", {("layers", "container"): [Sample("layers.apart", 1.0)]})
    assert (row.ruling, row.reason.values["missing"]) == (Ruling.UNMEASURABLE, "image")


def controls(**changed: float | None) -> Given:
    """One visit of the functions, all well but for what is `changed` (None: not measured)."""
    well: dict[str, float] = {
        "enforcement.cpu_bites": 1,
        "enforcement.memory_bites": 1,
        "enforcement.pids_bite": 1,
        "enforcement.io_overrun": 1.02,
        "controls.share_error": -0.01,
        "controls.accounted": 1.01,
        "controls.frozen_cpu": 0,
        "controls.thawed_cpu": 0.9,
    }
    cells: Given = {}
    for name, typical in well.items():
        value = changed.get(name.partition(".")[2], typical)
        workload = "enforcement_io" if name.endswith("io_overrun") else name.partition(".")[0]
        if value is not None:
            cells.setdefault((workload, "container"), []).append(Sample(name, value))
    return cells


@pytest.mark.parametrize(
    ("changed", "ruling", "key", "count"),
    [
        ({}, Ruling.CONFIRMED, "half.cgroups.all", 4),
        ({"share_error": 0.08}, Ruling.QUALIFIED, "half.cgroups.some", 3),
        ({"memory_bites": 0}, Ruling.QUALIFIED, "half.cgroups.some", 3),
        ({"frozen_cpu": 0.5}, Ruling.QUALIFIED, "half.cgroups.some", 3),
        ({"thawed_cpu": 0.0}, Ruling.QUALIFIED, "half.cgroups.some", 3),
        ({"io_overrun": None}, Ruling.UNMEASURABLE, "half.cgroups.open", 3),
        (
            {"io_overrun": 2, "share_error": -0.2, "accounted": 0.5, "frozen_cpu": 1},
            Ruling.REFUTED,
            "half.cgroups.none",
            0,
        ),
    ],
)
def test_four_functions_each_by_its_bound(
    ruled: Judge, changed: dict[str, float | None], ruling: Ruling, key: str, count: int
) -> None:
    row = ruled("cgroups-do", controls(**changed))
    assert (row.ruling, row.reason.key, row.container[0].value) == (ruling, key, count)


def kept(**by_guard: Sequence[float]) -> Given:
    """One visit of the protection: what was kept under each guard, round by round."""
    samples = [
        Sample("protection.kept", value, labels={"guard": guard})
        for guard, values in by_guard.items()
        for value in values
    ]
    return {("protection", "container"): samples}


@pytest.mark.parametrize(
    ("weight", "cpuset", "unguarded", "ruling", "key"),
    [
        ([0.99, 0.97], [1.0, 1.0], [0.34, 0.33], Ruling.REFUTED, "half.guards.all"),
        ([0.89, 0.99], [1.0, 1.0], [0.34, 0.33], Ruling.QUALIFIED, "half.guards.some"),
        ([0.5, 0.5], [0.7, 0.8], [0.34, 0.33], Ruling.CONFIRMED, "half.guards.none"),
        ([0.99, 0.97], [1.0, 1.0], [0.95, 0.97], Ruling.UNMEASURABLE, "half.guards.idle"),
    ],
)
def test_guards_by_their_worst_round(
    ruled: Judge, weight: list[float], cpuset: list[float], unguarded: list[float], ruling: Ruling, key: str
) -> None:
    row = ruled("max-only", kept(none=unguarded, weight=weight, cpuset=cpuset))
    assert (row.ruling, row.reason.key) == (ruling, key)


def test_guards_on_a_busy_host_prove_nothing(ruled: Judge) -> None:
    given = kept(none=[0.3], weight=[0.8], cpuset=[1.0])
    given["protection", "container"][1].labels["others"] = "0.60"
    row = ruled("max-only", given)
    assert (row.ruling, row.reason.key) == (Ruling.UNMEASURABLE, "half.guards.busy")


@pytest.mark.parametrize("language", ["en", "zh"])
def test_every_mechanism_has_its_section(view_of: Callable[..., View], language: str) -> None:
    given = (
        parcels()
        | controls()
        | {
            ("layers", "container"): [Sample("layers.apart", 1.0, labels={"where": "image"})],
            ("namespaces", "container"): looks("user"),
            ("network", "container"): [*reaches(published=1.0), Sample("network.round_trip", 2e-5)],
        }
    )
    page = render.page(view_of(language=language, given=given))
    for slug in (
        "namespaces-matrix",
        "controls-matrix",
        "delivery-steps",
        "delivery-bytes",
        "layers-parts",
        "network-round-trip",
    ):
        assert f'id="{slug}"' in page, slug


def reaches(**answers: float) -> list[Sample]:
    """One visit of the network with these answers."""
    return [Sample(f"network.{name}", value) for name, value in {"own": 1.0, "reached": 1.0, **answers}.items()]


@pytest.mark.parametrize(
    ("answers", "ruling", "value"),
    [
        ({"published": 1.0}, Ruling.CONFIRMED, 3),
        ({"published": 0.0}, Ruling.QUALIFIED, 2),
        ({}, Ruling.QUALIFIED, 2),
        ({"own": 0.0, "reached": 0.0, "published": 0.0}, Ruling.REFUTED, 0),
    ],
)
def test_own_network_is_addresses_bridge_and_port(
    ruled: Judge, answers: dict[str, float], ruling: Ruling, value: float
) -> None:
    row = ruled("network", {("network", "container"): reaches(**answers)})
    assert (row.ruling, row.container[0].value) == (ruling, value)
    if ruling is Ruling.QUALIFIED:
        assert (row.reason.values["names"], row.reason.values["rest"]) == ("own, reached", "published")
