"""The order of a run and its stop rule."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from harness import schedule
from harness.profiles import PROFILES, Entry, find_profile
from harness.results import Cell
from harness.schedule import Forecast
from runtime.driver import Kind
from runtime.errors import UsageError
from tests.unit.harness.engine import standard_workloads, tiny_profile
from workloads.base import Stage, all_workloads

KINDS = {"native": Kind.NATIVE, "container": Kind.CONTAINER, "vm": Kind.VM}


def planned() -> tuple[schedule.Planned, ...]:
    return schedule.plan(tiny_profile(), KINDS, standard_workloads())


def test_the_same_seed_gives_the_same_order_and_another_another() -> None:
    orders = {seed: [schedule.block_visits(planned(), seed, block) for block in range(5)] for seed in (1, 2)}
    assert orders[1] == [schedule.block_visits(planned(), 1, block) for block in range(5)]
    assert orders[1] != orders[2]
    assert len({tuple(visit.label for visit in visits) for visits in orders[1]}) > 1, "every block has the same order"


def test_the_order_does_not_depend_on_the_order_of_what_was_planned() -> None:
    assert schedule.block_visits(planned(), 3, 1) == schedule.block_visits(planned()[::-1], 3, 1)


def test_native_appears_twice_in_every_block_and_its_twin_runs_no_own_workload() -> None:
    visits = {visit.label: visit for visit in schedule.block_visits(planned(), 1, 0)}
    assert set(visits) == {"native", "native~aa", "container", "vm"}
    assert visits["native~aa"].driver == "native"
    assert {one.cell.workload for one in visits["native~aa"].cells} == {"boot", "one", "two", "end"}
    assert {one.cell.workload for one in visits["native"].cells} == {"boot", "one", "two", "end", "own"}


def test_cells_of_a_visit_run_by_stage_and_sessions_in_a_drawn_order() -> None:
    sessions = set()
    for block in range(20):
        for visit in schedule.block_visits(planned(), 1, block):
            stages = [one.stage for one in visit.cells if one.stage is not Stage.SESSION]
            assert stages == [stage for stage in (Stage.LAUNCH, Stage.TEARDOWN, Stage.OWN) if stage in stages]
            sessions.add(tuple(one.cell.workload for one in visit.cells if one.stage is Stage.SESSION))
    assert sessions == {("one", "two"), ("two", "one")}


def test_positions_count_through_the_block_and_on_through_the_closing_visits() -> None:
    visits = [*schedule.block_visits(planned(), 1, 0), *schedule.closing_visits(planned(), 1)]
    positions = [visit.first + index for visit in visits for index in range(len(visit.cells))]
    assert positions == list(range(len(planned())))
    assert {one.cell.workload for visit in schedule.closing_visits(planned(), 1) for one in visit.cells} == {"last"}


def test_a_profile_restricts_a_workload_to_drivers_and_a_selection_restricts_cells() -> None:
    profile = tiny_profile(entries={"own": Entry(drivers=("vm",))})
    cells = {one.cell for one in schedule.plan(profile, KINDS, standard_workloads(), lambda c: c.workload == "own")}
    assert cells == {Cell("own", "vm", "vm")}


def test_what_is_rare_runs_in_the_first_block_alone_where_its_driver_is_emulated() -> None:
    profile = tiny_profile(entries={**tiny_profile().entries, "own": Entry(rare=("vm",))})
    for emulated, expected in ((("vm",), {0: True, 1: False}), ((), {0: True, 1: True})):
        cells = schedule.plan(profile, KINDS, standard_workloads(), emulated=emulated)
        for block, present in expected.items():
            own = {
                one.cell.label
                for visit in schedule.block_visits(cells, 1, block)
                for one in visit.cells
                if one.cell.workload == "own"
            }
            assert own == {"native", "container"} | ({"vm"} if present else set())


def test_parameters_of_a_kind_go_over_those_of_the_workload() -> None:
    entry = Entry(params={"seconds": 1, "repeats": 0}, by_kind={Kind.CONTAINER: {"repeats": 5}})
    assert entry.params_for("container", Kind.CONTAINER) == {"seconds": 1, "repeats": 5}
    assert entry.params_for("vm", Kind.VM) == {"seconds": 1, "repeats": 0}


def test_comparators_run_only_what_is_compared_and_repeat_it_less() -> None:
    entry = Entry(by_kind={Kind.CONTAINER: {"repeats": 5}}, repeats=2, comparators=True)
    assert entry.params_for("container", Kind.CONTAINER) == {"repeats": 5}
    assert entry.params_for("docker", Kind.CONTAINER) == {"repeats": 2}
    assert entry.takes("docker")
    assert not Entry().takes("docker")
    assert not Entry(drivers=("docker",)).takes("docker")


def test_no_stop_before_the_least_number_of_blocks_however_precise() -> None:
    profile = tiny_profile(min_blocks=6, max_blocks=20)
    assert schedule.enough(profile, 5, [0.0]) == ""
    assert schedule.enough(profile, 6, [0.0]) != ""


def test_stops_when_precise_and_only_at_a_look() -> None:
    profile = tiny_profile(min_blocks=6, max_blocks=20, look_every=5, target_half_width=0.05)
    assert schedule.enough(profile, 6, [0.06]) == ""
    assert schedule.enough(profile, 8, [0.04]) == ""
    assert "wanted" in schedule.enough(profile, 11, [0.06, 0.04])


def test_stops_when_width_no_longer_shrinks_and_at_the_most_blocks() -> None:
    profile = tiny_profile(min_blocks=6, max_blocks=40, look_every=5, target_half_width=0.01)
    assert schedule.enough(profile, 16, [0.5, 0.3, 0.2]) == ""
    assert "shrinks" in schedule.enough(profile, 16, [0.3, 0.3, 0.3])
    assert schedule.enough(profile, 6, [math.inf]) == ""
    assert "most" in schedule.enough(profile, 40, [])


def test_next_look_is_the_least_number_first_then_every_few_at_most_the_most() -> None:
    profile = tiny_profile(min_blocks=6, max_blocks=13, look_every=5)
    assert [schedule.next_look(profile, blocks) for blocks in (1, 6, 7, 11, 12)] == [6, 6, 11, 11, 13]


def test_forecast_prefers_what_was_measured_over_the_expectation() -> None:
    forecast = Forecast(tiny_profile())
    visit = next(visit for visit in schedule.block_visits(planned(), 1, 0) if visit.label == "vm")
    before_s = forecast.visits_s([visit])
    assert before_s > 20
    forecast.note_boot("vm", 2.0)
    assert forecast.visits_s([visit]) < 3
    for elapsed_s in (9.0, 10.0, 50.0):
        forecast.note_cell(Cell("one", "vm", "vm"), elapsed_s)
    assert 12 < forecast.visits_s([visit]) < 13


def test_time_left_counts_what_is_not_done() -> None:
    forecast, cells = Forecast(tiny_profile()), planned()
    everything = {(one.cell, block) for one in cells for block in range(2)}
    assert forecast.left_s(cells, everything, 2) == 0
    vm = {(one.cell, 0) for one in cells if one.cell.label == "vm"}
    assert forecast.left_s(cells, everything - vm, 2) == pytest.approx(tiny_profile().boot_s("vm") + 0.01 * 6)
    assert forecast.left_s(cells, set(), 2) > forecast.left_s(cells, set(), 1)


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_mentions_only_workloads_and_metrics_that_exist(name: str) -> None:
    profile = PROFILES[name]
    known = all_workloads()
    assert set(profile.entries) <= set(known)
    assert set(profile.key_metrics) <= {metric.name for workload in known.values() for metric in workload.metrics}


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_fits_its_least_blocks_and_the_closing_into_its_budget(name: str) -> None:
    profile = PROFILES[name]
    kinds = {"native": Kind.NATIVE, "microvm": Kind.VM, "vm": Kind.VM}
    kinds = {name: kinds.get(name, Kind.CONTAINER) for name in profile.drivers}
    cells = schedule.plan(profile, kinds, all_workloads(), emulated=("microvm", "vm"))
    assert Forecast(profile).left_s(cells, set(), profile.min_blocks) <= profile.budget_s


def test_every_profile_but_smoke_has_the_blocks_an_interval_needs() -> None:
    assert {name: profile.min_blocks for name, profile in PROFILES.items()} == {
        "smoke": 1,
        "quick": 7,
        "standard": 10,
        "full": 20,
    }


def test_unknown_profile_is_one_line_that_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="choose from smoke, quick, standard, full"):
        find_profile("fast")


def test_settings_change_when_a_parameter_does() -> None:
    profile = tiny_profile()
    assert profile.settings() != replace(profile, entries={"one": Entry(params={"seconds": 3})}).settings()
