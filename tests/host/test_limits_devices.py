"""Limits of disks, device nodes and huge pages really bite: caps, weights, v1's controller and v2's program.

Needs root.
"""

from __future__ import annotations

import errno
import mmap
import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from runtime.cgroups import filter as device_filter
from runtime.cgroups.detect import Hierarchies, detect
from runtime.cgroups.devices import USUAL
from runtime.cgroups.resources import BlockIo, DeviceRule, HugepageLimit, Resources, ThrottleDevice, WeightDevice
from runtime.command import run
from runtime.errors import TareError
from runtime.linux import procfs
from runtime.linux.pidfd import Pidfd
from tests.conftest import skip_or_fail
from tests.host.groups import DISK, MAJOR, MIB, MINOR, Inside, Make, inside, make, unless_refused

__all__ = ["make"]  # a fixture


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


def test_what_waits_below_a_cap_ends_once_that_is_lifted(make: Make) -> None:
    if DISK is None:
        pytest.skip("/var/tmp lies on no disk")
    slow = ThrottleDevice(major=MAJOR, minor=MINOR, rate=512)
    group = make(Resources(block_io=BlockIo(throttle_write_bps_device=(slow,))))
    writer = Inside(group, lambda: _write_through(1 << 18, 1))  # eight minutes' worth
    with Pidfd.of(writer.pid) as process:
        looks = 0
        while looks < 20:  # a moment of it is any disk's
            looks = looks + 1 if procfs.state(writer.pid) == "D" else 0
            assert not process.wait(0.01)
        process.signal(signal.SIGKILL)
        assert not process.wait(0.2)  # its turn has not come
        assert group.await_end(process.wait, 60)
    assert writer.wait() == -signal.SIGKILL


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
    group = unless_refused(make, resources, "hugepageLimits")
    if group is None:
        return
    assert [reading for reading in group.readings(resources) if not reading.holds] == []
    assert inside(group, lambda: _huge(2)) == 0
    assert inside(group, lambda: _huge(3)) in (errno.ENOMEM, -signal.SIGBUS)
    assert group.statistics().huge_pages["2MB"].limit_bytes == 4 * MIB


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
