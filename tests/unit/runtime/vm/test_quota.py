"""The CPU limit on vCPU threads: which these are, and how the group's files are written on v1 and v2."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.cgroups.v1 import V1Cgroup
from runtime.cgroups.v2 import V2Cgroup
from runtime.errors import TareError
from runtime.vm.quota import VcpuQuota, vcpu_threads

THREADS = {7: "qemu-system-x86", 8: "CPU 1/TCG", 9: "CPU 0/TCG", 10: "worker", 11: "CPU 0/TCG x"}


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    for thread, name in THREADS.items():
        task = tmp_path / "proc/7/task" / str(thread)
        task.mkdir(parents=True)
        (task / "comm").write_text(f"{name}\n")
    return tmp_path / "proc"


def test_vcpu_threads_come_in_the_order_of_the_vcpus(proc: Path) -> None:
    assert vcpu_threads(7, 2, proc) == (9, 8)


@pytest.mark.parametrize("vcpus", [1, 3])
def test_another_number_of_vcpu_threads_is_an_error(proc: Path, vcpus: int) -> None:
    with pytest.raises(TareError, match=f"2 threads are named as vCPUs, not {vcpus}"):
        vcpu_threads(7, vcpus, proc)


def test_a_process_that_is_gone_has_no_vcpus(proc: Path) -> None:
    with pytest.raises(TareError, match="0 threads"):
        vcpu_threads(6, 1, proc)


def test_v1_limits_the_threads_in_the_cpu_hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = {name: tmp_path / name for name in ("cpu", "memory", "pids")}
    group = V1Cgroup("i", mounts).thread_group("vcpus", 0.5)
    assert group.directory == tmp_path / "cpu/tare/i/vcpus"
    assert group.tasks.name == "tasks"


def test_v2_limits_the_threads_in_a_threaded_group(tmp_path: Path) -> None:
    group = V2Cgroup("i", tmp_path).thread_group("vcpus", 0.5)
    assert group.directory == tmp_path / "tare/i/vcpus"
    assert group.tasks.name == "cgroup.threads"


@pytest.mark.parametrize(("version", "limit"), [(1, ["50000", "100000"]), (2, ["50000 100000"])])
def test_the_group_is_made_limited_and_filled(
    tmp_path: Path, proc: Path, monkeypatch: pytest.MonkeyPatch, version: int, limit: list[str]
) -> None:
    written: list[tuple[str, str]] = []

    def write(path: Path, value: str) -> None:
        written.append((path.name, value))
        old = path.read_text() if path.name in ("tasks", "cgroup.threads") and path.exists() else ""
        path.write_text(f"{old}{value}\n")

    for module in ("threads", "controls"):
        monkeypatch.setattr(f"runtime.cgroups.{module}.write", write)
    monkeypatch.setattr("runtime.cgroups.controls.present", lambda _path: True)
    monkeypatch.setattr("runtime.vm.quota.vcpu_threads", lambda pid, vcpus: vcpu_threads(pid, vcpus, proc))
    cgroup = V2Cgroup("i", tmp_path) if version == 2 else V1Cgroup("i", {"cpu": tmp_path})
    (tmp_path / "tare/i").mkdir(parents=True)
    quota = VcpuQuota(cgroup, 0.5)
    quota.bind(7, 2)
    if version == 2:
        assert written[:2] == [("cgroup.type", "threaded"), ("cgroup.subtree_control", "+cpu")]
    assert sorted(value for name, value in written if name.startswith("cpu.")) == sorted(limit, key=str)
    assert [value for name, value in written if name in ("tasks", "cgroup.threads")] == ["9", "8"]
    readings = quota.readings()
    assert [reading for reading in readings if not reading.holds] == []
    assert readings[-1].asked == readings[-1].read == "8,9"
    cgroup.thread_group("vcpus", 0.5).tasks.write_text("8\n")
    assert not quota.readings()[-1].holds


def test_a_group_that_cannot_be_made_is_a_limit_that_cannot_be_set(
    tmp_path: Path, proc: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.vm.quota.vcpu_threads", lambda pid, vcpus: vcpu_threads(pid, vcpus, proc))
    with pytest.raises(TareError, match="limit cpus on vCPUs"):
        VcpuQuota(V2Cgroup("i", tmp_path), 0.5).bind(7, 2)
