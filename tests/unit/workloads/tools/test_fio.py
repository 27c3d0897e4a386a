"""fio's command lines, and its report as recorded from fio 3.33."""

from __future__ import annotations

from pathlib import Path

import pytest

from workloads.base import Invalid
from workloads.tools import fio

DATA = Path(__file__).parents[3] / "data/tools"


def test_report_gives_totals_of_the_writes() -> None:
    assert fio.parse((DATA / "fio-write.json").read_bytes()) == fio.Written(2524, 2646605824, 1.501)
    assert fio.parse((DATA / "fio-randwrite.json").read_bytes()) == fio.Written(13990, 57303040, 1.501)


def test_warnings_before_the_report_are_passed_over() -> None:
    report = (DATA / "fio-write.json").read_bytes()
    assert fio.parse(b"fio: this platform does not support process shared mutexes\n" + report).operations == 2524


def test_full_disk_is_invalid_and_says_so() -> None:
    with pytest.raises(Invalid, match=r"error 28.*No space left"):
        fio.parse((DATA / "fio-enospc.json").read_bytes())


@pytest.mark.parametrize(
    "output", [b"", b"fio: no such job", b"{", b"[]", b'{"jobs": []}', b'{"jobs": [{"error": 0}]}']
)
def test_output_without_a_report_is_invalid(output: bytes) -> None:
    with pytest.raises(Invalid, match="no report"):
        fio.parse(output)


def test_report_of_nothing_written_is_invalid() -> None:
    report = b'{"jobs": [{"error": 0, "write": {"total_ios": 0, "io_bytes": 0, "runtime": 0}}]}'
    with pytest.raises(Invalid, match="wrote nothing"):
        fio.parse(report)


def test_timed_write_goes_past_the_page_cache_for_the_time_asked() -> None:
    argv = fio.write_argv("/var/tmp/x", 64, 1.5, pattern="randwrite", block="4k")
    assert {"--direct=1", "--time_based", "--runtime=1500ms", "--rw=randwrite", "--bs=4k", "--size=64M"} <= set(argv)
    assert "--end_fsync=1" in fio.layout_argv("/var/tmp/x", 64)
