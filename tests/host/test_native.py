"""The native baseline on a real kernel: nothing between the program and the host. Needs root."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.native import NativeDriver
from runtime.errors import TareError
from runtime.instance import Instance
from runtime.linux import procfs
from runtime.spec import ImageRef, InstanceSpec, Limits, Mount, MountKind
from tests.host.drivers import usable

SPEC = InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"), limits=Limits(cpus=0.1))
# Ends once it is in a session of its own: the agent kills what is still in its group.
ESCAPE = "setsid -f sh -c ': >/tmp/out; exec sleep 6000'; until test -e /tmp/out; do sleep 0.01; done"


@pytest.fixture(scope="module")
def driver(bench_host: Host) -> Iterator[NativeDriver]:
    with usable(NativeDriver(bench_host)) as driver:
        yield driver


@pytest.fixture
def instance(driver: NativeDriver) -> Iterator[Instance]:
    with driver.launch(driver.prepare(SPEC)) as instance:
        instance.wait_ready(30)
        yield instance


def run(instance: Instance, script: str) -> str:
    result = instance.exec(["/bin/sh", "-c", script], 60)
    return (result.stdout + result.stderr).decode()


@pytest.mark.parametrize("name", ["uts", "ipc", "pid", "net", "cgroup", "user"])
def test_it_shares_every_namespace_but_the_mounts(instance: Instance, name: str) -> None:
    (pid,) = instance.host_pids()
    assert Path(f"/proc/{pid}/ns/{name}").readlink() == Path(f"/proc/self/ns/{name}").readlink()
    assert procfs.mount_namespace(pid) != procfs.mount_namespace(os.getpid())


def test_it_is_not_confined_and_not_limited(instance: Instance) -> None:
    status = run(instance, "cat /proc/self/status")
    assert "Seccomp:\t0" in status
    mine = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff"))
    assert mine in status
    assert instance.limit_readings() == ()


def test_its_files_lie_on_the_hosts_file_system(instance: Instance, driver: NativeDriver) -> None:
    device = driver.host.root.stat().st_dev
    assert run(instance, "stat -c %d /usr /usr/bin/env /usr/lib/tare/agent /var/tmp").split() == [str(device)] * 4


def test_the_image_is_read_only_and_the_usual_places_are_not(instance: Instance) -> None:
    assert "Read-only" in run(instance, "echo x > /etc/motd")
    assert run(instance, "echo x > /var/tmp/x && cat /var/tmp/x; stat -c %a /tmp /var/tmp").split() == [
        "x",
        "1777",
        "1777",
    ]


def test_it_sees_the_hosts_processes_and_devices(instance: Instance) -> None:
    assert run(instance, f"cat /proc/{os.getpid()}/comm").strip() == Path("/proc/self/comm").read_text().strip()
    assert run(instance, "ls /dev").split() == sorted(path.name for path in Path("/dev").iterdir())


def test_a_process_that_escapes_into_a_session_of_its_own_still_ends_with_it(
    driver: NativeDriver,
) -> None:
    with driver.launch(driver.prepare(SPEC)) as instance:
        instance.wait_ready(30)
        run(instance, ESCAPE)
        pids = instance.host_pids()
        assert len(pids) == 2
    assert all(procfs.state(pid) in (None, "Z") for pid in pids)


def test_what_outlives_the_agent_ends_with_the_instance(driver: NativeDriver) -> None:
    with driver.launch(driver.prepare(SPEC)) as instance:
        instance.wait_ready(30)
        run(instance, ESCAPE)
        agent, sleeper = sorted(instance.host_pids())
        os.kill(agent, signal.SIGKILL)
        while instance.alive():
            time.sleep(0.01)
        assert instance.host_pids() == (sleeper,)
    assert procfs.state(sleeper) in (None, "Z")


def test_pausing_stops_the_escaped_too(instance: Instance) -> None:
    run(instance, ESCAPE)
    instance.pause()
    states = [procfs.state(pid) for pid in instance.host_pids()]
    instance.resume()
    assert states == ["T", "T"]


def test_nothing_is_mounted_on_the_host(instance: Instance) -> None:
    assert instance.id not in Path("/proc/self/mountinfo").read_text()


def test_mounts_are_refused(driver: NativeDriver) -> None:
    mount = Mount(kind=MountKind.TMPFS, target="/x")
    with pytest.raises(TareError, match="mount /x"):
        driver.prepare(dataclasses.replace(SPEC, mounts=(mount,)))
