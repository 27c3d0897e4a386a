"""sysbench's command lines, and its report as recorded from sysbench 1.0.20."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.base import Invalid
from workloads.tools import sysbench

DATA = Path(__file__).parents[3] / "data/tools"


def test_cpu_report_gives_total_events_and_time() -> None:
    work = sysbench.parse((DATA / "sysbench-cpu.txt").read_bytes())
    assert work == sysbench.Work(events=4367, mib=0.0, elapsed_s=1.0004)


def test_memory_report_gives_what_was_transferred() -> None:
    work = sysbench.parse((DATA / "sysbench-memory.txt").read_bytes())
    assert work == sysbench.Work(events=749, mib=23968.0, elapsed_s=1.0013)


@pytest.mark.parametrize(
    ("output", "why"),
    [
        (b"", "it said nothing"),
        (b"Segmentation fault", "Segmentation fault"),
        (b"sysbench 1.0.20\n\nFATAL: Invalid value for memory-block-size: 9999G\n", "9999G"),
        (b"    total time:      1.0s\n    total number of events:       0\n", "no work"),
        (b"    total time:      0.0000s\n    total number of events:       1\n", "no work"),
        (b"    total time:      1.0000s\n", "no totals"),
        (b"ALERT: lost\n    total time:      1.0000s\n    total number of events:       9\n", "ALERT: lost"),
    ],
)
def test_report_without_honest_work_is_invalid(output: bytes, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        sysbench.parse(output)


def test_time_is_whole_seconds_as_sysbench_takes_no_other() -> None:
    assert "--time=1" in sysbench.cpu_argv(0.2)
    assert "--time=2" in sysbench.memory_argv(1.6, 64)
    assert "--memory-block-size=64M" in sysbench.memory_argv(1, 64)
