"""fio's command lines, and its report as recorded from fio 3.33."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.base import Invalid
from workloads.tools import fio

DATA = Path(__file__).parents[3] / "data/tools"


@pytest.mark.parametrize(
    ("name", "direction", "moved"),
    [
        ("write", "write", fio.Moved(2524, 2646605824, 1.501)),
        ("randwrite", "write", fio.Moved(13990, 57303040, 1.501)),
        ("fsync", "write", fio.Moved(2074, 8495104, 0.301)),
        ("randread", "read", fio.Moved(5087, 20836352, 0.301)),
    ],
)
def test_report_gives_totals_of_what_was_moved(name: str, direction: fio.Direction, moved: fio.Moved) -> None:
    assert fio.parse((DATA / f"fio-{name}.json").read_bytes(), direction) == moved


def test_warnings_before_the_report_are_passed_over() -> None:
    report = (DATA / "fio-write.json").read_bytes()
    assert (
        fio.parse(b"fio: this platform does not support process shared mutexes\n" + report, "write").operations == 2524
    )


def test_full_disk_is_invalid_and_says_so() -> None:
    with pytest.raises(Invalid, match=r"error 28.*No space left"):
        fio.parse((DATA / "fio-enospc.json").read_bytes(), "write")


@pytest.mark.parametrize(
    "output", [b"", b"fio: no such job", b"{", b"[]", b'{"jobs": []}', b'{"jobs": [{"error": 0}]}']
)
def test_output_without_a_report_is_invalid(output: bytes) -> None:
    with pytest.raises(Invalid, match="no report"):
        fio.parse(output, "read")


def test_report_of_nothing_moved_that_way_is_invalid() -> None:
    with pytest.raises(Invalid, match="no read in its report"):
        fio.parse((DATA / "fio-write.json").read_bytes(), "read")
    report = b'{"jobs": [{"error": 0, "write": {"total_ios": 0, "io_bytes": 0, "runtime": 0}}]}'
    with pytest.raises(Invalid, match="no write in its report"):
        fio.parse(report, "write")


def test_timed_job_goes_past_the_page_cache_or_flushes_for_the_time_asked() -> None:
    argv = fio.run_argv("/var/tmp/x", 64, 1.5, pattern="randread", block="4k")
    assert {"--direct=1", "--time_based", "--runtime=1500ms", "--rw=randread", "--bs=4k", "--size=64M"} <= set(argv)
    flushed = fio.run_argv("/var/tmp/x", 64, 1.5, pattern="write", block="4k", flush=True)
    assert "--fsync=1" in flushed
    assert "--direct=1" not in flushed
    assert "--end_fsync=1" in fio.layout_argv("/var/tmp/x", 64)
