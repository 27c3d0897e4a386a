"""Every control of a group, on whichever hierarchy the host has: kept as asked, made to bite, or refused by name.

Processes join by themselves: no container is involved. Needs root.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.cgroups import filter as device_filter
from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import Hierarchies, detect, io_device, open_cgroup
from runtime.cgroups.devices import USUAL
from runtime.cgroups.resources import (
    BlockIo,
    Cpu,
    DeviceRule,
    HugepageLimit,
    Memory,
    NetworkClass,
    NetworkPriority,
    Pids,
    Rdma,
    Resources,
    ThrottleDevice,
    WeightDevice,
)
from runtime.command import run
from runtime.errors import TareError
from runtime.ledger import new_id
from runtime.linux import procfs
from tests.conftest import skip_or_fail

MIB = 1 << 20
DISK = io_device(Path("/var/tmp"))
MAJOR, MINOR = (int(part) for part in (DISK or "0:0").split(":"))
Make = Callable[..., Cgroup]


@pytest.fixture
def make(root_user: None) -> Iterator[Make]:
    """Makes groups with limits; afterwards none is left."""
    made: list[Cgroup] = []

    def create(resources: Resources, **options: object) -> Cgroup:
        group = open_cgroup(new_id(), resources, **options)  # type: ignore[arg-type]
        made.append(group)
        try:
            group.create()
        except TareError:
            assert not group.exists()
            raise
        group.apply(resources)
        return group

    try:
        detect()
        open_cgroup(new_id())
    except TareError as error:
        skip_or_fail(str(error))
    yield create
    for group in made:
        group.remove()
        assert not group.exists()


class Inside:
    """A child in the group that runs `work` and exits with what that returns."""

    def __init__(self, group: Cgroup, work: Callable[[], int]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            with suppress(BaseException):
                group.add_pid(os.getpid())
                code = work()
            os._exit(code)

    def wait(self) -> int:
        """The exit code, or minus the signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def inside(group: Cgroup, work: Callable[[], int]) -> int:
    return Inside(group, work).wait()


def _spin(seconds: float) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
    return 0


def _fill(size_bytes: int) -> int:
    """Make so much memory dirty, and keep it."""
    area = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size_bytes, mmap.PAGESIZE):
        area[at] = 1
    return 0


def _hold(size_bytes: int) -> int:
    """Fill so much and wait to be killed."""
    area = mmap.mmap(-1, size_bytes or 1, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size_bytes, mmap.PAGESIZE):
        area[at] = 1
    signal.pause()
    return len(area)


def _unless_refused(make: Make, resources: Resources, name: str) -> Cgroup | None:
    """The group, or None where this host refuses the limit by its name."""
    try:
        return make(resources)
    except TareError as error:
        if f"limit {name}" not in str(error):
            raise
        return None


CONTROLS = {
    "cpu.quota": Resources(cpu=Cpu(quota=50_000, period=200_000)),
    "cpu.burst": Resources(cpu=Cpu(quota=50_000, period=100_000, burst=20_000)),
    "cpu.shares": Resources(cpu=Cpu(shares=512)),
    "cpu.cpus": Resources(cpu=Cpu(cpus="0")),
    "cpu.mems": Resources(cpu=Cpu(mems="0")),
    "cpu.idle": Resources(cpu=Cpu(shares=512, idle=1)),
    "cpu.realtime": Resources(cpu=Cpu(realtime_period=1_000_000, realtime_runtime=0)),
    "memory.limit": Resources(memory=Memory(limit=64 * MIB + 1)),
    "memory.limit=-1": Resources(memory=Memory(limit=-1)),
    "memory.swap": Resources(memory=Memory(limit=64 * MIB, swap=96 * MIB)),
    "memory.swap=-1": Resources(memory=Memory(limit=64 * MIB, swap=-1)),
    "memory.reservation": Resources(memory=Memory(reservation=32 * MIB)),
    "memory.swappiness": Resources(memory=Memory(swappiness=7)),
    "memory.disableOOMKiller": Resources(memory=Memory(limit=64 * MIB, disable_oom_killer=True)),
    "memory.kernelTCP": Resources(memory=Memory(kernel_tcp=4 * MIB)),
    "memory.kernel": Resources(memory=Memory(kernel=4 * MIB)),
    "pids.limit": Resources(pids=Pids(limit=7)),
    "pids.limit=-1": Resources(pids=Pids(limit=-1)),
    "blockIO.weight": Resources(block_io=BlockIo(weight=50)),
    "blockIO.weightDevice": Resources(
        block_io=BlockIo(weight_device=(WeightDevice(major=MAJOR, minor=MINOR, weight=50),))
    ),
    "blockIO.leafWeight": Resources(block_io=BlockIo(leaf_weight=50)),
    "blockIO.throttle": Resources(
        block_io=BlockIo(
            throttle_read_bps_device=(ThrottleDevice(major=MAJOR, minor=MINOR, rate=MIB),),
            throttle_write_bps_device=(ThrottleDevice(major=MAJOR, minor=MINOR, rate=2 * MIB),),
            throttle_read_iops_device=(ThrottleDevice(major=MAJOR, minor=MINOR, rate=100),),
            throttle_write_iops_device=(ThrottleDevice(major=MAJOR, minor=MINOR, rate=200),),
        )
    ),
    "hugepageLimits": Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=5 * MIB),)),
    "devices": Resources(devices=USUAL),
    "devices=all": Resources(devices=(DeviceRule(allow=True),)),
    "devices=none": Resources(devices=()),
    "devices=all but": Resources(
        devices=(DeviceRule(allow=True), DeviceRule(allow=False, type="b", major=MAJOR, minor=MINOR, access="w"))
    ),
    "network.classID": Resources(network=NetworkClass(class_id=0x100001)),
    "network.priorities": Resources(network=NetworkClass(priorities=(NetworkPriority(name="lo", priority=3),))),
    "rdma": Resources(rdma={"mlx4_0": Rdma(hca_handles=2)}),
    "memory.high": Resources(unified={"memory.high": "48M"}),
    "memory.min": Resources(unified={"memory.min": str(16 * MIB)}),
    "memory.nonsense": Resources(unified={"memory.nonsense": "1"}),
}
REFUSED_ON_V2 = {
    "cpu.realtime",
    "memory.swappiness",
    "memory.disableOOMKiller",
    "memory.kernelTCP",
    "memory.kernel",
    "network.classID",
    "network.priorities",
    "blockIO.leafWeight",
    "memory.nonsense",
}
REFUSED_ON_V1 = {"memory.kernel", "memory.high", "memory.min", "memory.nonsense"}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_is_kept_or_refused_by_name_with_nothing_made(make: Make, name: str) -> None:
    resources = CONTROLS[name]
    if DISK is None and "blockIO" in name:
        pytest.skip("/var/tmp lies on no disk")
    group = _unless_refused(make, resources, name.partition("=")[0])
    if group is None:
        return
    assert name not in (REFUSED_ON_V2 if group.method == "cgroup v2" else REFUSED_ON_V1)
    readings = group.readings(resources)
    assert readings
    assert [reading for reading in readings if not reading.holds] == []


def test_what_is_usual_is_kept_here(make: Make) -> None:
    """Nothing of this may be refused on any host that the suite supports."""
    usual = Resources(
        cpu=Cpu(quota=150_000, period=100_000, shares=512, cpus="0"),
        memory=Memory(limit=64 * MIB, swap=64 * MIB, reservation=32 * MIB),
        pids=Pids(limit=20),
        devices=USUAL,
    )
    group = make(usual)
    assert [reading for reading in group.readings(usual) if not reading.holds] == []
    assert group.guards_devices


def test_the_quota_bites_and_is_counted(make: Make) -> None:
    group = make(Resources(cpu=Cpu(quota=20_000, period=100_000)))
    begun = time.monotonic_ns()
    assert inside(group, lambda: _spin(1.0)) == 0
    told = group.statistics().cpu
    assert (told.total_ns or 0) < 0.3 * (time.monotonic_ns() - begun)
    assert (told.throttled_periods or 0) > 0
    assert (told.throttled_ns or 0) > 0


def _nap_and_spin() -> int:
    for _ in range(10):
        time.sleep(0.25)
        begun = time.process_time()
        while time.process_time() - begun < 0.03:
            pass
    return 0


def test_a_burst_is_what_was_saved_before(make: Make) -> None:
    group = make(Resources(cpu=Cpu(quota=10_000, period=100_000, burst=10_000)))
    assert inside(group, _nap_and_spin) == 0
    assert (group.statistics().cpu.bursts or 0) > 0


def _shared_cpu(make: Make, *cpus: Cpu) -> list[int]:
    """CPU time that spinners get on one CPU, a group each, between the first second's begin and end."""
    groups = [make(Resources(cpu=cpu)) for cpu in cpus]
    children = [Inside(group, lambda: _spin(2.5)) for group in groups]
    time.sleep(0.5)
    before = [group.usage().cpu_ns or 0 for group in groups]
    time.sleep(1.5)
    used = [(group.usage().cpu_ns or 0) - start for group, start in zip(groups, before, strict=True)]
    assert [child.wait() for child in children] == [0] * len(groups)
    return used


def test_shares_divide_a_cpu(make: Make) -> None:
    much, little = _shared_cpu(make, Cpu(cpus="0", shares=2048), Cpu(cpus="0", shares=256))
    assert 4 < much / little < 16


def test_an_idle_group_gets_what_others_leave(make: Make) -> None:
    much, little = _shared_cpu(make, Cpu(cpus="0"), Cpu(cpus="0", idle=1))
    assert much > 20 * little


def test_processes_run_on_their_cpus_only(make: Make) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one CPU only")
    group = make(Resources(cpu=Cpu(cpus="1", mems="0")))
    assert inside(group, lambda: int(os.sched_getaffinity(0) == {1})) == 1


def test_a_hog_is_killed_at_the_memory_limit(make: Make) -> None:
    group = make(Resources(memory=Memory(limit=16 * MIB, swap=16 * MIB)))
    assert inside(group, lambda: _fill(64 * MIB)) == -signal.SIGKILL
    told = group.statistics().memory
    assert told.killed == 1
    assert told.memory.limit_bytes == 16 * MIB
    assert told.memory.peak_bytes is None or told.memory.peak_bytes <= 16 * MIB


def test_meeting_the_memory_limit_is_counted(make: Make) -> None:
    """Not where memory and swap are limited to the same: some kernels then count nothing."""
    group = make(Resources(memory=Memory(limit=16 * MIB)))
    inside(group, lambda: _fill(64 * MIB))
    assert (group.statistics().memory.memory.failures or 0) > 0


def test_without_its_killer_a_hog_waits(make: Make) -> None:
    resources = Resources(memory=Memory(limit=16 * MIB, swap=16 * MIB, disable_oom_killer=True))
    group = _unless_refused(make, resources, "memory.disableOOMKiller")
    if group is None:
        return
    child = Inside(group, lambda: _fill(64 * MIB))
    control = (
        next(path for path in group.directories() if (path / "memory.oom_control").exists()) / "memory.oom_control"
    )
    deadline = time.monotonic() + 30
    while "under_oom 1" not in control.read_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert procfs.state(child.pid) not in (None, "Z")
    assert "oom_kill 0" in control.read_text()
    group.update(Resources(memory=Memory(disable_oom_killer=False)))
    assert child.wait() == -signal.SIGKILL


@pytest.fixture
def swap(tmp_path: Path, root_user: None) -> Iterator[None]:
    """A little swap for this test alone."""
    path = Path("/var/tmp") / f"tare-swap-{os.getpid()}"
    path.write_bytes(b"\0" * 64 * MIB)
    path.chmod(0o600)
    try:
        run(["mkswap", str(path)], timeout_s=60)
        run(["swapon", str(path)], timeout_s=60)
    except TareError as error:
        path.unlink()
        skip_or_fail(f"no swap: {error}")
    yield
    run(["swapoff", str(path)], timeout_s=60)
    path.unlink()


def test_swap_bears_what_memory_does_not_and_no_more(make: Make, swap: None) -> None:
    group = make(Resources(memory=Memory(limit=16 * MIB, swap=48 * MIB)))
    assert inside(group, lambda: _fill(32 * MIB)) == 0
    assert inside(group, lambda: _fill(60 * MIB)) == -signal.SIGKILL
    group.update(Resources(memory=Memory(limit=16 * MIB, swap=16 * MIB)))
    assert inside(group, lambda: _fill(32 * MIB)) == -signal.SIGKILL


def test_memory_high_slows_instead_of_killing(make: Make) -> None:
    resources = Resources(memory=Memory(limit=64 * MIB, swap=64 * MIB), unified={"memory.high": str(8 * MIB)})
    group = _unless_refused(make, resources, "memory.high")
    if group is None:
        return
    child = Inside(group, lambda: _fill(16 * MIB))
    events = group.directories()[0] / "memory.events"
    deadline = time.monotonic() + 60
    while "high 0\n" in events.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "high 0\n" not in events.read_text()
    assert "oom_kill 0" in events.read_text()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def _forks() -> int:
    """How many children it can have."""
    for count in range(30):
        try:
            pid = os.fork()
        except OSError as error:
            return count if error.errno == errno.EAGAIN else 98
        if pid == 0:
            signal.pause()
            os._exit(0)
    return 97


def test_a_fork_too_many_is_refused_and_counted(make: Make) -> None:
    group = make(Resources(pids=Pids(limit=5)))
    child = Inside(group, _forks)
    assert child.wait() == 4
    told = group.statistics().pids
    assert (told.limit, told.current) == (5, 4)
    assert told.failures is None or told.failures > 0
    group.kill()


def _write_through(block: int, count: int) -> int:
    """Blocks straight to the disk. Zero when all came through."""
    path = f"/var/tmp/tare-io-{os.getpid()}"
    area = mmap.mmap(-1, block)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o600)
    Path(path).unlink()
    return int(sum(os.pwritev(descriptor, [area], at * block) for at in range(count)) != block * count)


THROTTLES = {
    "write_bps": (1 << 18, 16, 2 * MIB),  # 4 MiB at 2 MiB/s
    "write_iops": (4096, 100, 50),
}


@pytest.mark.parametrize("name", THROTTLES)
def test_the_disk_is_no_faster_than_its_cap(make: Make, name: str) -> None:
    if DISK is None:
        pytest.skip("/var/tmp lies on no disk")
    block, count, rate = THROTTLES[name]
    cap = ThrottleDevice(major=MAJOR, minor=MINOR, rate=rate)
    group = make(Resources(block_io=BlockIo(**{f"throttle_{name}_device": (cap,)})))  # type: ignore[arg-type]
    begun = time.monotonic()
    assert inside(group, lambda: _write_through(block, count)) == 0
    amount = count if name.endswith("iops") else block * count
    assert amount / (time.monotonic() - begun) < 1.3 * rate
    (told,) = [device for device in group.statistics().io if device.device == DISK]
    assert (told.write_bytes or 0) >= block * count
    assert (told.writes or 0) > 0


def test_reads_are_capped_too(make: Make) -> None:
    if DISK is None:
        pytest.skip("/var/tmp lies on no disk")
    path = Path(f"/var/tmp/tare-read-{os.getpid()}")
    path.write_bytes(os.urandom(4 * MIB))
    os.sync()
    cap = ThrottleDevice(major=MAJOR, minor=MINOR, rate=2 * MIB)
    group = make(Resources(block_io=BlockIo(throttle_read_bps_device=(cap,))))

    def read() -> int:
        area = mmap.mmap(-1, 1 << 18)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
        return int(sum(os.preadv(descriptor, [area], at << 18) for at in range(16)) != 4 * MIB)

    begun = time.monotonic()
    try:
        assert inside(group, read) == 0
    finally:
        path.unlink()
    assert 4 * MIB / (time.monotonic() - begun) < 1.3 * 2 * MIB


@pytest.fixture
def weighing_disk(root_user: None) -> Iterator[tuple[int, int, str]]:
    """A loop device whose scheduler is BFQ: major, minor, path."""
    backing = Path(f"/var/tmp/tare-loop-{os.getpid()}")
    backing.write_bytes(b"\0" * 64 * MIB)
    try:
        made = run(["losetup", "--find", "--show", "--direct-io=on", str(backing)], timeout_s=30)
    except TareError as error:
        backing.unlink()
        skip_or_fail(f"no loop device: {error}")
    path = made.stdout.decode().strip()
    number = Path(path).stat().st_rdev
    chooser = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}/queue/scheduler")
    try:
        with suppress(OSError, TareError):
            run(["modprobe", "bfq"], timeout_s=30)
        if "bfq" not in chooser.read_text():
            pytest.skip("no BFQ in this kernel")
        chooser.write_text("bfq")
        yield os.major(number), os.minor(number), path
    finally:
        run(["losetup", "--detach", path], timeout_s=30)
        backing.unlink()


def _read_for(seconds: float, path: str, counter: int) -> int:
    """Read blocks straight from the disk, and write their number to a pipe."""
    area, done, size = mmap.mmap(-1, 1 << 16), 0, 60 * MIB
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECT)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done += os.preadv(descriptor, [area], (done << 16) % size) >> 16
    os.write(counter, str(done).encode())
    return 0


def test_weights_divide_a_disk_that_obeys_them(make: Make, weighing_disk: tuple[int, int, str]) -> None:
    major, minor, path = weighing_disk
    counts: list[int] = []
    pipes = [os.pipe() for _ in range(2)]
    children = []
    for weight, (_, end) in zip((1000, 10), pipes, strict=True):
        device = WeightDevice(major=major, minor=minor, weight=weight)
        resources = Resources(block_io=BlockIo(weight=weight, weight_device=(device,)))
        group = make(resources)
        assert [reading for reading in group.readings(resources) if not reading.holds] == []
        children.append(Inside(group, lambda end=end: _read_for(2.0, path, end)))  # type: ignore[misc]
    assert [child.wait() for child in children] == [0, 0]
    for reader, end in pipes:
        counts.append(int(os.read(reader, 20)))
        os.close(reader)
        os.close(end)
    assert counts[0] > 2 * counts[1]


def _tries(path: str, flags: int) -> int:
    """Zero when it opens, or errno."""
    try:
        os.close(os.open(path, flags))
    except OSError as error:
        return error.errno or 98
    return 0


def _makes(kind: int, major: int, minor: int) -> int:
    path = f"/var/tmp/tare-node-{os.getpid()}"
    try:
        os.mknod(path, kind | 0o600, os.makedev(major, minor))
    except OSError as error:
        return error.errno or 98
    Path(path).unlink()
    return 0


WITHOUT_CONTROLLER = "no v1 controller devices: a filter in the v2 mount beside"


def _device_hosts() -> list[tuple[str, Hierarchies | None]]:
    """The host as it is, and where it is hybrid, as one whose v1 has no devices: the v2 mount then has the filter."""
    hosts: list[tuple[str, Hierarchies | None]] = [("as it is", None)]
    found = detect()
    if found.mode == "hybrid" and "devices" in found.v1:
        left = {name: path for name, path in found.v1.items() if name != "devices"}
        hosts.append((WITHOUT_CONTROLLER, Hierarchies(left, found.v2, found.v2_controllers)))
    return hosts


@pytest.mark.parametrize(
    ("what", "hierarchies"), _device_hosts(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_devices_are_made_and_opened_as_the_rules_say(make: Make, what: str, hierarchies: Hierarchies | None) -> None:
    rules = (
        DeviceRule(allow=False),
        DeviceRule(allow=True, type="c", major=1, minor=3, access="rw"),  # null
        DeviceRule(allow=True, type="c", major=1, minor=5, access="r"),  # zero
        DeviceRule(allow=True, type="c", major=1, minor=9, access="m"),  # urandom
    )
    resources = Resources(devices=rules)
    group = make(resources, hierarchies=hierarchies)
    assert group.guards_devices
    assert [reading.holds for reading in group.readings(resources)] == [True]
    denied = errno.EPERM
    assert inside(group, lambda: _tries("/dev/null", os.O_RDWR)) == 0
    assert inside(group, lambda: _tries("/dev/zero", os.O_RDONLY)) == 0
    assert inside(group, lambda: _tries("/dev/zero", os.O_RDWR)) == denied
    assert inside(group, lambda: _tries("/dev/urandom", os.O_RDONLY)) == denied
    assert inside(group, lambda: _makes(stat.S_IFCHR, 1, 9)) == 0
    assert inside(group, lambda: _makes(stat.S_IFCHR, 1, 3)) == denied
    assert inside(group, lambda: _makes(stat.S_IFBLK, 1, 9)) == denied
    wider = Resources(devices=(*rules, DeviceRule(allow=True, type="c", major=1, minor=9, access="r")))
    group.update(wider)
    assert [reading.holds for reading in group.readings(wider)] == [True]
    assert inside(group, lambda: _tries("/dev/urandom", os.O_RDONLY)) == 0
    group.update(resources)
    assert inside(group, lambda: _tries("/dev/urandom", os.O_RDONLY)) == denied


def test_a_guarded_group_has_the_usual_devices_and_not_the_disk(make: Make) -> None:
    group = make(Resources(), guard_devices=True)
    for name in ("null", "zero", "full", "random", "urandom"):
        assert inside(group, lambda name=name: _tries(f"/dev/{name}", os.O_RDONLY)) == 0  # type: ignore[misc]
    assert inside(group, lambda: _makes(stat.S_IFBLK, MAJOR, MINOR)) == 0
    node = Path(f"/dev/block/{DISK}")
    if node.exists():
        assert inside(group, lambda: _tries(str(node), os.O_RDONLY)) == errno.EPERM


@pytest.fixture
def huge_pages(root_user: None) -> Iterator[None]:
    """Four huge pages of 2 MiB for this test alone."""
    pool = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages")
    if not pool.exists():
        skip_or_fail("no huge pages of 2 MiB")
    before = int(pool.read_text())
    pool.write_text(str(before + 4))
    if int(pool.read_text()) < before + 4:
        pool.write_text(str(before))
        skip_or_fail("no memory for huge pages")
    yield
    pool.write_text(str(before))


def _huge(count: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
    try:
        area = mmap.mmap(-1, count * 2 * MIB, flags=flags)
    except OSError as error:
        return error.errno or 98
    for at in range(count):
        area[at * 2 * MIB] = 1
    return 0


def test_huge_pages_are_limited_on_whichever_version_has_them(make: Make, huge_pages: None) -> None:
    resources = Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=4 * MIB),))
    group = _unless_refused(make, resources, "hugepageLimits")
    if group is None:
        return
    assert [reading for reading in group.readings(resources) if not reading.holds] == []
    assert inside(group, lambda: _huge(2)) == 0
    assert inside(group, lambda: _huge(3)) in (errno.ENOMEM, -signal.SIGBUS)
    assert group.statistics().huge_pages["2MB"].limit_bytes == 4 * MIB


def test_a_process_joins_by_itself_wherever_the_group_has_a_directory(make: Make) -> None:
    """On a hybrid host with a limit of huge pages that is v1 and v2 at once."""
    group = _unless_refused(
        make, Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=0),)), "hugepageLimits"
    )
    if group is None or not group.join_files():
        pytest.skip("on v2 a process is born inside")
    child = os.fork()
    if child == 0:
        for path in group.join_files():
            path.write_text("0")
        signal.pause()
        os._exit(0)
    last = group.directories()[-1]
    while str(child) not in (last / "cgroup.procs").read_text().split():
        assert procfs.state(child) != "Z"
    lines = Path(f"/proc/{child}/cgroup").read_text().splitlines()
    homes = [line for line in lines if line.endswith(f"/tare/{group.id}")]
    assert len(homes) == len(group.directories())
    assert group.pids() == (child,)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_bounds_that_depend_on_each_other_grow_and_shrink(make: Make) -> None:
    group = make(Resources(memory=Memory(limit=32 * MIB, swap=64 * MIB), cpu=Cpu(quota=20_000, burst=10_000)))
    for memory, both, quota, burst in ((128, 128, 90_000, 80_000), (16, 16, 5_000, 2_000), (64, 96, 10_000, 0)):
        changed = Resources(
            memory=Memory(limit=memory * MIB, swap=both * MIB), cpu=Cpu(quota=quota, period=100_000, burst=burst)
        )
        group.update(changed)
        assert [reading for reading in group.readings(changed) if not reading.holds] == []


def test_an_update_that_fails_changes_nothing(make: Make) -> None:
    before = Resources(pids=Pids(limit=9), cpu=Cpu(quota=50_000, period=100_000), memory=Memory(limit=64 * MIB))
    group = make(before)
    with pytest.raises(TareError, match=r"blockIO\.throttleReadBpsDevice"):
        group.update(
            Resources(
                pids=Pids(limit=5),
                cpu=Cpu(quota=10_000),
                memory=Memory(limit=32 * MIB),
                block_io=BlockIo(throttle_read_bps_device=(ThrottleDevice(major=4000, minor=77, rate=1),)),
            )
        )
    assert [reading for reading in group.readings(before) if not reading.holds] == []


def test_an_update_may_ask_to_check_first(make: Make) -> None:
    group = make(Resources(memory=Memory(limit=64 * MIB)))
    child = Inside(group, lambda: _hold(8 * MIB))
    deadline = time.monotonic() + 30
    while (group.usage().memory_bytes or 0) < 8 * MIB and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(TareError, match="bytes are in use"):
        group.update(Resources(memory=Memory(limit=4 * MIB, check_before_update=True)))
    assert procfs.state(child.pid) not in (None, "Z")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_an_update_brings_running_processes_under_a_controller_not_joined_before(make: Make) -> None:
    if (os.cpu_count() or 1) < 2:
        pytest.skip("one CPU only")
    group = make(Resources(pids=Pids(limit=9)))
    child = Inside(group, lambda: _hold(0))
    while group.pids() != (child.pid,):
        assert procfs.state(child.pid) != "Z"
    group.update(Resources(cpu=Cpu(cpus="1")))
    assert os.sched_getaffinity(child.pid) == {1}
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_a_parent_may_be_nested_and_stays(make: Make) -> None:
    resources = Resources(cpu=Cpu(cpus="0", quota=50_000), pids=Pids(limit=5), devices=USUAL)
    top = f"tare-nest-{os.getpid()}"
    group = make(resources, parent=f"{top}/inner.slice")
    assert inside(group, lambda: 7) == 7
    assert [reading for reading in group.readings(resources) if not reading.holds] == []
    group.remove()
    parents = [path.parent for path in group.directories()]
    assert all(path.is_dir() and path.name == "inner.slice" for path in parents)
    for path in dict.fromkeys(parents):
        path.rmdir()
        path.parent.rmdir()


def test_an_empty_group_of_that_name_is_made_anew_and_one_in_use_left_alone(make: Make) -> None:
    first = make(Resources(pids=Pids(limit=5)))
    again = open_cgroup(first.id, Resources())
    again.create()
    assert again.statistics().pids.limit is None
    child = Inside(again, lambda: _hold(0))
    while child.pid not in again.pids():
        assert procfs.state(child.pid) != "Z"
    with pytest.raises(TareError, match="has processes"):
        open_cgroup(first.id, Resources()).create()
    assert procfs.state(child.pid) not in (None, "Z")
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_groups_made_inside_go_with_it(make: Make) -> None:
    group = make(Resources())
    inner = group.directories()[0] / "a" / "b"
    inner.mkdir(parents=True)
    pid = os.fork()
    if pid == 0:
        (inner / "cgroup.procs").write_text("0")
        signal.pause()
        os._exit(0)
    while pid not in group.pids():
        assert procfs.state(pid) != "Z"
    group.kill()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    group.remove()
    assert not group.exists()


def test_statistics_are_a_superset_of_usage(make: Make) -> None:
    group = make(Resources(pids=Pids(limit=9), memory=Memory(limit=64 * MIB)))
    child = Inside(group, lambda: _spin(0.2) or _hold(4 * MIB))
    deadline = time.monotonic() + 30
    # Charges are kept per CPU and settle late, so that memory read twice may differ.
    while (group.statistics().memory.anonymous_bytes or 0) < 4 * MIB and time.monotonic() < deadline:
        time.sleep(0.01)
    group.freeze()
    told, usage = group.statistics(), group.usage()
    assert told.usage().cpu_ns == usage.cpu_ns
    assert (told.usage().method, told.usage().pids) == (usage.method, usage.pids) == (group.method, 1)
    assert (told.cpu.user_ns or 0) + (told.cpu.system_ns or 0) > 0
    assert (told.memory.anonymous_bytes or 0) >= 4 * MIB
    assert told.memory.memory.limit_bytes == 64 * MIB
    assert told.memory.detail
    group.thaw()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


def test_a_program_closed_by_somebody_else_is_loaded_again(make: Make) -> None:
    """As one does who becomes a daemon."""
    found = detect()
    if found.v2 is None:
        pytest.skip("no v2 mount")
    for attempt in range(2):
        directory = found.v2 / f"tare-filter-{os.getpid()}"
        directory.mkdir()
        try:
            device_filter.attach(directory, USUAL)
            assert device_filter.reading(directory, USUAL).holds, attempt
            for descriptor in device_filter._KEPT.values():
                os.dup2(0, descriptor)
        finally:
            directory.rmdir()
    for descriptor in device_filter._KEPT.values():
        os.close(descriptor)
    device_filter._KEPT.clear()
