"""Charts: container and VM on one axis, distributions rather than means, readable in both themes and in grey.

Every chart is drawn once with matplotlib and kept three ways: SVG for the page (text stays text, ink is
`currentColor`, hues are CSS variables), SVG and PDF that stand alone. The same data give the same bytes.
Which chart answers which question is the sections' business.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from reports.page import Figure, Table
from reports.units import human, scale_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

# Okabe–Ito's blue and orange; the ink and the greys are chosen to be told apart in the SVG's text.
INK, GREY, FAINT = "#1b1c1d", "#767778", "#b9babb"
HUES = {"container": "#0072b2", "vm": "#e69f00", "native": GREY}
THEMED = {
    INK: "currentColor",
    GREY: "var(--grey)",
    FAINT: "var(--faint)",
    "#0072b2": "var(--blue)",
    "#e69f00": "var(--orange)",
}
MARKERS = {
    "native": "X",
    "native~aa": "x",
    "container": "o",
    "docker": "s",
    "runc": "D",
    "crun": "P",
    "vm": "^",
    "microvm": "v",
}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    "font.family": "DejaVu Sans",
    "font.size": 8.0,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "grid.color": FAINT,
    "grid.linewidth": 0.4,
    "hatch.linewidth": 0.4,
    "hatch.color": FAINT,
    "legend.frameon": False,
}
WIDTH_IN, ROW_IN, LOG_SPAN = 5.6, 0.25, 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One driver's data: `points` are (block or position, value); `name` is shown, `label` picks the marker."""

    name: str
    label: str
    kind: str
    points: tuple[tuple[float, float], ...]
    mark: str = ""
    interval: tuple[float, float, float] | None = None

    @property
    def colour(self) -> str:
        """The hue of its kind; grey where a VM is emulated."""
        return GREY if self.emulated else HUES.get(self.kind, GREY)

    @property
    def shown(self) -> str:
        """The name, with the TCG mark where it belongs."""
        return f"{self.name} ({self.mark})" if self.mark else self.name

    @property
    def emulated(self) -> bool:
        """Whether it is drawn grey and hatched."""
        return bool(self.mark)

    @property
    def line(self) -> Any:
        """Solid; dashed where emulated and for an A/A twin."""
        return (0, (2, 1.5)) if self.emulated or "~" in self.label else "-"

    def marker(self) -> dict[str, Any]:
        """Marker, face and edge as plot() wants them: hollow where emulated."""
        shape = MARKERS.get(self.label, "*")
        face = "none" if self.emulated else self.colour
        return {"marker": shape, "markerfacecolor": face, "markeredgecolor": self.colour if shape == "x" else INK}


@dataclass(frozen=True, slots=True)
class Bound:
    """A line across the chart at `value`, with its name: a claim's threshold, a margin, native."""

    value: float
    name: str


@contextmanager
def _canvas(height_in: float) -> Iterator[tuple[Canvas, Axes]]:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    with mpl.rc_context(STYLE):
        canvas = Canvas(figsize=(WIDTH_IN, height_in), layout="constrained")
        FigureCanvasAgg(canvas)
        yield canvas, canvas.add_subplot()


def _finish(canvas: Canvas, slug: str, title: str, finding: str, data: Table | None) -> Figure:
    import matplotlib as mpl

    svg, pdf = io.BytesIO(), io.BytesIO()
    layout = canvas.get_layout_engine()
    if layout is not None:  # once, instead of again for every format
        layout.execute(canvas)
        canvas.set_layout_engine("none")
    with mpl.rc_context({"svg.hashsalt": slug}):
        canvas.savefig(svg, format="svg", transparent=True, metadata={"Date": None, "Title": title})
        canvas.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Title": title})
    return Figure(
        slug=slug,
        title=title,
        finding=finding,
        inline=inline_svg(svg.getvalue().decode(), slug),
        svg=svg.getvalue(),
        pdf=pdf.getvalue(),
        data=data,
    )


def inline_svg(svg: str, slug: str) -> str:
    """The inside of a stand-alone SVG made fit for a page: themed, ids prefixed by `slug`, no style sheet, no metadata.

    Returns the whole element, with its role and the ids of the title and description that the page must supply.
    """
    view = re.search(r'viewBox="([^"]+)"', svg)
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(
        r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->|<title>.*?</title>", "", body, flags=re.DOTALL
    )
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda hit: f' id="{slug}-{hit[1]}"' if hit[1] in used else "", body)
    body = re.sub(r'(url\(#|href="#)', rf"\g<1>{slug}-", body).replace("xlink:href", "href")
    body = re.sub(r"font: (?:(\d{3}|bold) )?([\d.]+)px [^;\"]*", r"font-size: \2px", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)
    for colour, themed in THEMED.items():
        body = body.replace(colour, themed)
    body = re.sub(r"\n\s*", "\n", body)
    box = view[1] if view else "0 0 100 100"
    return (
        f'<svg viewBox="{box}" role="img" aria-labelledby="{slug}-alt" class="chart">'
        f'<title id="{slug}-alt">@FINDING@</title>{body}</svg>'
    )


def _hatch_lanes(axes: Axes, lanes: Sequence[Lane]) -> None:
    for row, lane in enumerate(lanes):
        if lane.emulated:
            axes.axhspan(row - 0.42, row + 0.42, facecolor="none", edgecolor=FAINT, hatch="////", linewidth=0, zorder=0)


def _is_log(values: Sequence[float]) -> bool:
    positive = [value for value in values if value > 0]
    return len(positive) == len(values) > 0 and max(positive) / min(positive) > LOG_SPAN


def _axis(axes: Axes, which: str, values: Sequence[float], unit: str, what: str) -> float:
    """Scale one axis for `values` of `unit`: log where they span ratios, else linear. Returns what to divide by."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axis = axes.xaxis if which == "x" else axes.yaxis
    label = axes.set_xlabel if which == "x" else axes.set_ylabel
    if _is_log(values):
        binary = unit in ("B", "bytes")
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(base=2, numticks=5) if binary else LogLocator(numticks=8))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value, unit)))
        axis.set_minor_formatter(NullFormatter())
        if binary:
            axis.set_minor_locator(NullLocator())
        label(f"{what}, log scale")
        return 1.0
    divisor, name = (1.0, unit) if unit == "×" else scale_for(list(values), unit)
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    label(f"{what} ({name})" if name else what)
    return divisor


def tick(value: float, unit: str) -> str:
    """A label of a logarithmic axis."""
    if unit == "×":
        return f"{value:g}×"
    divisor, name = scale_for([value], unit)
    return f"{value / divisor:.4g} {name}"


def _bounds(axes: Axes, bounds: Sequence[Bound]) -> None:
    for bound in bounds:
        axes.axvline(bound.value, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            bound.name, (bound.value, 1), xycoords=("data", "axes fraction"), xytext=(-3, 1),
            textcoords="offset points", ha="right", va="bottom", fontsize=7,
        )  # fmt: skip


def dots(
    slug: str, title: str, finding: str, lanes: Sequence[Lane], unit: str, what: str, *,
    bounds: Sequence[Bound] = (), data: Table | None = None,
) -> Figure:  # fmt: skip
    """One row a driver: every different value a dot, the median a tall tick, its interval a bar under them."""
    with _canvas(0.75 + ROW_IN * max(len(lanes), 1)) as (canvas, axes):
        values = [value for lane in lanes for _, value in lane.points]
        divisor = _axis(axes, "x", [*values, *(bound.value for bound in bounds)], unit, what)
        _hatch_lanes(axes, lanes)
        for row, lane in enumerate(lanes):
            xs = sorted({value / divisor for _, value in lane.points})
            ys = [row + (0.3 * ((index * 0.618034) % 1 - 0.5) if len(xs) > 1 else 0) for index in range(len(xs))]
            axes.plot(xs, ys, linestyle="none", markersize=4.2, markeredgewidth=0.4, **lane.marker())
            if lane.interval is not None and len(xs) > 1:
                middle, low, high = (end / divisor for end in lane.interval)
                axes.plot([low, high], [row + 0.34] * 2, color=INK, linewidth=1.6, solid_capstyle="butt")
                axes.plot([middle] * 2, [row + 0.22, row + 0.44], color=INK, linewidth=1.2)
        _rows(axes, lanes)
        _from_zero(axes, "x", values)
        _bounds(axes, [Bound(bound.value / divisor, bound.name) for bound in bounds])
        return _finish(canvas, slug, title, finding, data)


def _from_zero(axes: Axes, which: str, values: Sequence[float]) -> None:
    # A linear axis that begins elsewhere would make small differences look large.
    scale = axes.get_xscale() if which == "x" else axes.get_yscale()
    if scale == "linear" and values and min(values) >= 0:
        (axes.set_xlim if which == "x" else axes.set_ylim)(0)


def _rows(axes: Axes, lanes: Sequence[Lane]) -> None:
    axes.set_yticks(range(len(lanes)), [lane.shown for lane in lanes])
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x", zorder=0)
    axes.set_axisbelow(True)


def steps(
    slug: str, title: str, finding: str, lanes: Sequence[Lane], unit: str, what: str, *,
    bounds: Sequence[Bound] = (), data: Table | None = None,
) -> Figure:  # fmt: skip
    """Cumulative distributions: the share of instances at or below a value, one line a driver, a marker a sample."""
    with _canvas(2.4) as (canvas, axes):
        values = [value for lane in lanes for _, value in lane.points]
        divisor = _axis(axes, "x", [*values, *(bound.value for bound in bounds)], unit, what)
        for lane in lanes:
            xs = sorted(value / divisor for _, value in lane.points)
            ys = [(index + 1) / len(xs) for index in range(len(xs))]
            axes.step([xs[0], *xs], [0, *ys], where="post", color=lane.colour, linewidth=1.4, linestyle=lane.line)
            axes.plot(xs, ys, linestyle="none", markersize=4, markeredgewidth=0.4, label=lane.shown, **lane.marker())
        axes.set_ylim(0, 1.04)
        axes.set_ylabel("share of instances (0 to 1)")
        axes.grid(axis="both")
        _bounds(axes, [Bound(bound.value / divisor, bound.name) for bound in bounds])
        _legend(canvas, axes)
        return _finish(canvas, slug, title, finding, data)


def _legend(canvas: Canvas, axes: Axes) -> None:
    handles, names = axes.get_legend_handles_labels()
    if names:
        canvas.legend(
            handles,
            names,
            loc="outside lower center",
            ncols=min(len(names), 5),
            fontsize=7,
            handletextpad=0.4,
            columnspacing=1.2,
        )


def order(
    slug: str, title: str, finding: str, lanes: Sequence[Lane], unit: str, what: str, *,
    along: str = "block, in the order measured", zoomed: bool = False, data: Table | None = None,
) -> Figure:  # fmt: skip
    """Values against their place in time or on a ramp, in their unit."""
    from matplotlib.ticker import MaxNLocator

    with _canvas(2.4) as (canvas, axes):
        divisor = _axis(axes, "y", [value for lane in lanes for _, value in lane.points], unit, what)
        for lane in lanes:
            axes.plot(
                [x for x, _ in lane.points], [y / divisor for _, y in lane.points], color=lane.colour,
                linewidth=1.1, linestyle=lane.line, markevery=max(1, len(lane.points) // 12), markersize=4,
                markeredgewidth=0.4, label=lane.shown, **lane.marker(),
            )  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel(along)
        if not zoomed:
            _from_zero(axes, "y", [value for lane in lanes for _, value in lane.points])
        axes.grid(axis="y")
        _legend(canvas, axes)
        return _finish(canvas, slug, title, finding, data)


def drift(slug: str, title: str, lanes: Sequence[Lane], *, data: Table | None = None) -> Iterator[Figure]:
    """Block medians in time order, each driver as a share of its own median: drift, outliers and noise on one scale.

    Yields nothing where no lane has two blocks: one point has no order.
    """
    shares, ranges = [], []
    if all(len(lane.points) < 2 for lane in lanes):
        return
    for lane in lanes:
        middle = sorted(value for _, value in lane.points)[len(lane.points) // 2]
        if middle > 0:
            points = tuple((block, value / middle) for block, value in lane.points)
            low, high = (100 * (end(value for _, value in points) - 1) for end in (min, max))
            shares.append(replace(lane, points=points))
            ranges.append(f"{lane.shown}: {low:+.1f} to {high:+.1f} %")
    finding = "Range of block medians around the driver's own: " + "; ".join(ranges)
    yield order(slug, title, finding, shares, "×", "÷ own median", zoomed=True, data=data)


def forest(
    slug: str, title: str, finding: str, lanes: Sequence[Lane], what: str, *, unit: str = "×",
    band: tuple[float, float] | None = None, centre: float = 1.0, data: Table | None = None,
) -> Figure:  # fmt: skip
    """One row a comparison: estimate and interval against `centre`, or the blocks themselves where they are too few.

    `band` is where no difference is called.
    """
    with _canvas(0.8 + ROW_IN * max(len(lanes), 1)) as (canvas, axes):
        ends = [end for lane in lanes for end in lane.interval or [value for _, value in lane.points]]
        divisor = _axis(axes, "x", [*ends, centre], unit, what)
        if band is not None:
            axes.axvspan(band[0] / divisor, band[1] / divisor, color=FAINT, alpha=0.45, linewidth=0, zorder=0)
        axes.axvline(centre / divisor, color=INK, linewidth=0.8, zorder=1)
        _hatch_lanes(axes, lanes)
        for row, lane in enumerate(lanes):
            points = [value / divisor for _, value in lane.points]
            if lane.interval is not None:
                middle, low, high = (end / divisor for end in lane.interval)
                axes.plot([low, high], [row, row], color=lane.colour, linewidth=1.6, solid_capstyle="butt")
                points = [middle]
            axes.plot(points, [row] * len(points), linestyle="", markersize=5, markeredgewidth=0.5, **lane.marker())
        _rows(axes, lanes)
        return _finish(canvas, slug, title, finding, data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Track:
    """One driver's phases: (name, seconds since the request) for each event, in order."""

    name: str
    kind: str
    events: tuple[tuple[str, float], ...]
    mark: str = ""

    @property
    def shown(self) -> str:
        """The name, with the TCG mark where it belongs."""
        return f"{self.name} ({self.mark})" if self.mark else self.name


SHADES = (0.25, 0.55, 0.85, 1.0)


def waterfall(slug: str, title: str, tracks: Sequence[Track], *, data: Table | None = None) -> Figure:
    """Phases of each driver on one clock that starts at the request, one under another; log, so all can be read."""
    legends = [" · ".join(f"{name} {human(at, 's')}" for name, at in track.events) for track in tracks]
    with _canvas(0.75 + 0.46 * max(len(tracks), 1)) as (canvas, axes):
        moments = [at for track in tracks for _, at in track.events if at > 0]
        start = min(moments) / 4
        _axis(axes, "x", [start, *moments, start * (LOG_SPAN + 1)], "s", "time since the request")
        for row, (track, legend) in enumerate(zip(tracks, legends, strict=True)):
            _bars(axes, row, track, start)
            axes.annotate(
                legend, (start, row - 0.24), xytext=(0, 1.5), textcoords="offset points", va="bottom", fontsize=6.5
            )
        axes.set_yticks(range(len(tracks)), [track.shown for track in tracks])
        axes.set_ylim(len(tracks) - 0.6, -0.65)
        axes.set_xlim(left=start)
        axes.tick_params(axis="y", length=0)
        axes.spines["left"].set_visible(False)
        finding = "; ".join(f"{track.shown}: {legend}" for track, legend in zip(tracks, legends, strict=True))
        return _finish(canvas, slug, title, finding, data)


def _bars(axes: Axes, row: int, track: Track, start: float) -> None:
    begin = start
    colour = GREY if track.mark else HUES.get(track.kind, GREY)
    for index, (_, at) in enumerate(track.events):
        place: dict[str, Any] = {"left": begin, "height": 0.42, "edgecolor": INK}
        axes.barh(row, at - begin, color=colour, alpha=SHADES[min(index, 3)], linewidth=0.5, **place)
        if track.mark:
            axes.barh(row, at - begin, facecolor="none", hatch="////", linewidth=0, **place)
        begin = at
