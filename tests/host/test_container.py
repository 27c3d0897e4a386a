"""The container driver on a real kernel: confinement, limits that bite, mounts, failures. Needs root."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.errors import TareError
from runtime.instance import Instance
from runtime.linux import procfs
from runtime.spec import (
    ImageRef,
    InstanceSpec,
    Limits,
    Mount,
    MountKind,
    NetworkMode,
    NetworkSpec,
    Ready,
)
from tests.host.drivers import Launch, launching, usable

SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"))


@pytest.fixture(scope="module")
def driver(bench_host: Host) -> Iterator[ContainerDriver]:
    with usable(ContainerDriver(bench_host)) as driver:
        yield driver


@pytest.fixture
def launch(driver: ContainerDriver) -> Iterator[Launch]:
    with launching(driver, SPEC) as launch:
        yield launch


@pytest.fixture(scope="module")
def instance(driver: ContainerDriver) -> Iterator[Instance]:
    with driver.launch(driver.prepare(SPEC)) as instance:
        instance.wait_ready(30)
        yield instance


def run(instance: Instance, script: str) -> str:
    result = instance.exec(["/bin/sh", "-c", script], 60)
    return (result.stdout + result.stderr).decode()


def residents(driver: ContainerDriver) -> set[str]:
    """What instances have on this host right now, wherever a launch might have left something."""
    cgroups = {str(path) for path in Path("/sys/fs/cgroup").glob("**/tare/tare-*")}
    return cgroups | {str(path) for path in (driver.host.root / "instances").iterdir()} | set(driver.leftovers())


@pytest.mark.parametrize("name", ["mnt", "uts", "ipc", "pid", "net", "cgroup"])
def test_it_has_namespaces_of_its_own(instance: Instance, name: str) -> None:
    (pid,) = instance.host_pids()
    assert Path(f"/proc/{pid}/ns/{name}").readlink() != Path(f"/proc/self/ns/{name}").readlink()


def test_it_is_confined_as_declared(instance: Instance) -> None:
    status = dict(line.split(":\t", 1) for line in run(instance, "cat /proc/self/status").splitlines() if ":\t" in line)
    assert status["CapEff"] == status["CapPrm"] == status["CapBnd"] == "00000000a80425fb"
    assert status["CapAmb"] == "0" * 16
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")


@pytest.mark.parametrize(
    "attempt",
    [
        "mount -t tmpfs none /mnt",
        "umount /proc/sys",
        "unshare -U true",
        "chroot / mount -o remount,rw /sys",
        "echo 1 > /proc/sys/kernel/sysrq",
        "echo b > /proc/sysrq-trigger",
        "echo x > /sys/kernel/uevent_helper",
        "echo x > /sys/fs/cgroup/memory/release_agent",
        "mkdir /sys/fs/cgroup/memory/x",
        "hostname other",
        "mknod /tmp/disk b 254 0 && head -c 1 /tmp/disk",
        "mknod /dev/shm/disk b 254 0 && head -c 1 /dev/shm/disk",
        "dmesg",
    ],
)
def test_it_cannot(instance: Instance, attempt: str) -> None:
    assert instance.exec(["/bin/sh", "-c", attempt], 30).exit_code != 0


def test_what_hides_a_directory_is_read_only_wherever_it_hides_one(instance: Instance) -> None:
    lines = run(instance, "cat /proc/self/mountinfo").splitlines()
    hidden = [line.split() for line in lines if line.split()[4] in ("/proc/acpi", "/sys/firmware")]
    assert hidden
    for words in hidden:
        assert words[3:5] == ["/", words[4]]
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(words[5].split(","))
    assert "Read-only" in run(instance, "touch /sys/firmware/x")


def test_the_ways_out_are_masked(instance: Instance) -> None:
    assert run(instance, "cat /proc/keys /proc/timer_list; ls /proc/acpi /sys/firmware 2>/dev/null").split() in (
        [],
        ["/proc/acpi:", "/sys/firmware:"],
    )


def test_it_sees_its_own_processes_host_name_and_cgroup_only(instance: Instance) -> None:
    assert run(instance, "cat /proc/1/comm").strip() == "agent"
    assert run(instance, "hostname").strip() == instance.id
    assert instance.id in run(instance, "cat /etc/hosts /etc/hostname")
    assert instance.id not in run(instance, "cat /proc/self/cgroup")


def test_it_inherits_nothing_but_standard_streams(instance: Instance) -> None:
    assert run(instance, "ls /proc/self/fd").split() == ["0", "1", "2", "3"]


def test_the_loopback_answers_and_nothing_else_is_there(instance: Instance) -> None:
    assert run(instance, "tail -n +3 /proc/net/dev | cut -d: -f1").split() == ["lo"]


def test_devices_are_the_usual_ones(instance: Instance) -> None:
    names = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
    core = "core " if Path("/proc/kcore").exists() else ""
    assert run(instance, "ls /dev").split() == (core + names).split()
    assert run(instance, "head -c 3 /dev/zero | wc -c; echo x > /dev/null; head -c1 /dev/urandom | wc -c").split() == [
        "3",
        "1",
    ]


def test_what_one_writes_another_does_not_see(launch: Launch) -> None:
    first, second = launch(), launch()
    run(first, "echo mine > /etc/motd; rm /etc/os-release")
    assert "mine" not in run(second, "cat /etc/motd")
    assert "bookworm" in run(second, "cat /etc/os-release")


def test_memory_is_limited(launch: Launch) -> None:
    instance = launch(limits=Limits(memory_bytes=64 << 20, swap_bytes=0))
    assert all(reading.holds for reading in instance.limit_readings())
    assert instance.exec(["/bin/sh", "-c", "head -c 200m /dev/zero | tail"], 60).exit_code != 0
    assert instance.exec(["true"], 30).exit_code == 0
    peak = instance.usage().memory_peak_bytes
    assert peak is not None
    assert peak <= 64 << 20


def test_processes_are_limited(launch: Launch) -> None:
    instance = launch(limits=Limits(pids=10))
    said = run(instance, "for i in $(seq 20); do sleep 5 & done; echo done")
    assert "Resource temporarily unavailable" in said or "Cannot fork" in said
    assert (instance.usage().pids or 0) <= 10


def test_cpu_time_is_limited(launch: Launch) -> None:
    instance = launch(limits=Limits(cpus=0.2))
    before, begun_ns = instance.usage().cpu_ns or 0, time.monotonic_ns()
    instance.exec(["timeout", "2", "/bin/sh", "-c", "while :; do :; done"], 60)
    used, wall_ns = (instance.usage().cpu_ns or 0) - before, time.monotonic_ns() - begun_ns
    assert used < 0.25 * wall_ns


def test_a_cpuset_holds(launch: Launch) -> None:
    instance = launch(limits=Limits(cpuset="0"))
    assert "Cpus_allowed_list:\t0\n" in run(instance, "cat /proc/self/status")
    assert all(reading.holds for reading in instance.limit_readings())


def test_a_limit_the_host_lacks_is_refused_by_name_and_leaves_nothing(
    driver: ContainerDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in ("v1", "v2"):
        monkeypatch.setattr(f"runtime.cgroups.{version}_controls.scheduler", lambda device: "none")
    before, spec = residents(driver), dataclasses.replace(SPEC, limits=Limits(io_weight=50))
    with pytest.raises(TareError, match="limit io_weight"):
        driver.launch(driver.prepare(spec))
    assert residents(driver) <= before


def test_binds_and_tmpfs_are_where_they_belong(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("hello\n")
    instance = launch(
        mounts=(
            Mount(kind=MountKind.BIND, source=str(tmp_path), target="/data", read_only=True),
            Mount(kind=MountKind.BIND, source=str(tmp_path / "file"), target="/new/place"),
            Mount(kind=MountKind.TMPFS, target="/scratch"),
        )
    )
    assert run(instance, "cat /data/file /new/place").split() == ["hello", "hello"]
    assert "Read-only" in run(instance, "echo x > /data/file")
    run(instance, "echo x > /new/place")
    assert (tmp_path / "file").read_text() == "x\n"
    assert run(instance, "stat -f -c %T /scratch").strip() == "tmpfs"


def test_the_hosts_network_can_be_shared(launch: Launch) -> None:
    instance = launch(network=NetworkSpec(mode=NetworkMode.HOST))
    (pid,) = instance.host_pids()
    assert Path(f"/proc/{pid}/ns/net").readlink() == Path("/proc/self/ns/net").readlink()


def test_a_program_of_its_own_runs_instead_of_the_agent(driver: ContainerDriver) -> None:
    spec = dataclasses.replace(SPEC, argv=("sh", "-c", "echo said; exit 4"), ready=Ready.USERLAND, env=(("A", "b"),))
    with driver.launch(driver.prepare(spec)) as instance:
        assert "userland" in instance.timeline
        assert instance.wait_ended(30) == 4  # type: ignore[attr-defined]
        assert instance.console_tail() == "said"  # type: ignore[attr-defined]
        with pytest.raises(TareError, match="not the agent"):
            instance.exec(["true"], 1)


def test_a_program_that_is_not_there_leaves_nothing(driver: ContainerDriver) -> None:
    before = residents(driver)
    spec = dataclasses.replace(SPEC, argv=("/does/not/exist",), ready=Ready.USERLAND)
    with pytest.raises(TareError, match="/does/not/exist") as caught:
        driver.launch(driver.prepare(spec))
    assert caught.value.exit_code == 127
    assert residents(driver) <= before


def test_an_image_cannot_lead_mounts_out_of_its_root(driver: ContainerDriver, tmp_path: Path) -> None:
    """Its /proc is a link to a directory of the host: inside its own root there is nothing at that place."""
    layer, victim = tmp_path / "layer", tmp_path / "victim"
    layer.mkdir()
    victim.mkdir()
    (layer / "proc").symlink_to(victim)
    before, prepared = residents(driver), driver.prepare(SPEC)
    with pytest.raises(TareError, match="mount proc"):
        driver.launch(dataclasses.replace(prepared, layers=(*prepared.layers, layer)))
    assert list(victim.iterdir()) == []
    assert residents(driver) <= before


def test_many_start_at_once_and_all_end(driver: ContainerDriver) -> None:
    before, prepared = residents(driver), driver.prepare(SPEC)
    failures: list[BaseException] = []

    def one() -> None:
        try:
            with driver.launch(prepared) as instance:
                instance.wait_ready(60)
                assert instance.exec(["true"], 60).exit_code == 0
        except BaseException as error:  # noqa: BLE001 - told to the main thread
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert residents(driver) <= before


def test_a_dead_owners_frozen_container_is_thawed_killed_and_removed(
    bench_host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = ContainerDriver(Host(root=bench_host.root, run=tmp_path))  # whose ledger holds this one alone
    instance = driver.launch(driver.prepare(dataclasses.replace(SPEC, limits=Limits(cpuset="0"))))
    instance.wait_ready(30)
    (pid,) = instance.host_pids()
    instance.pause()
    with monkeypatch.context() as patch:
        patch.setattr("runtime.ledger.process_start", lambda pid, proc: -1)  # the owner seems to be gone
        swept = driver.sweep()
    instance.close()
    driver.close()
    assert sorted(line.split()[1] for line in swept) == ["cgroup", "dir", "pid"]
    assert procfs.state(pid) is None
    assert not [path for path in residents(driver) if instance.id in path]


OWNER = """
import sys, time
from pathlib import Path
from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.spec import ImageRef, InstanceSpec
driver = ContainerDriver(Host(root=Path(sys.argv[1]), run=Path(sys.argv[2])))
with driver.launch(driver.prepare(InstanceSpec(image=ImageRef.parse("tare/debian:bookworm")))) as instance:
    instance.wait_ready(30)
    try:
        print(instance.id, flush=True)
        time.sleep(600)
    except KeyboardInterrupt:
        print(instance.exec(["true"], 30).exit_code, flush=True)
driver.close()
"""


def test_an_interrupt_of_the_terminals_group_reaches_the_owner_alone(driver: ContainerDriver, bench_host: Host) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", OWNER, str(bench_host.root), str(bench_host.run)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).resolve().parents[2],
        text=True,
        process_group=0,
    ) as owner:
        assert owner.stdout is not None
        instance_id = owner.stdout.readline().strip()
        assert instance_id
        os.killpg(owner.pid, signal.SIGINT)
        assert owner.stdout.readline().strip() == "0"
    assert owner.returncode == 0
    assert not [path for path in residents(driver) if instance_id in path]
