"""Every control of a group, on whichever hierarchy the host has: kept as asked, made to bite, or refused by name.

Here CPUs, memory and tasks; `test_limits_devices` has disks, device nodes and huge pages, `test_limits_update` what
changes under running processes. Processes join by themselves: no container is involved. Needs root.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

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
from runtime.linux import procfs
from tests.conftest import skip_or_fail
from tests.host.groups import DISK, MAJOR, MIB, MINOR, Inside, Make, inside, make, spin, unless_refused

__all__ = ["make"]  # a fixture


def _fill(size_bytes: int) -> int:
    """Make so much memory dirty, and keep it."""
    area = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for at in range(0, size_bytes, mmap.PAGESIZE):
        area[at] = 1
    return 0


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
    group = unless_refused(make, resources, name.partition("=")[0])
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
    assert inside(group, lambda: spin(1.0)) == 0
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
    """CPU time that spinners get on one CPU, a group each, in the same second and a half."""
    groups = [make(Resources(cpu=cpu)) for cpu in cpus]
    children = [Inside(group, lambda: spin(60)) for group in groups]
    while any(group.pids() != (child.pid,) for group, child in zip(groups, children, strict=True)):
        assert all(procfs.state(child.pid) != "Z" for child in children)
    before = [group.usage().cpu_ns or 0 for group in groups]
    time.sleep(1.5)
    used = [(group.usage().cpu_ns or 0) - start for group, start in zip(groups, before, strict=True)]
    for child in children:
        os.kill(child.pid, signal.SIGKILL)
    assert [child.wait() for child in children] == [-signal.SIGKILL] * len(groups)
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
    group = unless_refused(make, resources, "memory.disableOOMKiller")
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
    group = unless_refused(make, resources, "memory.high")
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
