"""Groups in use: limits updated under running processes; groups joined, nested, made anew, and counted.

Needs root.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from runtime.cgroups.detect import open_cgroup
from runtime.cgroups.devices import USUAL
from runtime.cgroups.resources import BlockIo, Cpu, HugepageLimit, Memory, Pids, Resources, ThrottleDevice
from runtime.errors import TareError
from runtime.linux import procfs
from tests.host.groups import MIB, Inside, Make, hold, inside, make, spin, unless_refused

__all__ = ["make"]  # a fixture


# On a hybrid host that of huge pages is v1 and v2 at once.
@pytest.mark.parametrize(
    ("limit", "resources"),
    [
        ("pids", Resources(pids=Pids(limit=9))),
        ("hugepageLimits", Resources(hugepage_limits=(HugepageLimit(page_size="2MB", limit=0),))),
    ],
)
def test_a_process_joins_by_itself_wherever_the_group_has_a_directory(
    make: Make, limit: str, resources: Resources
) -> None:
    group = unless_refused(make, resources, limit)
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
    child = Inside(group, lambda: hold(8 * MIB))
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
    child = Inside(group, lambda: hold(0))
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
    child = Inside(again, lambda: hold(0))
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
    child = Inside(group, lambda: spin(0.2) or hold(4 * MIB))
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
