"""The one test of `tox -e bench`: collected once a cell by `harness.plugin`, run after everything was measured."""

from __future__ import annotations

from typing import Any

import pytest

from harness import plugin, replay


def measured_cell(request: pytest.FixtureRequest, benchmark: Any) -> None:
    """Replay the cell's samples through pytest-benchmark; its outcome is the test's."""
    cell = request.node.stash[plugin.CELL]
    front = request.config.stash[plugin.BENCH]
    records = front.records(cell)
    metrics = front.plan.workloads[cell.workload].metrics
    chosen = replay.choose(metrics, records, front.plan.profile.key_metrics)
    benchmark.extra_info.update(replay.extra_info(metrics, records, chosen))
    if chosen is not None:
        clock = request.node.get_closest_marker("benchmark").kwargs["timer"]
        replay.play(benchmark, clock, chosen.seconds)
    plugin.verdict(records)
