"""Run inside the stand-in by `test_standin.py`: what only a unified hierarchy has, and that its limits bite."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups.detect import detect
from runtime.cgroups.v2 import V2Cgroup
from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.errors import TareError
from runtime.instance import Instance
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec, Limits
from tests.host.drivers import Launch, launching

SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"))
MIB = 1 << 20
READY_S, EXEC_S = 120.0, 120.0
ROOT = Path("/sys/fs/cgroup")
SPIN = "while :; do :; done"


@pytest.fixture(scope="module")
def driver(bench_host: Host) -> Iterator[ContainerDriver]:
    driver = ContainerDriver(bench_host)
    assert driver.probe().usable, driver.probe().reason
    yield driver
    driver.close()


@pytest.fixture
def launch(driver: ContainerDriver) -> Iterator[Launch]:
    with launching(driver, SPEC, READY_S) as launch:
        yield launch
    assert list((ROOT / "tare").glob("tare-*")) == []


def counter(instance: Instance, file: str, name: str) -> int:
    """One number of a flat keyed control file of the instance's group."""
    rows = (line.split() for line in (ROOT / "tare" / instance.id / file).read_text().splitlines())
    return next(int(row[1]) for row in rows if row[0] == name)


def _said(instance: Instance, script: str) -> str:
    result = instance.exec(["/bin/sh", "-c", script], EXEC_S)
    return (result.stdout + result.stderr).decode()


def test_this_host_is_pure_v2(driver: ContainerDriver) -> None:
    found = detect()
    assert (found.mode, found.v2, found.v1) == ("v2", ROOT, {})
    assert driver.probe().facts["cgroups"] == "cgroup v2 (v2 host)"


def test_it_is_born_inside_its_group_and_sees_it_as_the_root(launch: Launch) -> None:
    instance = launch(limits=Limits())
    (pid,) = instance.host_pids()
    assert Path(f"/proc/{pid}/cgroup").read_text() == f"0::/tare/{instance.id}\n"
    assert instance._cgroup.join_files() == ()  # type: ignore[attr-defined] # so that nothing but its birth put it there
    inside = instance.exec(["cat", "/proc/self/cgroup", "/sys/fs/cgroup/cgroup.procs"], EXEC_S).check().stdout.split()
    assert inside[:2] == [b"0::/", b"1"]


def test_its_own_view_of_the_hierarchy_is_read_only(launch: Launch) -> None:
    instance = launch(limits=Limits(pids=50))
    for attempt in ("echo max > /sys/fs/cgroup/pids.max", "mkdir /sys/fs/cgroup/x"):
        assert instance.exec(["/bin/sh", "-c", attempt], EXEC_S).exit_code != 0
    assert instance.exec(["cat", "/sys/fs/cgroup/pids.max"], EXEC_S).check().stdout == b"50\n"


def test_a_parent_without_its_controllers_gets_them() -> None:
    """What a process leaves that died while it made the first group since boot."""
    parent = ROOT / "tare-half"
    parent.mkdir()
    try:
        _apply_and_remove(V2Cgroup("one", ROOT, parent=parent.name))
    finally:
        parent.rmdir()


def test_the_first_groups_may_be_made_at_once() -> None:
    failures: list[Exception] = []
    for attempt in range(20):
        parent, start = f"tare-race-{attempt}", threading.Barrier(4)

        def make(name: str, parent: str = parent, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                _apply_and_remove(V2Cgroup(name, ROOT, parent=parent))
            except (TareError, OSError) as error:
                failures.append(error)

        threads = [threading.Thread(target=make, args=(name,)) for name in "abcd"]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (ROOT / parent).rmdir()
    assert failures == []


def _apply_and_remove(group: V2Cgroup) -> None:
    try:
        group.create()
        group.apply(Limits(cpus=0.5, memory_bytes=64 * MIB, pids=5))
    finally:
        group.remove()


@pytest.mark.parametrize("cpuset", ["0", "0,1", "0-1", "1,0"])
def test_a_cpu_list_holds_however_it_is_written(launch: Launch, cpuset: str) -> None:
    assert [reading.holds for reading in launch(limits=Limits(cpuset=cpuset)).limit_readings()] == [True]


def test_its_group_guards_devices_by_a_program(launch: Launch) -> None:
    instance = launch(limits=Limits())
    said = _said(instance, "mknod /var/tmp/disk b 254 0 && cat /var/tmp/disk")
    assert "/var/tmp/disk: Operation not permitted" in said
    assert "mknod" not in said
    assert _said(instance, "head -c 1 /dev/zero | wc -c") == "1\n"


def test_every_limit_is_read_back(launch: Launch) -> None:
    limits = Limits(
        cpus=0.5,
        cpu_weight=200,
        cpuset="1",
        memory_bytes=256 * MIB,
        memory_low_bytes=32 * MIB,
        swap_bytes=0,
        pids=64,
        io_read_bps=4 * MIB,
        io_write_bps=8 * MIB,
    )
    readings = launch(limits=limits).limit_readings()
    asked = {field.name for field in dataclasses.fields(limits) if getattr(limits, field.name) is not None}
    assert {reading.name for reading in readings} == asked
    assert [reading for reading in readings if not reading.holds] == []


def test_the_cpu_quota_bites(launch: Launch) -> None:
    instance = launch(limits=Limits(cpus=0.3))
    begun, before = time.monotonic(), instance.usage().cpu_ns or 0
    instance.exec(["timeout", "3", "/bin/sh", "-c", f"({SPIN}) & {SPIN}"], EXEC_S)
    wall_ns, used = (time.monotonic() - begun) * 1e9, (instance.usage().cpu_ns or 0) - before
    instance.exec(["/bin/sh", "-c", "kill -9 -1"], EXEC_S)
    assert 0.05 * wall_ns < used < 0.36 * wall_ns
    assert counter(instance, "cpu.stat", "nr_throttled") > 0


def test_memory_is_refused_to_the_hog_alone(launch: Launch) -> None:
    instance = launch(limits=Limits(memory_bytes=64 * MIB, swap_bytes=0))
    assert instance.exec(["/bin/sh", "-c", "head -c 200m /dev/zero | tail"], EXEC_S).exit_code != 0
    assert counter(instance, "memory.events", "oom_kill") == 1
    assert instance.exec(["true"], EXEC_S).exit_code == 0
    assert (instance.usage().memory_peak_bytes or 0) <= 64 * MIB or instance.usage().memory_peak_bytes is None


def test_a_fork_too_many_is_refused(launch: Launch) -> None:
    instance = launch(limits=Limits(pids=10))
    said = instance.exec(["/bin/sh", "-c", "for i in $(seq 20); do sleep 5 & done"], EXEC_S).stderr
    assert b"Cannot fork" in said
    assert counter(instance, "pids.events", "max") > 0
    assert (instance.usage().pids or 0) <= 10


def test_writes_are_throttled_and_counted(launch: Launch) -> None:
    instance = launch(limits=Limits(io_write_bps=2 * MIB))
    written = ["dd", "if=/dev/zero", "of=/var/tmp/x", "bs=1M", "count=8", "oflag=direct"]
    begun, before = time.monotonic(), instance.usage().io_write_bytes or 0
    instance.exec(written, EXEC_S).check()
    elapsed_s = time.monotonic() - begun
    assert (instance.usage().io_write_bytes or 0) - before >= 8 * MIB
    assert 8 * MIB / elapsed_s < 2.5 * MIB


def test_frozen_it_makes_no_progress_and_thawed_it_goes_on(launch: Launch) -> None:
    instance = launch(limits=Limits())
    spinner = threading.Thread(
        target=lambda: instance.exec(["timeout", "4", "/bin/sh", "-c", SPIN], EXEC_S), daemon=True
    )
    spinner.start()
    time.sleep(1)
    instance.pause()
    frozen = [instance.usage().cpu_ns or 0]
    assert counter(instance, "cgroup.events", "frozen") == 1
    time.sleep(1)
    frozen.append(instance.usage().cpu_ns or 0)
    instance.resume()
    spinner.join()
    late_ns = 10_000_000  # what was running at the freeze may be counted a moment after it
    assert frozen[1] - frozen[0] < late_ns < (instance.usage().cpu_ns or 0) - frozen[1]


def test_a_fatal_signal_ends_what_is_frozen(launch: Launch) -> None:
    instance = launch(limits=Limits())
    instance.pause()
    (pid,) = instance.host_pids()
    os.kill(pid, signal.SIGKILL)
    assert instance.wait_ended(30) == 128 + signal.SIGKILL  # type: ignore[attr-defined]


def test_a_fork_bomb_ends_with_its_instance(launch: Launch) -> None:
    instance = launch(limits=Limits(pids=200, cpus=0.5))
    bomb = "f() { f | f & }; f; sleep 600"
    thread = threading.Thread(target=lambda: _until_closed(instance, bomb), daemon=True)
    thread.start()
    deadline = time.monotonic() + 60
    while counter(instance, "pids.events", "max") == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    pids = instance.host_pids()
    instance.close()
    thread.join(30)
    assert not (ROOT / "tare" / instance.id).exists()
    assert [pid for pid in pids if procfs.state(pid) not in (None, "Z", "X")] == []


def _until_closed(instance: Instance, script: str) -> None:
    with pytest.raises(Exception, match=r"\S"):
        instance.exec(["/bin/sh", "-c", script], EXEC_S)
