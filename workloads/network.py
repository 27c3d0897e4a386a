"""Networks: connecting, round trip and throughput between an instance and its host, and whose network it is."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from runtime.driver import Kind
from runtime.instance import Instance
from runtime.spec import NetworkMode, NetworkSpec
from workloads.base import Context, Stage, Workload
from workloads.honesty import GRACE_S, demand_one_clock, run_timed, start_cost_s
from workloads.metric import Better, Metric, Sample
from workloads.tools import gauge, iperf3

_UP, _DOWN = Better.HIGHER, Better.LOWER
_STREAM, _PING = "one TCP stream from the instance to its host", "one byte to the host and back on an open connection"
_OPEN = "a TCP connection to the host opened, answered one byte, and closed"
_HOST_MODE = "; on the host's own network in place of a bridge"
THROUGHPUT = Metric("network.throughput", "B/s", _UP, _STREAM, True)
ROUND_TRIP = Metric("network.round_trip", "s", _DOWN, _PING, True)
CONNECT = Metric("network.connect", "s", _DOWN, _OPEN, True)
HOST_THROUGHPUT = Metric("network.host_mode_throughput", "B/s", _UP, _STREAM + _HOST_MODE, True)
HOST_ROUND_TRIP = Metric("network.host_mode_round_trip", "s", _DOWN, _PING + _HOST_MODE, True)
HOST_CONNECT = Metric("network.host_mode_connect", "s", _DOWN, _OPEN + _HOST_MODE, True)
OWN = Metric("network.own", "bool", _UP, "whether it has addresses, and none that its host has")
REACHED = Metric("network.reached", "bool", _UP, "whether its host is answered at its own address, over the bridge")
PUBLISHED = Metric("network.published", "bool", _UP, "whether its host is answered at a published port, through NAT")

OWN_MODE = (THROUGHPUT, ROUND_TRIP, CONNECT)
HOST_MODE = (HOST_THROUGHPUT, HOST_ROUND_TRIP, HOST_CONNECT)
PORT = 4000  # inside an instance with a network of its own nobody else listens
LOOPBACK, ANY = "127.0.0.1", "0.0.0.0"  # noqa: S104 - in an instance


class Network(Workload):
    """A client in a fresh instance, the server a native process in the host's own network; `small_s` a window.

    Containers and VMs are on a bridge; native, which has no network of its own, talks over the host's loopback: the
    baseline. A container is measured on the host's network too (`host_mode`), where nothing should be lost. The
    stream is iperf3's (whole seconds, what the receiver got); connections and round trips are the gauge's. Then the
    host calls a server inside, at the instance's own address and at a port of the host that leads to it.
    """

    name = "network"
    stage = Stage.OWN
    metrics = (*OWN_MODE, *HOST_MODE, OWN, REACHED, PUBLISHED)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one figure each. Raises TareError when a tool or a launch fails, Invalid by the clock."""
        small_s, spec, kind = context.param("small_s", 0.5), context.prepared.spec, context.driver.kind
        with ExitStack() as stack:
            peer = stack.enter_context(context.peer())
            server = free_port()
            outside = gauge.serve(peer, ANY, server, GRACE_S)
            if kind is Kind.NATIVE:
                native = stack.enter_context(context.launch())
                yield from _figures(native, peer, LOOPBACK, server, small_s, OWN_MODE)
                yield _own(gauge.place(native, GRACE_S), outside)
                return
            published = free_port()
            network = NetworkSpec(mode=NetworkMode.BRIDGE, ports=((published, PORT),))
            bridged = stack.enter_context(context.launch(replace(spec, network=network)))
            place = gauge.serve(bridged, ANY, PORT, GRACE_S)
            yield from _figures(bridged, peer, place.gateway, server, small_s, OWN_MODE)
            yield _own(place, gauge.place(peer, GRACE_S))
            yield Sample(REACHED.name, float(any(_answered(peer, address, PORT) for address in place.addresses)))
            yield Sample(PUBLISHED.name, float(_answered(peer, LOOPBACK, published)))
            if kind is Kind.CONTAINER:
                hosted = stack.enter_context(context.launch(replace(spec, network=NetworkSpec(mode=NetworkMode.HOST))))
                yield from _figures(hosted, peer, LOOPBACK, server, small_s, HOST_MODE)


def free_port() -> int:
    """A TCP port of the host that nobody uses, as the kernel chooses it."""
    with socket.create_server((LOOPBACK, 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


def _figures(
    instance: Instance, peer: Instance, address: str, server: int, small_s: float, metrics: tuple[Metric, ...]
) -> Iterator[Sample]:
    throughput, round_trip, connect = metrics
    yield Sample(throughput.name, _stream(instance, peer, address, small_s))
    yield Sample(round_trip.name, 1 / gauge.measure(instance, "pingpong", small_s, address, server).rate)
    yield Sample(connect.name, 1 / gauge.measure(instance, "connect", small_s, address, server).rate)


def _stream(instance: Instance, peer: Instance, address: str, seconds: float) -> float:
    port = free_port()
    peer.exec(iperf3.server_argv(port), GRACE_S).check()
    start_s = start_cost_s(instance, iperf3.PROBE)
    result = run_timed(instance, iperf3.client_argv(address, port, seconds), seconds)
    stream = iperf3.parse(result.stdout)
    demand_one_clock(result, stream.elapsed_s, start_s)
    return stream.bytes / stream.elapsed_s


def _own(inside: gauge.Place, outside: gauge.Place) -> Sample:
    own = bool(inside.addresses) and not set(inside.addresses) & set(outside.addresses)
    return Sample(OWN.name, float(own))


def _answered(peer: Instance, address: str, port: int) -> bool:
    return gauge.reached(peer.exec(gauge.timed_argv("connect", 0, address, port), GRACE_S))
