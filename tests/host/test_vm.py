"""Real guests through libvirt, here under whatever accelerator the host has: limits, bad ends.

What every driver must do is the conformance tests' business; here is what only virtual machines have, on
the lightest: the distribution's own has `test_vm_distribution`.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Driver, Host
from runtime.drivers import libvirt as drivers
from runtime.drivers.libvirt import MicrovmDriver, PreparedGuest, VmDriver
from runtime.errors import TareError
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec, Limits, Mount, MountKind, NetworkMode, NetworkSpec, Ready
from runtime.vm import accelerator, quota
from runtime.vm.domain import MIB, DirectKernel
from runtime.vm.guest import Guest
from runtime.vm.plan import MINIMUM_MEMORY_BYTES, Quota, overhead_bytes
from tests.host.drivers import usable

IMAGE = ImageRef.parse("tare/debian:bookworm")
SPEC = InstanceSpec(image=IMAGE)
READY_S = 180.0  # a bound, not an expectation: emulation on a busy host is slow


@pytest.fixture(scope="module")
def microvm(bench_host: Host) -> Iterator[MicrovmDriver]:
    with usable(MicrovmDriver(bench_host)) as driver:
        yield driver


def nothing_left(driver: Driver) -> None:
    """No QEMU, control group, disk or socket of this state directory."""
    assert driver.leftovers() == []
    assert list(driver.host.run.glob("vm/tare-*")) == []
    assert list(driver.host.root.glob("instances/tare-*/disk.qcow2")) == []


def broken(prepared: PreparedGuest, **changes: object) -> PreparedGuest:
    return dataclasses.replace(prepared, plan=dataclasses.replace(prepared.plan, **changes))  # type: ignore[arg-type]


def test_microvm_runs_the_agent_as_init_and_powers_off_by_itself(microvm: MicrovmDriver) -> None:
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        assert [name for name, _ in guest.timeline] == ["request", "disk", "spawned", "userland", "ready"]
        assert guest.exec(["readlink", "/proc/1/exe"], 60).stdout == b"/usr/lib/tare/agent\n"
        assert b" no_timer_check" in guest.exec(["cat", "/proc/cmdline"], 60).stdout
    assert "Power down" in guest.console()


def test_accelerator_is_found_by_race_kept_and_told(microvm: MicrovmDriver) -> None:
    (microvm.host.root / "cache/accelerator.json").unlink(missing_ok=True)
    prepared = microvm.prepare(SPEC)
    assert prepared.accelerator.name in ("kvm", "tcg")
    assert not prepared.accelerator.forced
    assert microvm.prepare(SPEC).accelerator == prepared.accelerator
    facts = microvm.probe().facts
    assert facts["accelerator"] == prepared.accelerator.name
    assert facts["accelerator reason"] == prepared.accelerator.reason
    another = MicrovmDriver(microvm.host)  # of a later process: it finds the answer without preparing
    assert another.probe().facts["accelerator"] == prepared.accelerator.name
    another.close()
    nothing_left(microvm)


def test_accelerator_can_be_forced_and_is_marked(microvm: MicrovmDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(accelerator.VARIABLE, "tcg")
    assert microvm.prepare(SPEC).accelerator.forced
    assert microvm.probe().facts["accelerator forced"] == "yes"


@pytest.fixture(scope="class")
def guest(microvm: MicrovmDriver) -> Iterator[Guest]:
    limits = Limits(cpus=1.5, memory_bytes=512 * MIB)
    spec = dataclasses.replace(SPEC, limits=limits, env=(("COLOUR", "blue"),))
    with microvm.launch(microvm.prepare(spec)) as guest:
        guest.wait_ready(READY_S)
        yield guest


class TestOneGuest:
    """What leaves a guest as it was."""

    def test_it_sees_what_its_limits_say(self, guest: Guest) -> None:
        assert guest.exec(["nproc"], 60).stdout == b"2\n"
        words = guest.exec(["head", "-n1", "/proc/meminfo"], 60).stdout.split()
        assert 0.8 * guest.plan.memory_bytes < int(words[1]) * 1024 < guest.plan.memory_bytes

    def test_its_memory_is_charged_to_it_from_the_start(self, guest: Guest) -> None:
        usage = guest.usage()
        rss = procfs.rss_bytes(guest.host_pids())
        assert usage.memory_bytes is not None
        assert usage.pss_bytes is not None
        assert usage.pss_bytes <= rss
        # All anonymous memory, QEMU's own included; the program's pages may be charged to whoever came first.
        assert usage.memory_bytes > 0.8 * rss

    def test_commands_get_the_images_and_the_specs_environment(self, guest: Guest) -> None:
        names = [line.partition(b"=")[0] for line in guest.exec(["env"], 60).stdout.splitlines()]
        assert sorted(names) == [b"COLOUR", b"PATH"]


def test_limits_bind_every_thread_of_qemu(microvm: MicrovmDriver) -> None:
    limits = Limits(cpus=0.5, memory_bytes=512 * MIB, pids=8, cpuset="0")
    with microvm.launch(microvm.prepare(dataclasses.replace(SPEC, limits=limits, ready=Ready.SPAWNED))) as guest:
        assert [reading for reading in guest.limit_readings() if not reading.holds] == []
        (pid,) = guest.host_pids()
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        assert len(threads) > 2
        for thread in threads:
            lines = (thread / "cgroup").read_text().splitlines()
            assert any(line.endswith(f":/tare/{guest.id}") and "cpu" in line for line in lines) or (
                lines == [f"0::/tare/{guest.id}"]
            )
            assert "Cpus_allowed_list:\t0\n" in (thread / "status").read_text()


def test_cpu_limit_bites_the_whole_domain(microvm: MicrovmDriver) -> None:
    spec = dataclasses.replace(SPEC, limits=Limits(cpus=0.5))
    with microvm.launch(microvm.prepare(spec)) as guest:
        guest.wait_ready(READY_S)
        before, begun = guest.usage().cpu_ns, procfs_uptime_ns()
        guest.exec(["timeout", "2", "sh", "-c", "while :; do :; done"], 120)
        after, ended = guest.usage().cpu_ns, procfs_uptime_ns()
        assert before is not None
        assert after is not None
        assert (after - before) / (ended - begun) < 0.6


def procfs_uptime_ns() -> int:
    return int(float(Path("/proc/uptime").read_text().split()[0]) * 1e9)


def test_what_the_guest_writes_stays_in_its_overlay(microvm: MicrovmDriver) -> None:
    prepared = microvm.prepare(SPEC)
    before = prepared.plan.base.stat().st_mtime_ns
    with microvm.launch(prepared) as guest:
        guest.wait_ready(READY_S)
        guest.exec(["sh", "-c", "head -c 20000000 /dev/urandom > /var/tmp/x; sync"], 120).check()
        (overlay,) = guest.disk_paths().exclusive
        assert overlay.stat().st_blocks * 512 > 20_000_000
    with microvm.launch(prepared) as guest:
        guest.wait_ready(READY_S)
        assert guest.exec(["test", "-e", "/var/tmp/x"], 60).exit_code == 1
    assert prepared.plan.base.stat().st_mtime_ns == before


def test_twenty_of_128_mib_at_once_are_all_ready(microvm: MicrovmDriver) -> None:
    """Of 128 MiB as the guest sees it: the limit holds QEMU beside that."""
    limits = Limits(memory_bytes=128 * MIB + overhead_bytes("tcg"))
    prepared = microvm.prepare(dataclasses.replace(SPEC, limits=limits))
    assert prepared.plan.memory_bytes == 128 * MIB
    guests: list[Guest] = []

    def start() -> None:
        guest = microvm.launch(prepared)
        guests.append(guest)
        guest.wait_ready(READY_S)

    threads = [threading.Thread(target=start) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    try:
        assert [guest.exec(["true"], 60).exit_code for guest in guests] == [0] * 20
    finally:
        for guest in guests:
            guest.close()
    nothing_left(microvm)


def test_a_damaged_kernel_never_gets_ready_and_leaves_nothing(microvm: MicrovmDriver, tmp_path: Path) -> None:
    prepared = microvm.prepare(SPEC)
    assert isinstance(prepared.plan.boot, DirectKernel)
    kernel = bytearray(prepared.plan.boot.kernel.read_bytes())
    kernel[1 << 20 : 4 << 20] = bytes(3 << 20)
    (tmp_path / "kernel").write_bytes(kernel)
    boot = dataclasses.replace(prepared.plan.boot, kernel=tmp_path / "kernel")
    with (
        microvm.launch(broken(prepared, boot=boot)) as guest,
        pytest.raises(TareError, match="not ready after 8 s; last words: its console is empty"),
    ):
        guest.wait_ready(8)
    nothing_left(microvm)


def test_a_file_that_is_no_kernel_is_refused_by_qemu_in_its_words(microvm: MicrovmDriver, tmp_path: Path) -> None:
    prepared = microvm.prepare(SPEC)
    assert isinstance(prepared.plan.boot, DirectKernel)
    (tmp_path / "kernel").write_bytes(b"\xf4" * 100_000)
    boot = dataclasses.replace(prepared.plan.boot, kernel=tmp_path / "kernel")
    with pytest.raises(TareError, match="linux kernel too old"):
        microvm.launch(broken(prepared, boot=boot))
    nothing_left(microvm)


def test_a_damaged_disk_ends_with_the_consoles_last_words(microvm: MicrovmDriver, tmp_path: Path) -> None:
    prepared = microvm.prepare(SPEC)
    with (tmp_path / "disk").open("wb") as disk, prepared.plan.base.open("rb") as whole:
        disk.write(whole.read(65 << 20))  # the partitions are there, the root file system is not
        disk.truncate(prepared.plan.base.stat().st_size)
    with (
        microvm.launch(broken(prepared, base=tmp_path / "disk")) as guest,
        pytest.raises(TareError, match="stage1: /dev/vda2: "),
    ):
        guest.wait_ready(READY_S)
    nothing_left(microvm)


def test_a_missing_disk_is_named_and_leaves_nothing(microvm: MicrovmDriver, tmp_path: Path) -> None:
    with pytest.raises(TareError, match="no-such-disk"):
        microvm.launch(broken(microvm.prepare(SPEC), base=tmp_path / "no-such-disk"))
    nothing_left(microvm)


def test_a_qemu_that_fails_is_quoted_and_leaves_nothing(microvm: MicrovmDriver, tmp_path: Path) -> None:
    prepared = microvm.prepare(SPEC)
    assert isinstance(prepared.plan.boot, DirectKernel)
    boot = dataclasses.replace(prepared.plan.boot, initrd=tmp_path / "no-such-initrd")
    with pytest.raises(TareError, match="no-such-initrd"):
        microvm.launch(broken(prepared, boot=boot))
    nothing_left(microvm)


def test_more_memory_than_the_host_has_is_refused_before_anything_is_made(microvm: MicrovmDriver) -> None:
    with pytest.raises(TareError, match="MiB available"):
        microvm.prepare(dataclasses.replace(SPEC, limits=Limits(memory_bytes=1 << 50)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"mounts": (Mount(kind=MountKind.TMPFS, target="/x"),)}, "mounts"),
        ({"network": NetworkSpec(mode=NetworkMode.HOST)}, "network host: its own kernel"),
        (
            {"network": NetworkSpec(mode=NetworkMode.CONTAINER, container="tare-0")},
            "network container:tare-0: its own kernel cannot join",
        ),
    ],
)
def test_what_is_not_possible_yet_is_refused_by_name(
    microvm: MicrovmDriver, change: dict[str, object], why: str
) -> None:
    with pytest.raises(TareError, match=why):
        microvm.prepare(dataclasses.replace(SPEC, **change))  # type: ignore[arg-type]


def test_without_qemu_or_firmware_the_probe_says_what_to_install(
    bench_host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drivers, "FIRMWARE", ())
    driver = VmDriver(bench_host)
    assert driver.probe().reason == "UEFI firmware: no readable OVMF image was found"
    monkeypatch.setattr(drivers, "QEMU", "no-such-qemu")
    available = driver.probe()
    assert (available.usable, available.mend) == (False, "run ./bootstrap to install it")
    assert "no-such-qemu" in available.reason
    driver.close()


def test_a_second_process_may_run_guests_at_the_same_time(microvm: MicrovmDriver) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from runtime.driver import Host; from runtime.drivers.libvirt import MicrovmDriver\n"
        "from runtime.spec import ImageRef, InstanceSpec\n"
        "driver = MicrovmDriver(Host(root=Path(sys.argv[1]), run=Path(sys.argv[2])))\n"
        "with driver.launch(driver.prepare(InstanceSpec(image=ImageRef.parse(sys.argv[3])))) as guest:\n"
        "    guest.wait_ready(180); print(guest.exec(['echo', 'hello'], 60).stdout.decode(), end='')\n"
        "driver.close()\n"
    )
    host = microvm.host
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        command = [sys.executable, "-c", code, str(host.root), str(host.run), str(IMAGE)]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("hello\n", "")
        guest.wait_ready(READY_S)
    nothing_left(microvm)


def test_a_guest_that_does_not_power_off_is_killed(microvm: MicrovmDriver) -> None:
    prepared = broken(microvm.prepare(dataclasses.replace(SPEC, ready=Ready.SPAWNED)), stop_timeout_s=0.05)
    with microvm.launch(prepared) as guest:
        (pid,) = guest.host_pids()
    assert procfs.state(pid) in (None, "Z")
    nothing_left(microvm)


def test_a_stopped_qemu_can_be_closed(microvm: MicrovmDriver) -> None:
    prepared = broken(microvm.prepare(dataclasses.replace(SPEC, ready=Ready.SPAWNED)), stop_timeout_s=0.5)
    with microvm.launch(prepared) as guest:
        os.kill(guest.host_pids()[0], signal.SIGSTOP)
    nothing_left(microvm)


def test_cpu_limit_on_vcpus_binds_them_and_nothing_else_of_qemu(microvm: MicrovmDriver) -> None:
    prepared = microvm.prepare(dataclasses.replace(SPEC, limits=Limits(cpus=0.25, cpuset="0")))
    with microvm.launch(broken(prepared, quota=Quota.VCPUS)) as guest:
        guest.wait_ready(READY_S)
        readings = {reading.name: reading for reading in guest.limit_readings()}
        assert [reading for reading in readings.values() if not reading.holds] == []
        assert {"cpus", "cpus: threads", "vCPU 0 pinned"} <= readings.keys()
        (pid,) = guest.host_pids()
        (vcpu,) = quota.vcpu_threads(pid, 1)
        others = {int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()} - {vcpu}
        group = Path(readings["cpus: threads"].source).parent
        assert group.name == quota.GROUP
        for thread in others:
            assert f"/{guest.id}/{quota.GROUP}" not in Path(f"/proc/{pid}/task/{thread}/cgroup").read_text()
        before, begun = thread_ticks(pid, vcpu), procfs_uptime_ns()
        guest.exec(["timeout", "2", "sh", "-c", "while :; do :; done"], 120)
        after, ended = thread_ticks(pid, vcpu), procfs_uptime_ns()
        used_s = (after - before) / os.sysconf("SC_CLK_TCK")
        assert 0.03 < used_s / ((ended - begun) / 1e9) < 0.3  # it is the one that works; a busy host gives it less
    assert not group.exists()
    nothing_left(microvm)


def thread_ticks(pid: int, thread: int) -> int:
    stat = Path(f"/proc/{pid}/task/{thread}/stat").read_text()
    return sum(map(int, stat[stat.rindex(")") + 2 :].split()[11:13]))


def test_write_limit_bites_through_the_guests_disk(microvm: MicrovmDriver) -> None:
    """The guest writes around its own cache; QEMU, around the host's, for which the cache mode must be `none`."""
    rate = 4 * MIB
    prepared = microvm.prepare(dataclasses.replace(SPEC, limits=Limits(io_write_bps=rate)))
    assert prepared.plan.cache == "none"
    write = ["dd", "if=/dev/zero", "of=/root/ballast", "bs=1M", "count=16", "oflag=direct", "conv=fsync"]
    with microvm.launch(prepared) as guest:
        guest.wait_ready(READY_S)
        assert [reading for reading in guest.limit_readings() if not reading.holds] == []
        limited = guest.exec(write, 120).check().elapsed_ns
    with microvm.launch(microvm.prepare(SPEC)) as guest:
        guest.wait_ready(READY_S)
        free = min(guest.exec(write, 120).check().elapsed_ns for _ in range(3))
    assert 16 * MIB / (limited / 1e9) < 1.2 * rate
    assert limited > free


def test_a_guest_boots_in_the_least_memory_that_is_allowed(microvm: MicrovmDriver) -> None:
    least = MINIMUM_MEMORY_BYTES + overhead_bytes(microvm.prepare(SPEC).accelerator.name)
    prepared = microvm.prepare(dataclasses.replace(SPEC, limits=Limits(memory_bytes=least)))
    assert prepared.plan.memory_bytes == MINIMUM_MEMORY_BYTES
    with microvm.launch(prepared) as guest:
        guest.wait_ready(READY_S)
