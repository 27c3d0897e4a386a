"""Documents about no one container, and the statistics in runc's words."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runtime.cgroups.statistics import CpuStatistics, DeviceIo, Level, MemoryStatistics, PidsStatistics, Statistics
from runtime.container import decode, oci_documents, oci_events
from runtime.errors import UsageError


@pytest.mark.parametrize("rootless", [False, True])
def test_example_is_a_valid_configuration(rootless: bool, tmp_path: Path) -> None:
    oci_documents.write_spec(str(tmp_path), rootless=rootless)
    config = decode.load(tmp_path / "config.json")
    assert config.process is not None
    assert config.process.args == ("sh",)
    assert config.linux.has("user") == rootless
    with pytest.raises(UsageError, match="exists already"):
        oci_documents.write_spec(str(tmp_path), rootless=rootless)


def test_features_are_json_of_the_specification() -> None:
    document = json.loads(json.dumps(oci_documents.features()))
    assert document["ociVersionMax"] == "1.2.0"
    assert "startContainer" in document["hooks"]
    assert {"rbind", "idmap"} - set(document["mountOptions"]) <= {"idmap"}
    assert "CAP_SYS_ADMIN" in document["linux"]["capabilities"]


def test_process_table_shows_the_heading_and_our_processes() -> None:
    table = oci_documents.process_table([os.getpid()], ["-o", "pid,comm", "-e"]).splitlines()
    assert len(table) == 2
    assert table[0].split() == ["PID", "COMMAND"]
    assert table[1].split()[0] == str(os.getpid())


def test_process_table_needs_pids() -> None:
    with pytest.raises(UsageError, match="no column PID"):
        oci_documents.process_table([1], ["-o", "comm"])


@pytest.mark.parametrize(("text", "expected"), [("5s", 5), ("1m30s", 90), ("250ms", 0.25), ("1.5h", 5400)])
def test_intervals_are_go_durations(text: str, expected: float) -> None:
    assert oci_events.seconds(text) == expected


@pytest.mark.parametrize("text", ["", "5", "s", "0s", "-1s", "5 s", "5d"])
def test_other_intervals_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="interval"):
        oci_events.seconds(text)


def test_statistics_get_the_names_that_callers_read() -> None:
    read = Statistics(
        method="cgroup v1",
        cpu=CpuStatistics(total_ns=7, user_ns=3, system_ns=4, per_cpu_ns=(5, 2), periods=1, throttled_periods=0),
        memory=MemoryStatistics(memory=Level(current_bytes=10, peak_bytes=20, limit_bytes=30, failures=1)),
        pids=PidsStatistics(current=2),
        io=(DeviceIo(device="8:0", read_bytes=100, reads=1, write_bytes=50),),
    )
    assert oci_events.document(read) == {
        "cpu": {
            "usage": {"total": 7, "percpu": [5, 2], "kernel": 4, "user": 3},
            "throttling": {"periods": 1, "throttledPeriods": 0},
        },
        "memory": {
            "usage": {"limit": 30, "usage": 10, "max": 20, "failcnt": 1},
            "swap": {},
            "kernel": {},
            "kernelTCP": {},
        },
        "pids": {"current": 2},
        "blkio": {
            "ioServiceBytesRecursive": [
                {"major": 8, "minor": 0, "op": "Read", "value": 100},
                {"major": 8, "minor": 0, "op": "Write", "value": 50},
            ],
            "ioServicedRecursive": [{"major": 8, "minor": 0, "op": "Read", "value": 1}],
        },
        "hugetlb": {},
    }


def test_no_limit_is_the_largest_number() -> None:
    read = Statistics(method="x", memory=MemoryStatistics(memory=Level(current_bytes=1)))
    memory = oci_events.document(read)["memory"]
    assert isinstance(memory, dict)
    assert memory["usage"] == {"limit": oci_events.UNLIMITED, "usage": 1, "failcnt": 0}
