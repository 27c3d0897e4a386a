"""Network: whose network an instance has, and what connecting, round trips and a stream cost in each mode."""

from __future__ import annotations

from collections.abc import Iterator

from reports import figures
from reports.claims import Row
from reports.figures import Lane
from reports.page import Figure
from reports.sections.base import ClaimSection, View, sample_table

MODES = (("network.round_trip", ""), ("network.host_mode_round_trip", ", host's network"))


class NetworkSection(ClaimSection):
    """Reached or not, and at what cost."""

    claim = "network"
    metrics = (
        "network.own",
        "network.reached",
        "network.published",
        "network.connect",
        "network.round_trip",
        "network.throughput",
        "network.host_mode_connect",
        "network.host_mode_round_trip",
        "network.host_mode_throughput",
    )
    method = (
        "The other end is a native process in the host's own network; native itself talks over the host's loopback.",
        "Round trips and connections are one byte, answered; the stream is iperf3's, as received.",
        "Reached means that a server inside answered, at the instance's own address and at a published port.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Round trips of each driver and mode, then their order in time."""
        lanes = list(round_trips(view))
        if lanes:
            yield figures.dots(
                "network-round-trip",
                "One byte from an instance to its host and back, on a bridge and on the host's own network",
                "; ".join(lane.shown for lane in lanes),
                lanes,
                "s",
                "round trip",
                data=sample_table("network-round-trip-data", "Round trips, every sample", lanes, "s"),
            )
        medians = view.medians("network.round_trip")
        if medians:
            yield from figures.drift(
                "network-order",
                "The same in the order measured, each against its own median: a drift would show as a slope",
                medians,
                data=sample_table("network-order-data", "Round trips, median of each block", medians, "s"),
            )


def round_trips(view: View) -> Iterator[Lane]:
    """One lane a driver and mode."""
    for metric, mode in MODES:
        for label in view.frame.labels():
            points = [(float(block), value) for block, value, _ in view.frame.values(metric, label)]
            if points:
                yield view.lane(label, points, view.evidence.estimate(metric, label), f"{label}{mode}")
