"""The host figures workloads read, from made-up and from real /proc trees."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from workloads import hostview

GIB = 1 << 30


def test_memory_reads_bytes_and_reserves_a_tenth_or_a_gibibyte(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 25165824 kB\nMemFree: 1 kB\nMemAvailable: 12582912 kB\nHugePages: 0\n")
    memory = hostview.memory(tmp_path)
    assert (memory.total, memory.available) == (24 * GIB, 12 * GIB)
    assert memory.reserve == 24 * GIB // 10
    assert hostview.Memory(total=4 * GIB, available=0).reserve == GIB


def test_busy_time_leaves_out_idle_iowait_and_steal(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  100 20 30 9999 888 4 5 777 66 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n")
    assert hostview.busy_cpu_s(tmp_path) == pytest.approx(159 / os.sysconf("SC_CLK_TCK"))


def test_task_room_is_the_lower_limit_less_the_tasks_there(tmp_path: Path) -> None:
    (tmp_path / "sys/kernel").mkdir(parents=True)
    (tmp_path / "sys/kernel/pid_max").write_text("32768\n")
    (tmp_path / "sys/kernel/threads-max").write_text("190000\n")
    (tmp_path / "loadavg").write_text("0.52 0.58 0.59 2/768 12345\n")
    assert hostview.task_room(tmp_path) == 32000


def test_open_file_limit_is_given_back() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))
    try:
        with hostview.many_open_files() as most:
            assert resource.getrlimit(resource.RLIMIT_NOFILE) == (most, hard)
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (soft - 1, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_this_host_can_be_read() -> None:
    assert 0 < hostview.memory().available <= hostview.memory().total
    assert hostview.busy_cpu_s() > 0
    assert hostview.task_room() > 0


def test_rest_ends_once_no_memory_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([1, 2, 3, 3, 9])  # GiB
    monkeypatch.setattr(hostview, "LOOK_S", 0.0)
    monkeypatch.setattr(hostview, "memory", lambda: hostview.Memory(10 * GIB, next(seen) * GIB))
    hostview.rest()
    assert next(seen) == 9
