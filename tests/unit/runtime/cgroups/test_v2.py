"""cgroup v2 on a recorded tree."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from runtime.cgroups.v2 import V2Cgroup
from runtime.errors import TareError
from runtime.spec import Limits

ALL = Limits(
    cpus=0.5,
    cpu_weight=200,
    cpuset="0-1",
    memory_bytes=64 << 20,
    memory_low_bytes=32 << 20,
    swap_bytes=0,
    pids=20,
    io_read_bps=1000,
    io_write_bps=2000,
)


def test_every_limit_is_written(v2_mount: Path, kernel: list[tuple[str, str]]) -> None:
    V2Cgroup("tare-0", v2_mount, io_device="254:0").apply(ALL)
    assert kernel == [
        ("cpuset.cpus", "0-1"),
        ("cpu.max", "50000 100000"),
        ("cpu.weight", "200"),
        ("memory.max", str(64 << 20)),
        ("memory.swap.max", "0"),
        ("memory.low", str(32 << 20)),
        ("pids.max", "20"),
        ("io.max", "254:0 rbps=1000"),
        ("io.max", "254:0 wbps=2000"),
    ]


def test_limits_read_back_as_the_kernel_shows_them(v2_mount: Path, kernel: list[tuple[str, str]]) -> None:
    group = V2Cgroup("tare-0", v2_mount, io_device="254:0")
    group.apply(ALL)
    (group.path / "io.max").write_text("253:0 rbps=7 wbps=7\n254:0 rbps=1000 wbps=2000 riops=max wiops=max\n")
    assert [reading.name for reading in group.readings(ALL) if not reading.holds] == []
    (group.path / "io.max").write_text("254:0 rbps=1000 wbps=max riops=max wiops=max\n")
    assert [reading.name for reading in group.readings(ALL) if not reading.holds] == ["io_write_bps"]


def test_io_weight_goes_to_the_mechanism_that_weighs(
    v2_mount: Path, kernel: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    group, limits = V2Cgroup("tare-0", v2_mount, io_device="254:0"), Limits(io_weight=50)
    for name in ("io.weight", "io.bfq.weight"):
        (group.path / name).write_text("default 100\n")
    with pytest.raises(TareError, match="io_weight: the scheduler"):
        group.apply(limits)
    (v2_mount / "io.cost.qos").write_text("254:0 enable=1 ctrl=auto rpct=95.00\n")
    group.apply(limits)
    monkeypatch.setattr("runtime.cgroups.v2_controls.scheduler", lambda device: "bfq")
    group.apply(limits)
    assert kernel == [("io.weight", "default 50"), ("io.bfq.weight", "default 50")]
    (group.path / "io.bfq.weight").write_text("default 50\n254:0 70\n")
    assert group.readings(limits)[0].holds


def test_usage_comes_from_the_unified_files(v2_mount: Path) -> None:
    usage = V2Cgroup("tare-0", v2_mount).usage()
    assert (usage.method, usage.cpu_ns, usage.memory_bytes, usage.memory_peak_bytes, usage.pids) == (
        "cgroup v2",
        2_500_000,
        4096,
        8192,
        3,
    )
    assert (usage.io_read_bytes, usage.io_write_bytes) == (1001, 22)


def test_usage_of_an_absent_group_is_absent(tmp_path: Path) -> None:
    usage = V2Cgroup("tare-0", tmp_path).usage()
    assert (usage.cpu_ns, usage.memory_bytes, usage.io_read_bytes) == (None, None, None)


def test_processes_are_born_inside(v2_mount: Path) -> None:
    group = V2Cgroup("tare-0", v2_mount)
    assert group.clone_into() == v2_mount / "tare/tare-0"
    assert group.join_files() == ()
    assert group.pids() == (11, 12)


def test_first_group_hands_the_controllers_down(
    v2_mount: Path, kernel: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        made(path, mode, exist_ok=exist_ok)
        (path / "cgroup.controllers").write_text("cpu memory\n")
        (path / "cgroup.subtree_control").touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    V2Cgroup("tare-1", v2_mount, parent="new").create()
    assert [value for _, value in kernel] == ["+cpuset", "+io", "+cpu", "+memory", "+pids", "+cpu", "+memory"]


def test_a_half_made_parent_is_completed_and_a_whole_one_left_alone(
    v2_mount: Path, kernel: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = v2_mount / "tare"
    (parent / "cgroup.controllers").write_text("cpu memory pids\n")
    (parent / "cgroup.subtree_control").touch()
    V2Cgroup("tare-1", v2_mount).create()
    assert [value for _, value in kernel][-3:] == ["+cpu", "+memory", "+pids"]
    kernel.clear()
    made = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777) -> None:
        made(path, mode)
        (path / "pids.max").touch()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    V2Cgroup("tare-2", v2_mount).create()
    assert kernel == []


def test_controllers_that_somebody_else_enables_right_now_are_waited_for(
    v2_mount: Path, kernel: list[tuple[str, str]]
) -> None:
    """The kernel names them before the files are there, and holds up a writer until they are."""
    (v2_mount / "cgroup.subtree_control").write_text("memory pids\n")
    (v2_mount / "tare/cgroup.controllers").write_text("memory pids\n")
    (v2_mount / "tare/cgroup.subtree_control").write_text("memory pids\n")
    V2Cgroup("tare-1", v2_mount).create()
    assert [value for _, value in kernel][-2:] == ["+memory", "+pids"]


def test_a_group_that_vanishes_while_it_is_read_is_removed(v2_mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = V2Cgroup("tare-1", v2_mount)
    (v2_mount / "tare/tare-1").mkdir()

    def vanish(deadline: float) -> None:
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(group, "_await_empty", vanish)
    group.remove()
    assert not group.exists()


def test_a_cpu_list_is_written_as_the_kernel_shows_it(v2_mount: Path, kernel: list[tuple[str, str]]) -> None:
    V2Cgroup("tare-0", v2_mount).apply(Limits(cpuset="3,1,0"))
    assert kernel == [("cpuset.cpus", "0-1,3")]


def test_freezing_reads_the_event_file_until_it_says_so(v2_mount: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = V2Cgroup("tare-0", v2_mount)

    def write(path: Path, value: str) -> None:
        (group.path / "cgroup.events").write_text(f"populated 1\nfrozen {value}\n")

    monkeypatch.setattr("runtime.cgroups.v2.write", write)
    group.freeze()
    group.thaw()
    monkeypatch.setattr("runtime.cgroups.v2.write", lambda path, value: None)
    with pytest.raises(TareError, match="frozen is not 1"):
        group.set_frozen(True, timeout_s=0.01)
