"""Performance: every part of the overhead set against native, and native against itself."""

from __future__ import annotations

from collections.abc import Iterator

from harness import stats
from reports import figures
from reports.claims import NATIVE, Row
from reports.figures import Lane
from reports.page import Column, Figure, Table, Value
from reports.rules import relative
from reports.sections.base import ClaimSection, View, sample_table
from reports.units import exact, times


class Performance(ClaimSection):
    """Performance relative to native: 1 is native, below 1 is worse, whichever way the metric runs."""

    claim = "performance"
    metrics = (
        "overhead.cpu_events",
        "overhead.cpu_float",
        "overhead.memory_bandwidth",
        "overhead.memory_triad",
        "overhead.memory_latency",
        "overhead.kernel_syscalls",
        "overhead.kernel_spawns",
        "overhead.kernel_context_switches",
        "overhead.kernel_page_faults",
        "overhead.disk_seqwrite_bandwidth",
        "overhead.disk_randwrite_iops",
        "overhead.disk_fsync_iops",
        "overhead.disk_seqread_bandwidth",
        "overhead.disk_randread_iops",
        "network.throughput",
        "network.round_trip",
    )
    method = (
        "The same tools from the same image run under every driver; ratios are taken within a block, against native.",
        "The estimate is exp(median of log ratios); its interval comes from order statistics of the blocks.",
        "The grey band is the equivalence margin: at least 3 %, or twice the half width of native against native.",
    )

    def figures(self, view: View, row: Row) -> Iterator[Figure]:
        """Ratios with intervals and the A/A twin beside them; then their order in time."""
        table = ratios(view, self.metrics)
        lanes = [lane for lane, _ in table]
        if lanes:
            margins = [margin for _, margin in table if margin is not None]
            edge = 1 + max(margins, default=stats.MIN_MARGIN)
            yield figures.forest(
                "performance-ratios",
                "Performance relative to native, part by part; native~aa is native against itself",
                findings(lanes),
                lanes,
                "performance ÷ native",
                band=(1 / edge, edge),
                data=ratio_table(lanes),
            )
            real = [lane for lane in lanes if not lane.emulated]
            if len(real) < len(lanes) and any(lane.label != "native~aa" for lane in real):
                yield figures.forest(
                    "performance-near",
                    "The same without the emulated machines, close enough to see the margin",
                    findings(real),
                    real,
                    "performance ÷ native",
                    band=(1 / edge, edge),
                )
        found = [
            view.lane(label, list(blocks.items()))
            for label in view.frame.labels()
            if label != NATIVE and (blocks := relative(view.evidence, self.metrics[0], label))
        ]
        if found:
            yield from figures.drift(
                "performance-order",
                "CPU work ÷ native, block by block, each against its own median: the twin shows what is noise",
                found,
                data=sample_table("performance-order-data", "CPU work ÷ native", found, "×"),
            )


def findings(lanes: list[Lane]) -> str:
    """The estimates in words."""
    return "; ".join(f"{lane.shown}: {times(lane.interval[0])}" for lane in lanes if lane.interval) or "no intervals"


def ratios(view: View, metrics: tuple[str, ...]) -> list[tuple[Lane, float | None]]:
    """A lane with interval for every part and driver that has both sides, and the part's equivalence margin."""
    found = []
    for metric in metrics:
        control = view.evidence.control(metric)
        margin = stats.equivalence_margin(control.interval) if control and control.interval else None
        for label in view.frame.labels():
            blocks = relative(view.evidence, metric, label) if label != NATIVE else {}
            if blocks:
                estimate = view.evidence.summary(metric, label, blocks, "×")
                name = f"{metric.partition('.')[2].replace('_', ' ')}, {label}"
                found.append((view.lane(label, list(blocks.items()), estimate, name), margin))
    return found


def ratio_table(lanes: list[Lane]) -> Table:
    """The chart's estimates and intervals."""
    columns = (
        Column("Part and driver"),
        Column("Ratio", "×", number=True),
        Column("Low", number=True),
        Column("High", number=True),
    )
    rows: list[tuple[Value | str, ...]] = []
    for lane in lanes:
        ends = tuple(Value(f"{end:.4f}", exact(end)) for end in lane.interval or ())
        rows.append((lane.shown, *(ends or (Value("too few blocks", absent=True),) * 3)))
    return Table(
        slug="performance-ratios-data", caption="Performance relative to native", columns=columns, rows=tuple(rows)
    )
