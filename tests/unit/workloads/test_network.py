"""Networks: where each figure comes from, and that an instance nobody reaches is a finding, not a failure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import ExecResult
from runtime.spec import NetworkMode
from tests.fakes import Behaviour, FakeInstance
from tests.unit.workloads.visits import one, values, visit
from workloads.base import Invalid
from workloads.metric import Sample
from workloads.network import HOST_MODE, OWN_MODE, Network
from workloads.tools import gauge

OWN, HOSTED = ({metric.name for metric in metrics} for metrics in (OWN_MODE, HOST_MODE))


def measure(directory: Path, behaviour: Behaviour | None = None, kind: Kind = Kind.CONTAINER) -> list[Sample]:
    context, driver = visit(directory, behaviour, kind=kind, shared=False, small_s=0.1)
    samples = list(Network().measure(context))
    assert driver.open_instances() == []
    return samples


def test_container_is_measured_on_its_bridge_and_on_the_hosts_network(tmp_path: Path) -> None:
    samples = measure(tmp_path)
    assert {sample.metric for sample in samples} == {metric.name for metric in Network.metrics}
    assert [one(samples, f"network.{name}").value for name in ("own", "reached", "published")] == [1, 1, 1]
    assert one(samples, "network.throughput").value == 1e9
    assert one(samples, "network.round_trip").value == pytest.approx(1e-6)


def test_machine_has_no_host_mode_and_native_nothing_else(tmp_path: Path) -> None:
    machine = {sample.metric for sample in measure(tmp_path / "vm", kind=Kind.VM)}
    assert machine == {metric.name for metric in Network.metrics} - HOSTED
    native = measure(tmp_path / "native", kind=Kind.NATIVE)
    assert {sample.metric for sample in native} == {*OWN, "network.own"}
    assert one(native, "network.own").value == 0


def test_instances_talk_to_their_gateway_and_native_to_the_loopback(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, shared=False, small_s=0.1)
    list(Network().measure(context))
    bridged, hosted = driver.instances
    assert (bridged.spec.network.mode, hosted.spec.network.mode) == (NetworkMode.BRIDGE, NetworkMode.HOST)
    for instance, address in ((bridged, "10.87.0.1"), (hosted, "127.0.0.1")):
        clients = [argv for argv in instance.commands if {"--client", "connect", "pingpong"} & set(argv)]
        assert len(clients) == 5  # one of iperf3's, and one batch before each of the gauge's
        assert all(address in argv for argv in clients)


@pytest.mark.parametrize(("unreached", "address"), [("reached", "10.87.0.2"), ("published", "127.0.0.1")])
def test_instance_that_nobody_reaches_is_a_finding(unreached: str, address: str, tmp_path: Path) -> None:
    def reply(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        refused = instance.driver.kind is Kind.NATIVE and argv[1] == "connect" and address in argv
        return ExecResult(tuple(argv), gauge.UNREACHABLE, b"", b"", 1) if refused else None

    samples = measure(tmp_path, Behaviour(reply=reply))
    assert {name: one(samples, f"network.{name}").value for name in ("reached", "published")} == {
        "reached": float(unreached != "reached"),
        "published": float(unreached != "published"),
    }


def test_address_that_the_host_has_too_is_not_its_own(tmp_path: Path) -> None:
    def reply(instance: FakeInstance, argv: Sequence[str]) -> ExecResult | None:
        place = b'{"addresses": ["192.0.2.1", "10.87.0.2"], "gateway": "10.87.0.1"}'
        return ExecResult(tuple(argv), 0, place, b"", 1) if argv[1] in ("place", "serve") else None

    assert values(measure(tmp_path, Behaviour(reply=reply)), "network.own") == [0]


@pytest.mark.parametrize("command", ["serve", "--server", "--client", "pingpong", "connect", "place"])
def test_tool_that_fails_is_an_error(command: str, tmp_path: Path) -> None:
    context, driver = visit(tmp_path, Behaviour(fail_exec=command), shared=False, small_s=0.1)
    with pytest.raises(TareError, match="told to fail"):
        list(Network().measure(context))
    assert driver.open_instances() == []


def test_guest_clock_off_the_hosts_pace_is_invalid(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="clock"):
        measure(tmp_path, Behaviour(guest_clock=2.0))
