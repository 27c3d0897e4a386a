"""Workloads on real instances: the direction of every effect, as ratios of one interleaved run, never a speed."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Iterator
from statistics import median

import pytest

from runtime.driver import Driver, Host, find_driver
from runtime.drivers.native import NativeDriver
from runtime.instance import Instance
from runtime.spec import ImageRef, InstanceSpec, Limits
from tests.host.drivers import container, native, usable
from workloads import parity
from workloads.base import Context, Stage, find_workload
from workloads.metric import Phase, Sample

__all__ = ["container", "native"]  # fixtures
LIMITS = Limits(cpus=1.0, memory_bytes=512 << 20, swap_bytes=0, pids=512)
READY_S = 60.0


@pytest.fixture(scope="module", params=["native", "container"])
def driver(request: pytest.FixtureRequest, bench_host: Host) -> Iterator[Driver]:
    with usable(find_driver(request.param)(bench_host)) as driver:
        yield driver


def measure(driver: Driver, workload: str, limits: Limits = LIMITS, **params: float) -> list[Sample]:
    """One visit of one workload; the driver must be left without a trace."""
    prepared = driver.prepare(InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"), limits=limits))

    def launch(spec: InstanceSpec | None = None) -> Instance:
        instance = driver.launch(driver.prepare(spec) if spec else prepared)
        instance.wait_ready(READY_S)
        return instance

    peers = NativeDriver(driver.host)

    def peer() -> Instance:
        instance = peers.launch(peers.prepare(prepared.spec))
        instance.wait_ready(READY_S)
        return instance

    measured = find_workload(workload)()
    own = measured.stage is Stage.OWN
    shared = None if own else launch()
    try:
        if shared is not None and measured.stage is Stage.TEARDOWN:
            shared.timeline.stamp("closing")
            shared.close()
        context = Context(driver, prepared, launch, peer, params=params, rng=random.Random(3), instance=shared)
        return list(measured.measure(context))
    finally:
        if shared is not None:
            shared.close()
        assert driver.leftovers() == []
        assert peers.leftovers() == []
        peers.close()


def value(samples: list[Sample], metric: str, **labels: str) -> float:
    """The only measured sample of `metric` with these labels."""
    (found,) = [
        sample.value
        for sample in samples
        if sample.metric == metric and sample.phase is Phase.MEASURE and labels.items() <= sample.labels.items()
    ]
    return found


@pytest.mark.parametrize(
    "workload",
    [
        "startup",
        "startup_answered",
        "startup_at_once",
        "instrument",
        "teardown",
        "footprint",
        "growth",
        "idle",
        "overhead_cpu",
        "overhead_memory",
        "overhead_kernel",
        "overhead_disk",
        "leakage",
    ],
)
def test_workload_measures_a_real_instance(driver: Driver, workload: str) -> None:
    samples = measure(driver, workload, seconds=1, small_s=0.1, size_mib=32, repeats=2, most=4)
    promised = {metric.name for metric in find_workload(workload).metrics}
    assert {sample.metric for sample in samples} >= promised - {"idle.memory_cgroup", "growth.copy_up"}
    assert all(math.isfinite(sample.value) for sample in samples)


def test_a_container_on_a_bridge_has_a_network_of_its_own_and_can_be_reached(container: Driver) -> None:
    samples = measure(container, "network", small_s=0.1)
    for metric in ("network.own", "network.reached", "network.published"):
        assert value(samples, metric) == 1
    for metric in ("network.connect", "network.host_mode_connect"):
        assert value(samples, metric) > value(samples, metric.replace("connect", "round_trip"))


def test_native_has_the_hosts_network_and_nothing_of_its_own(native: Driver) -> None:
    assert value(measure(native, "network", small_s=0.1), "network.own") == 0


def test_half_the_quota_gives_about_half_the_work(container: Driver) -> None:
    halved: list[float] = []
    whole: list[float] = []
    for _ in range(3):
        for cpus, rates in ((0.2, halved), (0.4, whole)):  # so little that a busy host has it, too
            limits = Limits(cpus=cpus, memory_bytes=512 << 20)
            rates.append(
                value(measure(container, "overhead_cpu", limits, seconds=1, small_s=0.1), "overhead.cpu_events")
            )
    assert 0.3 < median(halved) / median(whole) < 0.75


def test_limits_of_a_container_hold_and_bite(container: Driver) -> None:
    limits = Limits(cpus=0.5, memory_bytes=128 << 20, swap_bytes=0, pids=100)
    samples = measure(container, "enforcement", limits, seconds=1)
    assert {sample.value for sample in samples if sample.metric == "enforcement.limit_holds"} == {1.0}
    assert value(samples, "enforcement.cpu_bites", limit="0.5") == 1
    assert value(samples, "enforcement.memory_bites", outcome="killed") == 1


def test_the_same_proof_fails_where_nothing_is_limited(native: Driver) -> None:
    limits = Limits(cpus=0.2, memory_bytes=128 << 20)  # a busy host gives more
    samples = measure(native, "enforcement", limits, seconds=1)
    assert value(samples, "enforcement.memory_bites", outcome="granted") == 0
    assert value(samples, "enforcement.cpu_bites") == 0
    assert value(samples, "enforcement.cpu_overrun") > 1.3


def test_a_container_adds_little_to_its_image_and_what_it_writes(container: Driver) -> None:
    samples = [*measure(container, "footprint"), *measure(container, "growth")]
    image = value(samples, "footprint.image_allocated")
    assert value(samples, "growth.marginal_allocated") < image / 100
    assert 64 << 20 <= value(samples, "growth.written_64mib") < 66 << 20
    (copied,) = [sample for sample in samples if sample.metric == "growth.copy_up"]
    assert copied.value == pytest.approx(int(copied.labels["file_bytes"]), rel=0.05)  # a union of layers copies it all


def test_unlimited_hogs_slow_a_native_victim_and_a_placebo_does_less(native: Driver) -> None:
    slowdowns, placebos = [], []
    for _ in range(3):
        samples = measure(native, "leakage", seconds=1, hogs=8 * (os.cpu_count() or 1))
        slowdowns.append(value(samples, "leakage.slowdown", antagonist="cpu"))
        placebos.append(value(samples, "leakage.leak", antagonist="placebo"))
    assert median(slowdowns) > 0.3  # fair shares would give 0.88 or more
    assert median(slowdowns) > median(placebos)


def test_ramp_reaches_its_cap_and_leaves_nothing(container: Driver) -> None:
    samples = measure(container, "density", cap=30, idle_s=0.2, width=3)
    assert value(samples, "density.instances", limiter="cap") == 30
    assert median(sample.value for sample in samples if sample.metric == "density.pss_per_instance") > 0


def test_native_and_container_see_the_same_machine_and_tools(native: Driver, container: Driver) -> None:
    facts = []
    for driver in (native, container):
        prepared = driver.prepare(InstanceSpec(image=ImageRef.parse("tare/debian:bookworm"), limits=LIMITS))
        with driver.launch(prepared) as instance:
            instance.wait_ready(READY_S)
            facts.append(parity.describe(instance))
    same = ("cpus", "cpu_model", "cpu_flags", "kernel", "clocksource", "sysbench", "fio", "stress_ng", "libc")
    assert {key: facts[0].get(key) for key in same} == {key: facts[1].get(key) for key in same}
    assert facts[0]["sysbench"].startswith("sysbench 1.")
