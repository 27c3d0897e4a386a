"""Startup to a service's first answer over the instance's own network, as a client outside sees it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from runtime.driver import Kind
from runtime.instance import Instance
from runtime.spec import NetworkMode, NetworkSpec
from workloads import hostview
from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import GRACE_S
from workloads.metric import Better, Metric, Phase, Sample
from workloads.network import ANY, LOOPBACK, PORT, free_port
from workloads.startup import since_request_s
from workloads.tools import gauge

ANSWERED = Metric("startup.answered", "s", Better.LOWER, "request to a server's first answer over the network", True)
NETWORKED = Metric("startup.answered_ready", "s", Better.LOWER, "request to ready, on a bridge", True)


class StartupAnswered(Workload):
    """`repeats` launches on a bridge (default 3, after one that is kept as warm-up); native is on the host's network.

    A server is started inside as soon as the instance is ready; once it listens, the host connects to the instance's
    own address and is answered one byte. One command's way in and out is in the figure, for every driver alike.
    """

    name = "startup_answered"
    stage = Stage.OWN
    metrics = (ANSWERED, NETWORKED)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield both phases of every launch. Raises Invalid where nobody answers."""
        native = context.driver.kind is Kind.NATIVE
        network = NetworkSpec() if native else NetworkSpec(mode=NetworkMode.BRIDGE)
        repeats = int(context.param("repeats", 3))
        for iteration in range(repeats + 1):
            phase = Phase.WARMUP if repeats and not iteration else Phase.MEASURE
            labels = {"iteration": str(iteration)}
            with context.launch(replace(context.prepared.spec, network=network)) as instance:
                yield Sample(ANSWERED.name, _answered_s(instance, native=native), phase, labels)
                yield Sample(NETWORKED.name, since_request_s(instance.timeline, "ready"), phase, labels)


def _answered_s(instance: Instance, *, native: bool) -> float:
    port = free_port() if native else PORT
    place = gauge.serve(instance, ANY, port, GRACE_S)
    addresses = (LOOPBACK,) if native else place.addresses
    try:
        answered_ns = hostview.first_answer_ns(addresses[0], port, GRACE_S)
    except (OSError, IndexError) as error:
        raise Invalid("first answer", f"nobody answers at {', '.join(addresses) or 'no address'}: {error}") from error
    return (answered_ns - dict(instance.timeline.events())["request"]) / 1e9
