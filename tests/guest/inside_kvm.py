"""Run inside the stand-in by `test_standin.py`: guests on KVM, on a host whose control groups are v2 alone.

What every driver must do is the conformance tests' business, also there; here is what emulation cannot show of the
light guests; of the distribution's, `inside_firmware.py`.
"""

from __future__ import annotations

import dataclasses
import re
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from runtime.driver import Driver, Host
from runtime.drivers.libvirt import MicrovmDriver, PreparedGuest
from runtime.drivers.restore import RestoreDriver
from runtime.spec import ImageRef, InstanceSpec, Limits
from runtime.vm import quota
from runtime.vm.guest import Guest
from runtime.vm.plan import Quota
from tests.guest.inside import MIB, ROOT, counter

CPUS = 0.6
LIMITS = Limits(
    cpus=CPUS,
    cpu_weight=200,
    cpuset="1",
    memory_bytes=320 * MIB,
    swap_bytes=0,
    pids=100,
    io_read_bps=64 * MIB,
    io_write_bps=8 * MIB,
)
SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"))
READY_S, EXEC_S = 240.0, 120.0  # bounds, not expectations: all of this is emulated
CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
SPIN = ["timeout", "2", "/bin/sh", "-c", "while :; do :; done"]


@pytest.fixture(scope="module")
def microvm(bench_host: Host) -> Iterator[MicrovmDriver]:
    driver = MicrovmDriver(bench_host)
    need(driver)
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def limited(microvm: MicrovmDriver) -> Iterator[Guest]:
    """One guest under every limit, for all that leaves it as it was."""
    with microvm.launch(microvm.prepare(dataclasses.replace(SPEC, limits=LIMITS))) as guest:
        guest.wait_ready(READY_S)
        yield guest


def need(driver: Driver) -> None:
    found = driver.probe()
    assert found.usable, found.reason


def said(guest: Guest, *argv: str) -> str:
    return guest.exec(argv, EXEC_S).check().stdout.decode().strip()


def runs_on_kvm(guest: Guest) -> None:
    """The domain is libvirt's KVM kind with the host's CPU, QEMU holds its vCPUs, and the guest knows its clock."""
    domain = ET.fromstring(guest.xml())
    assert domain.get("type") == "kvm"
    assert domain.find("cpu").get("mode") == "host-passthrough"  # type: ignore[union-attr]
    (pid,) = guest.host_pids()
    held = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    assert sum(name.startswith("anon_inode:kvm-vcpu") for name in held) == guest.plan.vcpus
    assert said(guest, "cat", CLOCK) == "kvm-clock"
    assert model(said(guest, "cat", "/proc/cpuinfo")) == model(Path("/proc/cpuinfo").read_text())


def model(cpuinfo: str) -> str:
    return next(line.partition(":")[2].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))


def nothing_left(driver: Driver, but: set[Path]) -> None:
    """No group or disk of an instance, `but` those that were there before."""
    assert driver.leftovers() == []
    assert there(driver) == but


def there(driver: Driver) -> set[Path]:
    return {*(ROOT / "tare").glob("tare-*"), *driver.host.root.glob("instances/tare-*")}


def test_kvm_wins_the_race_by_itself(microvm: MicrovmDriver) -> None:
    before = there(microvm)
    chosen = microvm.prepare(SPEC).accelerator
    assert (chosen.name, chosen.forced) == ("kvm", False), chosen.reason
    assert re.match(r"the guest was in userland on KVM after [\d.]+ s, TCG ", chosen.reason)
    facts = microvm.probe().facts
    assert (facts["accelerator"], facts["cpu model"]) == ("kvm", "host-passthrough")
    nothing_left(microvm, before)
    print(chosen.reason)  # noqa: T201 - the figure belongs to the test's account


def test_microvm_runs_on_kvm(limited: Guest) -> None:
    assert [name for name, _ in limited.timeline] == ["request", "disk", "spawned", "userland", "ready"]
    runs_on_kvm(limited)


def test_every_limit_of_the_domain_reads_back(limited: Guest) -> None:
    readings = {reading.name: reading for reading in limited.limit_readings()}
    assert [reading for reading in readings.values() if not reading.holds] == []
    asked = {field.name for field in dataclasses.fields(LIMITS) if getattr(LIMITS, field.name) is not None}
    assert asked | {"vCPU 0 pinned"} <= readings.keys()


def test_all_of_qemu_lives_in_the_one_group(limited: Guest) -> None:
    (pid,) = limited.host_pids()
    groups = {(thread / "cgroup").read_text() for thread in Path(f"/proc/{pid}/task").iterdir()}
    assert groups == {f"0::/tare/{limited.id}\n"}


def test_its_cpu_limit_bites(limited: Guest) -> None:
    begun, before = time.monotonic(), limited.usage().cpu_ns or 0
    limited.exec(SPIN, EXEC_S)
    used = ((limited.usage().cpu_ns or 0) - before) / 1e9 / (time.monotonic() - begun)
    assert 0.2 * CPUS < used < 1.2 * CPUS
    assert counter(limited, "cpu.stat", "nr_throttled") > 0


def test_its_memory_is_charged_to_it(limited: Guest) -> None:
    usage = limited.usage()
    assert usage.memory_bytes is not None
    assert usage.pss_bytes is not None
    assert 0.5 * usage.pss_bytes < usage.memory_bytes <= (LIMITS.memory_bytes or 0)


def test_its_write_limit_bites(limited: Guest) -> None:
    assert limited.plan.cache == "none"
    before, begun = limited.usage().io_write_bytes or 0, time.monotonic()
    said(limited, "dd", "if=/dev/zero", "of=/root/ballast", "bs=1M", "count=24", "oflag=direct", "conv=fsync")
    elapsed_s, written = time.monotonic() - begun, (limited.usage().io_write_bytes or 0) - before
    assert written >= 24 * MIB
    assert written / elapsed_s < 1.25 * (LIMITS.io_write_bps or 0)


def test_on_the_vcpus_alone_a_limit_binds_their_threaded_group(microvm: MicrovmDriver) -> None:
    existing = there(microvm)
    prepared = microvm.prepare(dataclasses.replace(SPEC, limits=Limits(cpus=CPUS)))
    with microvm.launch(with_plan(prepared, quota=Quota.VCPUS)) as guest:
        guest.wait_ready(READY_S)
        assert [reading for reading in guest.limit_readings() if not reading.holds] == []
        (pid,) = guest.host_pids()
        (vcpu,) = quota.vcpu_threads(pid, 1)
        group = ROOT / "tare" / guest.id / quota.GROUP
        assert (group / "cgroup.type").read_text() == "threaded\n"
        others = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {vcpu}
        assert {Path(f"/proc/{pid}/task/{other}/cgroup").read_text() for other in others} == {f"0::/tare/{guest.id}\n"}
        begun, before = time.monotonic(), group_cpu_s(group)
        guest.exec(SPIN, EXEC_S)
        assert 0.2 * CPUS < (group_cpu_s(group) - before) / (time.monotonic() - begun) < 1.2 * CPUS
    nothing_left(microvm, existing)


def with_plan(prepared: PreparedGuest, **changes: object) -> PreparedGuest:
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, **changes))  # type: ignore[arg-type]


def group_cpu_s(group: Path) -> float:
    rows = (line.split() for line in (group / "cpu.stat").read_text().splitlines())
    return next(int(row[1]) for row in rows if row[0] == "usage_usec") / 1e6


def test_restored_guests_run_on_kvm_with_a_clock_that_goes(bench_host: Host) -> None:
    with closing(RestoreDriver(bench_host)) as driver:
        need(driver)
        before = there(driver)
        prepared = driver.prepare(SPEC)
        assert prepared.accelerator.name == "kvm"
        names = set()
        for _ in range(2):
            with driver.launch(prepared) as guest:
                guest.wait_ready(READY_S)
                runs_on_kvm(guest)
                assert "kernel" not in [name for name, _ in guest.timeline]
                assert abs(float(said(guest, "date", "+%s")) - time.time()) < 30
                assert guest.exec(["timeout", "1", "sleep", "60"], EXEC_S).exit_code == 124  # its timers fire
                names.add(said(guest, "cat", "/etc/machine-id"))
        assert len(names) == 2
        nothing_left(driver, before)
