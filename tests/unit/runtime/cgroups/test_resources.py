"""Resources in the words of both versions, on recorded trees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.resources import (
    BlockIo,
    Cpu,
    HugepageLimit,
    Memory,
    NetworkClass,
    NetworkPriority,
    Pids,
    Rdma,
    Resources,
    ThrottleDevice,
    WeightDevice,
    of_limits,
)
from runtime.cgroups.v1 import V1Cgroup
from runtime.cgroups.v2 import V2Cgroup
from runtime.cgroups.weights import cpu_shares, cpu_weight, io_weight
from runtime.errors import TareError
from runtime.spec import Limits

MIB = 1 << 20
Written = list[tuple[str, str]]


def _cap(rate: int) -> tuple[ThrottleDevice, ...]:
    return (ThrottleDevice(major=254, minor=0, rate=rate),)


EVERYTHING = Resources(
    cpu=Cpu(shares=512, quota=40_000, period=50_000, burst=10_000, cpus="1,0", mems="0"),
    memory=Memory(limit=64 * MIB, swap=96 * MIB, reservation=32 * MIB),
    pids=Pids(limit=9),
    block_io=BlockIo(
        throttle_read_bps_device=_cap(1000),
        throttle_write_bps_device=_cap(2000),
        throttle_read_iops_device=_cap(30),
        throttle_write_iops_device=_cap(40),
    ),
    hugepage_limits=(HugepageLimit(page_size="2MB", limit=5 * MIB),),
    rdma={"mlx4_0": Rdma(hca_handles=3, hca_objects=10)},
)


@pytest.fixture
def touch(v1_mounts: dict[str, Path], v2_mount: Path) -> Callable[..., None]:
    """Adds files to the group `tare/tare-0`, of either version."""

    def add(*names: str, text: str = "") -> None:
        for name in names:
            v1 = v1_mounts.get(name.partition(".")[0])
            for group in (v2_mount / "tare/tare-0", *(() if v1 is None else (v1 / "tare/tare-0",))):
                (group / name).write_text(text)

    return add


@pytest.fixture
def v1(v1_mounts: dict[str, Path], kernel: Written) -> Cgroup:
    for name, files in {
        "hugetlb": ("hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.rsvd.limit_in_bytes"),
        "rdma": ("rdma.max",),
        "net_cls": ("net_cls.classid",),
        "net_prio": ("net_prio.ifpriomap",),
        "cpu": ("cpu.cfs_burst_us", "cpu.idle", "cpu.rt_period_us", "cpu.rt_runtime_us"),
        "memory": ("memory.swappiness", "memory.oom_control", "memory.kmem.tcp.limit_in_bytes"),
        "blkio": tuple(f"blkio.throttle.{way}_iops_device" for way in ("read", "write")),
    }.items():
        mount = v1_mounts.setdefault(name, v1_mounts["cpu"].parent / name)
        for file in files:
            (mount / "tare/tare-0").mkdir(parents=True, exist_ok=True)
            (mount / "tare/tare-0" / file).touch()
    return V1Cgroup("tare-0", v1_mounts)


@pytest.fixture
def v2(v2_mount: Path, kernel: Written) -> Cgroup:
    (v2_mount / "tare/cgroup.controllers").write_text("cpuset cpu io memory hugetlb pids rdma\n")
    (v2_mount / "tare/cgroup.subtree_control").write_text("cpuset cpu io memory hugetlb pids rdma\n")
    (v2_mount / "cgroup.subtree_control").write_text("cpuset cpu io memory hugetlb pids rdma\n")
    for name in ("cpuset.mems", "cpu.max.burst", "cpu.idle", "hugetlb.2MB.max", "hugetlb.2MB.rsvd.max", "rdma.max"):
        (v2_mount / "tare/tare-0" / name).touch()
    for name in ("memory.high", "cgroup.max.depth"):
        (v2_mount / "tare/tare-0" / name).touch()
    return V2Cgroup("tare-0", v2_mount)


def test_everything_in_v1s_words(v1: Cgroup, kernel: Written) -> None:
    v1.apply(EVERYTHING)
    assert kernel == [
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("cpu.cfs_period_us", "50000"),
        ("cpu.cfs_quota_us", "40000"),
        ("cpu.cfs_burst_us", "10000"),
        ("cpu.shares", "512"),
        ("memory.limit_in_bytes", str(64 * MIB)),
        ("memory.memsw.limit_in_bytes", str(96 * MIB)),
        ("memory.soft_limit_in_bytes", str(32 * MIB)),
        ("pids.max", "9"),
        ("blkio.throttle.read_bps_device", "254:0 1000"),
        ("blkio.throttle.write_bps_device", "254:0 2000"),
        ("blkio.throttle.read_iops_device", "254:0 30"),
        ("blkio.throttle.write_iops_device", "254:0 40"),
        ("hugetlb.2MB.limit_in_bytes", str(4 * MIB)),
        ("hugetlb.2MB.rsvd.limit_in_bytes", str(4 * MIB)),
        ("rdma.max", "mlx4_0 hca_handle=3 hca_object=10"),
    ]
    assert [reading for reading in v1.readings(EVERYTHING) if not reading.holds] == []


def test_everything_in_v2s_words(v2: Cgroup, kernel: Written, v2_mount: Path) -> None:
    v2.apply(EVERYTHING)
    assert [each for each in kernel if each[0] != "cgroup.subtree_control"] == [
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("cpu.max", "40000 50000"),
        ("cpu.max.burst", "10000"),
        ("cpu.weight", "50"),
        ("memory.max", str(64 * MIB)),
        ("memory.swap.max", str(32 * MIB)),
        ("memory.low", str(32 * MIB)),
        ("pids.max", "9"),
        ("io.max", "254:0 rbps=1000"),
        ("io.max", "254:0 wbps=2000"),
        ("io.max", "254:0 riops=30"),
        ("io.max", "254:0 wiops=40"),
        ("hugetlb.2MB.max", str(4 * MIB)),
        ("hugetlb.2MB.rsvd.max", str(4 * MIB)),
        ("rdma.max", "mlx4_0 hca_handle=3 hca_object=10"),
    ]
    (v2_mount / "tare/tare-0/io.max").write_text("254:0 rbps=1000 wbps=2000 riops=30 wiops=40\n")
    assert [reading for reading in v2.readings(EVERYTHING) if not reading.holds] == []


def test_only_v1_has_these(v1: Cgroup, v2: Cgroup, kernel: Written) -> None:
    old = {
        "memory.swappiness": Resources(memory=Memory(swappiness=7)),
        "memory.disableOOMKiller": Resources(memory=Memory(disable_oom_killer=True)),
        "memory.kernelTCP": Resources(memory=Memory(kernel_tcp=MIB)),
        "network.classID": Resources(network=NetworkClass(class_id=7)),
        "network.priorities": Resources(network=NetworkClass(priorities=(NetworkPriority(name="lo", priority=3),))),
        "cpu.realtimeRuntime": Resources(cpu=Cpu(realtime_runtime=5)),
    }
    for name, resources in old.items():
        with pytest.raises(TareError, match=f"limit {name}: cgroup v2 has none"):
            v2.check(resources)
        v1.apply(resources)
    assert kernel == [
        ("memory.swappiness", "7"),
        ("memory.oom_control", "1"),
        ("memory.kmem.tcp.limit_in_bytes", str(MIB)),
        ("net_cls.classid", "7"),
        ("net_prio.ifpriomap", "lo 3"),
        ("cpu.rt_runtime_us", "5"),
    ]


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("memory.high", "1M", "1048576\n"),
        ("memory.high", "max", "max\n"),
        ("cpu.max", "5000", "5000 100000\n"),
        ("io.max", "254:0 rbps=5 wiops=7", "253:0 rbps=1\n254:0 rbps=5 wbps=max riops=max wiops=7\n"),
        ("cpuset.cpus", "1,0", "0-1\n"),
        ("cgroup.max.depth", "3", "3\n"),
    ],
)
def test_a_file_of_v2_is_written_as_it_is_named(
    v2: Cgroup, kernel: Written, v2_mount: Path, key: str, value: str, shown: str
) -> None:
    resources = Resources(unified={key: value})
    v2.apply(resources)
    assert [row[0] for row in kernel] == [key]
    (v2_mount / "tare/tare-0" / key).write_text(shown)
    assert [reading for reading in v2.readings(resources) if not reading.holds] == []
    (v2_mount / "tare/tare-0" / key).write_text("2-5\n" if "cpus" in key else "4096\n")
    assert [reading.name for reading in v2.readings(resources) if not reading.holds] == [key]


@pytest.mark.parametrize("key", ["../memory.max", "cgroup.procs", "memory", "cgroup.kill", "a/b.c"])
def test_what_is_no_limits_file_is_refused(v2: Cgroup, kernel: Written, key: str) -> None:
    with pytest.raises(TareError, match="not the name of a limit"):
        v2.apply(Resources(unified={key: "1"}))
    assert kernel == []


def test_a_file_of_v2_is_refused_on_v1_by_its_name(v1: Cgroup, kernel: Written) -> None:
    with pytest.raises(TareError, match=r"limit memory\.high: that is cgroup v2's"):
        v1.apply(Resources(unified={"memory.high": "1M"}, pids=Pids(limit=5)))
    assert kernel == []


def test_a_hybrid_host_limits_huge_pages_on_its_v2_mount(
    v1_mounts: dict[str, Path], v2_mount: Path, kernel: Written
) -> None:
    resources = Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=4 * MIB),))
    group = V1Cgroup("tare-0", v1_mounts, wanted=resources, unified=(v2_mount, {"hugetlb"}))
    beside = v2_mount / "tare/tare-0"
    (beside / "hugetlb.2MB.max").touch()
    assert beside in group.directories()
    assert beside / "cgroup.procs" in group.join_files()
    assert beside not in V1Cgroup("tare-0", v1_mounts, unified=(v2_mount, {"hugetlb"})).directories()
    assert "" not in [name for _, name in group.mounts_inside()]
    group.apply(resources)
    assert kernel == [("hugetlb.2MB.max", str(4 * MIB))]
    group.apply(Resources(unified={"hugetlb.2MB.max": "max"}))
    assert kernel[1:] == [("hugetlb.2MB.max", "max")]


def test_without_any_hugetlb_the_limit_is_refused(v1_mounts: dict[str, Path]) -> None:
    with pytest.raises(TareError, match="limit hugepageLimits: this host has no v1 controller hugetlb"):
        V1Cgroup("tare-0", v1_mounts).check(Resources(hugepage_limits=EVERYTHING.hugepage_limits))


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        (Resources(cpu=Cpu(shares=1)), r"limit cpu\.shares: 1 does not lie"),
        (Resources(cpu=Cpu(cpus="0-x")), r"limit cpu\.cpus: '0-x'"),
        (Resources(memory=Memory(limit=2 * MIB, swap=MIB)), r"limit memory\.swap: .*fewer than"),
        (Resources(memory=Memory(swappiness=101)), r"limit memory\.swappiness"),
        (Resources(memory=Memory(kernel=MIB)), r"limit memory\.kernel: "),
        (Resources(memory=Memory(use_hierarchy=False)), r"limit memory\.useHierarchy"),
        (Resources(hugepage_limits=(HugepageLimit(page_size="2", limit=1),)), r"limit hugepageLimits: .*'2'"),
        (Resources(block_io=BlockIo(weight=1001)), r"limit blockIO\.weight"),
        (Resources(block_io=BlockIo(leaf_weight=10)), r"limit blockIO\.leafWeight"),
        (
            Resources(block_io=BlockIo(weight_device=(WeightDevice(major=1, minor=0, leaf_weight=9),))),
            r"limit blockIO\.weightDevice\.leafWeight",
        ),
    ],
)
@pytest.mark.parametrize("version", ["v1", "v2"])
def test_nonsense_is_refused_by_name_and_nothing_written(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    kernel: Written,
    version: str,
    resources: Resources,
    message: str,
) -> None:
    group = request.getfixturevalue(version)
    for module in ("v1_controls", "v2_controls"):
        monkeypatch.setattr(f"runtime.cgroups.{module}.schedulers", lambda: ["bfq"])
    with pytest.raises(TareError, match=message):
        group.apply(resources)
    assert kernel == []


def test_docker_says_nothing_with_these_values(v1: Cgroup, v2: Cgroup, kernel: Written) -> None:
    nothing = Resources(
        cpu=Cpu(shares=0, quota=0, period=0, cpus="", mems=""),
        memory=Memory(limit=0, swap=0, swappiness=(1 << 64) - 1, kernel=0),
        block_io=BlockIo(weight=0, leaf_weight=0),
        network=NetworkClass(),
    )
    v1.apply(nothing)
    v2.apply(nothing)
    assert kernel == []


def test_unlimited_is_minus_one(v1: Cgroup, v2: Cgroup, kernel: Written) -> None:
    unlimited = Resources(memory=Memory(limit=-1), cpu=Cpu(quota=-1, period=100_000), pids=Pids(limit=-1))
    v1.apply(unlimited)
    v2.apply(unlimited)
    assert kernel == [
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "-1"),
        ("memory.limit_in_bytes", "-1"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("pids.max", "max"),
        ("cpu.max", "max 100000"),
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("pids.max", "max"),
    ]


def test_a_period_alone_keeps_the_quota_on_v2(v2: Cgroup, kernel: Written) -> None:
    v2.apply(Resources(cpu=Cpu(quota=30_000)))
    v2.update(Resources(cpu=Cpu(period=50_000)))
    assert kernel == [("cpu.max", "30000 100000"), ("cpu.max", "30000 50000")]


def test_swap_alone_is_counted_from_the_limit_that_is_there_on_v2(v2: Cgroup, kernel: Written) -> None:
    with pytest.raises(TareError, match=r"limit memory\.swap: .*memory is not"):
        v2.update(Resources(memory=Memory(swap=8 * MIB)))
    v2.apply(Resources(memory=Memory(limit=4 * MIB)))
    v2.update(Resources(memory=Memory(swap=8 * MIB)))
    assert kernel == [("memory.max", str(4 * MIB)), ("memory.swap.max", str(4 * MIB))]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_an_idle_group_has_no_shares(request: pytest.FixtureRequest, kernel: Written, version: str) -> None:
    request.getfixturevalue(version).apply(Resources(cpu=Cpu(shares=512, idle=1)))
    assert kernel == [("cpu.idle", "1")]


@pytest.mark.parametrize(("shares", "weight"), [(2, 1), (1024, 100), (512, 50), (262144, 10000)])
def test_shares_become_weight_in_the_kernels_proportion(shares: int, weight: int) -> None:
    assert cpu_weight(shares) == weight


def test_a_weight_survives_the_way_by_shares() -> None:
    assert all(cpu_weight(cpu_shares(weight)) == weight for weight in range(1, 10001))


@pytest.mark.parametrize(("weight", "shown"), [(10, 1), (500, 4950), (1000, 10000)])
def test_block_io_weight_becomes_io_weight(weight: int, shown: int) -> None:
    assert io_weight(weight) == shown


def test_io_weight_by_its_mechanism(
    v2: Cgroup, kernel: Written, v2_mount: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("io.weight", "io.bfq.weight"):
        (v2_mount / "tare/tare-0" / name).write_text("default 100\n")
    device = WeightDevice(major=254, minor=0, weight=500)
    resources = Resources(block_io=BlockIo(weight=500, weight_device=(device,)))
    (v2_mount / "io.cost.qos").write_text("254:0 enable=1 ctrl=auto rpct=95.00\n")
    monkeypatch.setattr("runtime.cgroups.v2_controls.schedulers", list)
    v2.apply(resources)
    monkeypatch.setattr("runtime.cgroups.v2_controls.schedulers", lambda: ["bfq"])
    monkeypatch.setattr("runtime.cgroups.v2_controls.scheduler", lambda device: "bfq")
    v2.apply(Resources(block_io=BlockIo(weight=500)))
    assert kernel == [("io.weight", "default 4950"), ("io.weight", "254:0 4950"), ("io.bfq.weight", "default 500")]


def test_limits_and_their_resources_say_the_same() -> None:
    limits = Limits(
        cpus=1.5, cpu_weight=200, memory_bytes=MIB << 6, swap_bytes=MIB, pids=7, io_read_bps=5, io_weight=20
    )
    assert of_limits(limits, "254:0") == Resources(
        cpu=Cpu(quota=150_000, period=100_000, shares=2048),
        memory=Memory(limit=64 * MIB, swap=65 * MIB),
        pids=Pids(limit=7),
        block_io=BlockIo(weight=20, throttle_read_bps_device=_cap(5)),
    )
    assert of_limits(Limits()) == Resources()


def test_creating_for_a_limit_that_the_host_lacks_leaves_nothing(v1_mounts: dict[str, Path], kernel: Written) -> None:
    resources = Resources(pids=Pids(limit=5), rdma={"mlx": Rdma(hca_handles=1)})
    group = V1Cgroup("tare-9", v1_mounts, wanted=resources)
    with pytest.raises(TareError, match="limit rdma"):
        group.create()
    assert not group.exists()
    assert kernel == []


def test_an_update_checks_first_where_that_is_asked(v2: Cgroup, kernel: Written) -> None:
    with pytest.raises(TareError, match=r"limit memory\.limit: 4096 bytes are in use"):
        v2.update(Resources(memory=Memory(limit=1000, check_before_update=True)))
    assert kernel == []
