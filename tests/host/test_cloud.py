"""A cloud image that knows nothing of Tare, booted for real: cloud-init takes our seed, the agent answers."""

from __future__ import annotations

import dataclasses

import pytest

from runtime.driver import Host
from runtime.drivers import libvirt as drivers
from runtime.drivers.libvirt import VmDriver
from runtime.errors import TareError
from runtime.images import cloud
from runtime.images.store import ImageStore
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkMode, NetworkSpec, Ready
from runtime.vm import nocloud
from runtime.vm.domain import MIB
from runtime.vm.guest import Guest
from runtime.vm.plan import Plan, on_image
from tests.cloud import cloud_image
from tests.host.drivers import usable

READY_S = 400.0  # a bound, not an expectation: cloud-init is Python, emulated
MINE = '#cloud-config\nbootcmd: ["echo mine > /root/mine"]\n'


@pytest.fixture(scope="module")
def plan(bench_host: Host) -> Plan:
    with usable(VmDriver(bench_host)) as driver:
        image = cloud.open(cloud_image(ImageStore(bench_host.root)))
        base = driver.prepare(InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"))).plan
    network = NetworkSpec(mode=NetworkMode.BRIDGE)
    spec = InstanceSpec(image=ImageRef("cloud"), limits=Limits(), network=network, hostname="blue")
    seed = nocloud.Seed(agent=nocloud.agent_program(bench_host), user_data=MINE)
    base = dataclasses.replace(base, spec=spec, env=(), memory_bytes=512 * MIB)
    return on_image(base, image, seed, drivers.find_firmware())


def test_cloud_image_becomes_a_machine_with_name_address_and_agent(bench_host: Host, plan: Plan) -> None:
    driver = VmDriver(bench_host)
    before = plan.base.stat()
    try:
        with Guest.launch(plan, bench_host, driver._connect()) as guest:
            guest.wait_ready(READY_S)
            assert "userland" not in guest.timeline  # cloud-init starts the agent: the first instruction is not seen
            assert guest.exec(["hostname"], 60).stdout == b"blue\n"
            addresses = guest.exec(["ip", "-4", "-o", "address"], 60).stdout.decode()
            assert f" {guest.address}/" in addresses
            assert guest.exec(["cat", "/var/lib/cloud/data/instance-id"], 60).stdout.decode() == f"{guest.id}\n"
            assert guest.exec(["cat", "/root/mine"], 60).stdout == b"mine\n"
    finally:
        driver.close()
    after = plan.base.stat()
    assert (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size)
    assert list((bench_host.root / "instances").glob(f"{guest.id}*")) == []


def test_instances_share_the_image_and_nothing_else(bench_host: Host, plan: Plan) -> None:
    driver = VmDriver(bench_host)
    spec = dataclasses.replace(plan.spec, ready=Ready.SPAWNED, hostname=None)
    plan = dataclasses.replace(plan, spec=spec, stop_timeout_s=0.0)
    try:
        connection = driver._connect()
        with Guest.launch(plan, bench_host, connection) as one, Guest.launch(plan, bench_host, connection) as two:
            ours, others = one.disk_paths(), two.disk_paths()
            assert ours.shared == others.shared
            assert not set(ours.exclusive) & set(others.exclusive)
            assert one.address != two.address
    finally:
        driver.close()


def test_image_swapped_after_it_was_verified_is_not_run(bench_host: Host, plan: Plan) -> None:
    assert plan.image is not None
    swapped = dataclasses.replace(plan.image, digest="sha256:0", identity=())
    driver = VmDriver(bench_host)
    try:
        with pytest.raises(TareError, match="changed while in use"):
            Guest.launch(dataclasses.replace(plan, image=swapped), bench_host, driver._connect())
        assert driver.leftovers() == []
    finally:
        driver.close()
