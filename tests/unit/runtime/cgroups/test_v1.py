"""cgroup v1 on recorded trees."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.devices import USUAL, v1_lists
from runtime.cgroups.resources import Resources
from runtime.cgroups.v1 import V1Cgroup
from runtime.cgroups.weights import bfq_weight, cpu_shares
from runtime.errors import TareError
from runtime.spec import Limits

ALL = Limits(
    cpus=1.5,
    cpu_weight=200,
    cpuset="0",
    memory_bytes=(64 << 20) + 1,
    memory_low_bytes=32 << 20,
    swap_bytes=0,
    pids=20,
    io_read_bps=1000,
    io_write_bps=2000,
)


@pytest.mark.parametrize(("weight", "shares"), [(100, 1024), (1, 10), (10000, 102400), (50, 512)])
def test_weight_becomes_shares_by_the_kernels_own_relation(weight: int, shares: int) -> None:
    assert cpu_shares(weight) == shares


@pytest.mark.parametrize(("weight", "bfq"), [(1, 1), (100, 100), (10000, 1000)])
def test_io_weight_fits_the_scale_of_bfq(weight: int, bfq: int) -> None:
    assert bfq_weight(weight) == bfq


def test_every_limit_is_written_and_reads_back(v1_mounts: dict[str, Path], kernel: list[tuple[str, str]]) -> None:
    group = V1Cgroup("tare-0", v1_mounts, io_device="254:0", wanted=ALL)
    group.apply(ALL)
    assert kernel == [
        ("cpuset.cpus", "0"),
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpu.shares", "2048"),
        ("memory.limit_in_bytes", str(64 << 20)),
        ("memory.memsw.limit_in_bytes", str(64 << 20)),
        ("memory.soft_limit_in_bytes", str(32 << 20)),
        ("pids.max", "20"),
        ("blkio.throttle.read_bps_device", "254:0 1000"),
        ("blkio.throttle.write_bps_device", "254:0 2000"),
    ]
    readings = group.readings(ALL)
    assert [reading.name for reading in readings if not reading.holds] == []
    assert {reading.name for reading in readings} == {
        field.name for field in dataclasses.fields(Limits) if getattr(ALL, field.name) is not None
    }


def test_a_limit_that_the_kernel_did_not_keep_does_not_hold(v1_mounts: dict[str, Path]) -> None:
    (reading,) = V1Cgroup("tare-0", v1_mounts).readings(Limits(pids=20))
    assert (reading.asked, reading.read, reading.holds) == ("20", "max", False)


def test_a_missing_control_is_refused_by_name(v1_mounts: dict[str, Path]) -> None:
    (v1_mounts["memory"] / "tare/tare-0/memory.memsw.limit_in_bytes").unlink()
    group = V1Cgroup("tare-0", v1_mounts)
    with pytest.raises(TareError, match=r"swap_bytes: this host has no memory\.memsw\.limit_in_bytes"):
        group.apply(Limits(memory_bytes=64 << 20, swap_bytes=0))


def test_a_missing_controller_is_refused_by_name(v1_mounts: dict[str, Path]) -> None:
    del v1_mounts["blkio"]
    with pytest.raises(TareError, match="io_read_bps: this host has no v1 controller blkio"):
        V1Cgroup("tare-0", v1_mounts, io_device="254:0").apply(Limits(io_read_bps=1))


def test_an_io_weight_that_nothing_reads_is_refused(
    v1_mounts: dict[str, Path], kernel: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = V1Cgroup("tare-0", v1_mounts, io_device="254:0")
    (v1_mounts["blkio"] / "tare/tare-0/blkio.bfq.weight").write_text("100\n")
    monkeypatch.setattr("runtime.cgroups.v1_controls.scheduler", lambda device: "mq-deadline")
    with pytest.raises(TareError, match="io_weight: the scheduler of disk 254:0 is mq-deadline"):
        group.apply(Limits(io_weight=10))
    monkeypatch.setattr("runtime.cgroups.v1_controls.scheduler", lambda device: "bfq")
    group.apply(Limits(io_weight=10))
    assert kernel == [("blkio.bfq.weight", "10")]


def test_io_limits_need_a_device(v1_mounts: dict[str, Path]) -> None:
    with pytest.raises(TareError, match="no block device"):
        V1Cgroup("tare-0", v1_mounts).apply(Limits(io_read_bps=1))


def test_usage_comes_from_the_accounting_files(v1_mounts: dict[str, Path]) -> None:
    usage = V1Cgroup("tare-0", v1_mounts).usage()
    assert (usage.method, usage.cpu_ns, usage.memory_bytes, usage.memory_peak_bytes, usage.pids) == (
        "cgroup v1",
        123456789,
        4096,
        8192,
        3,
    )
    assert (usage.io_read_bytes, usage.io_write_bytes) == (1005, 26)


def test_usage_lacks_what_the_host_lacks(v1_mounts: dict[str, Path]) -> None:
    for name in ("blkio", "cpuacct"):
        del v1_mounts[name]
    usage = V1Cgroup("tare-0", v1_mounts).usage()
    assert (usage.cpu_ns, usage.io_read_bytes) == (None, None)


def test_cpuset_and_devices_are_joined_only_on_demand(v1_mounts: dict[str, Path]) -> None:
    plain = V1Cgroup("tare-1", v1_mounts).directories()
    full = V1Cgroup("tare-1", v1_mounts, guard_devices=True, wanted=ALL).directories()
    mounts = {name for name, mount in v1_mounts.items() for path in full if mount in path.parents}
    assert mounts - {path.parts[-3] for path in plain} == {"cpuset", "devices"}


@pytest.mark.parametrize(
    ("options", "inherits"),
    [
        ({}, True),
        ({"wanted": Resources()}, True),
        ({"wanted": Resources(devices=USUAL)}, False),
        ({"parent": "docker"}, False),
    ],
)
def test_only_the_usual_rules_below_our_own_parent_are_inherited(
    v1_mounts: dict[str, Path], options: dict[str, Any], inherits: bool
) -> None:
    group = V1Cgroup("tare-1", v1_mounts, guard_devices=True, **options)
    guarded = v1_mounts["devices"] / "tare/@usual/tare-1"
    assert (guarded in group.directories()) is inherits
    assert (guarded / "tasks" in group.join_files()) is inherits


def test_a_hierarchy_shared_with_devices_has_one_place_for_a_group(v1_mounts: dict[str, Path]) -> None:
    v1_mounts["freezer"] = v1_mounts["devices"]
    group = V1Cgroup("tare-1", v1_mounts, guard_devices=True)
    assert v1_mounts["devices"] / "tare/tare-1" in group.directories()


def test_a_handle_that_knows_only_the_name_finds_and_removes_what_inherits(v1_mounts: dict[str, Path]) -> None:
    guarded = v1_mounts["devices"] / "tare/@usual/tare-1"
    guarded.mkdir(parents=True)
    group = V1Cgroup("tare-1", v1_mounts)
    assert group.exists()
    group.remove()
    assert not guarded.exists()
    assert guarded.parent.exists()
    assert not V1Cgroup("@usual", v1_mounts, parent="docker").exists()


def test_controllers_mounted_together_share_a_directory_and_a_mount(v1_mounts: dict[str, Path]) -> None:
    v1_mounts["cpuacct"] = v1_mounts["cpu"]
    group = V1Cgroup("tare-1", v1_mounts)
    assert len(group.directories()) == len(group.join_files()) == 5
    assert ("cpu,cpuacct", "cpu") in group.mounts_inside()


def test_first_group_makes_a_cpuset_that_tasks_can_join(
    v1_mounts: dict[str, Path], tmp_path: Path, kernel: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        made(path, mode, parents, exist_ok)
        for name in ("cpuset.cpus", "cpuset.mems", "cgroup.clone_children", "devices.deny", "devices.allow"):
            (path / name).touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    V1Cgroup("tare-1", v1_mounts, parent="new", guard_devices=True, wanted=Limits(cpuset="0")).create()
    assert [row for row in kernel if row[0].startswith(("cpuset", "cgroup"))] == [
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("cgroup.clone_children", "1"),
        ("cpuset.cpus", "0-1"),  # where the parent is another's and hands nothing down
        ("cpuset.mems", "0"),
    ]
    rules = [value for name, value in kernel if name.startswith("devices")]
    assert rules == ["a", *v1_lists(USUAL)[1]]
    assert "c 1:3 rwm" in rules


def test_nobody_else_may_make_groups_below_whatever_the_umask(
    v1_mounts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.cgroups.v1_devices.set_rules", lambda *_: None)
    before = os.umask(0)
    try:
        group = V1Cgroup("tare-1", v1_mounts, guard_devices=True)
        group.create()
    finally:
        os.umask(before)
    made = {path for directory in group.directories() for path in (directory, directory.parent)}
    assert {path.stat().st_mode & 0o777 for path in made} == {0o755}


def test_the_usual_rules_are_written_once_and_never_half(
    v1_mounts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple[Path, object]] = []
    monkeypatch.setattr("runtime.cgroups.v1_devices.set_rules", lambda *arguments: made.append(arguments))
    for name in ("tare-1", "tare-2"):
        V1Cgroup(name, v1_mounts, guard_devices=True).create()
    parent = v1_mounts["devices"] / "tare/@usual"
    assert made == [(parent.with_name(f"@usual.{os.getpid()}"), USUAL)]
    assert sorted(path.name for path in parent.parent.iterdir() if path.name.startswith("@")) == ["@usual"]
    assert sorted(path.name for path in parent.iterdir()) == ["tare-1", "tare-2"]
    parent.joinpath("tare-1").rmdir()
    parent.joinpath("tare-2").rmdir()
    parent.rmdir()

    def refuse(*_: object) -> None:
        raise TareError("limit devices", "less is allowed")

    monkeypatch.setattr("runtime.cgroups.v1_devices.set_rules", refuse)
    with pytest.raises(TareError):
        V1Cgroup("tare-3", v1_mounts, guard_devices=True).create()
    assert [path.name for path in parent.parent.iterdir() if path.name.startswith("@")] == []


def test_freezing_waits_for_the_kernel_and_names_what_did_not_freeze(
    v1_mounts: dict[str, Path], kernel: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    group = V1Cgroup("tare-0", v1_mounts)
    group.freeze()
    group.thaw()
    assert kernel[-1] == ("freezer.state", "THAWED")
    monkeypatch.setattr("runtime.cgroups.v1.write", lambda path, value: path.write_text("FREEZING\n"))
    with pytest.raises(TareError, match="not FROZEN after"):
        group.set_frozen(True, timeout_s=0.01)
