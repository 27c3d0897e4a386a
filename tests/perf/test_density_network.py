"""A thousand and more idle containers on bridges: what the last ones cost beside the first. Asserts no speed.

Printed, as for all of `tox -e perf`: launch times of the first and last hundred, the host's memory for
each beyond its program's own, and the time until all are gone and their links too.
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.container import ContainerDriver
from runtime.instance import Instance
from runtime.linux import procfs
from runtime.network.definitions import DEFAULT
from runtime.spec import ImageRef, InstanceSpec, NetworkMode, NetworkSpec, Ready
from tests.conftest import skip_or_fail

COUNT = int(os.environ.get("TARE_DENSITY", "1100"))
PORTS = 1021  # of one bridge
FEW = max(1, COUNT // 11)
NEEDED_BYTES = COUNT * (2 << 20)
SPEC = InstanceSpec(
    image=ImageRef.parse("tare/debian:bookworm"),
    argv=("/bin/sleep", "3600"),
    ready=Ready.USERLAND,
    network=NetworkSpec(mode=NetworkMode.BRIDGE),
)


@pytest.fixture
def driver(bench_host: Host) -> Iterator[ContainerDriver]:
    if available_bytes() < NEEDED_BYTES:
        skip_or_fail(f"{COUNT} containers need {NEEDED_BYTES >> 20} MiB")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < COUNT * 6:
        skip_or_fail(f"{COUNT} containers need {COUNT * 6} descriptors, this user may have {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    driver = ContainerDriver(bench_host)
    yield driver
    driver.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def available_bytes() -> int:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) << 10


def test_a_thousand_containers_on_bridges(driver: ContainerDriver) -> None:
    prepared = driver.prepare(SPEC)
    running: list[Instance] = []
    times: list[float] = []
    said: dict[str, float] = {}
    try:
        running.append(driver.launch(prepared))  # the first makes the bridge
        before = available_bytes()
        for _ in range(COUNT):
            begin = time.perf_counter()
            running.append(driver.launch(prepared))
            times.append(time.perf_counter() - begin)
        with_all = available_bytes()
        first, last = statistics.median(times[:FEW]), statistics.median(times[-FEW:])
        own_bytes = statistics.median(
            procfs.pss_bytes(instance.host_pids()) or 0 for instance in itertools.islice(running, 0, COUNT, 50)
        )
        said = {
            "first_ms": first * 1e3,
            "last_ms": last * 1e3,
            "last_to_first": last / first,
            "host_kib_each": (before - with_all) / COUNT / 1024,
            "own_pss_kib": own_bytes / 1024,
        }
        network = driver.networks.definitions.demand(DEFAULT)
        assert len(driver.networks.bridges(network)) == -(-(COUNT + 1) // PORTS)
        assert len({address for address, _ in driver.networks.leases(network)}) == COUNT + 1
    finally:
        begin = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda instance: instance.close(), running))
        said["removed_s"] = time.perf_counter() - begin
        while any(name.startswith("ve") for _, name in socket.if_nameindex()) and time.perf_counter() - begin < 60:
            time.sleep(0.01)
        said["links_gone_s"] = time.perf_counter() - begin
    print({key: round(value, 3) for key, value in said.items()})  # noqa: T201
