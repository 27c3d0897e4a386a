"""The page: one HTML file that asks nobody for anything, from a run, its rows and its sections.

Autoescaping is on and undefined names raise. The script is allowed by its hash alone, so nothing that
a journal says can run. The table macro is the only way to a table; charts come ready drawn.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import stats
from harness.results import ResultsError
from reports import cells
from reports.claims import CONTAINER, VM, Estimate, Evidence, Row, Ruling, judge
from reports.page import Figure, Part, Value
from reports.sections.base import View, sections
from reports.units import human
from reports.words import Words

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"
LIMIT_BYTES = 8 << 20
RANKS = {ruling: rank for rank, ruling in enumerate(Ruling)}


def page(view: View) -> str:
    """The whole report as HTML. Raises ResultsError if it would be larger than 8 MiB."""
    parts = [part for section in sections() for part in section().parts(view)]
    order = {row.claim.id: place for place, row in enumerate(view.rows)}
    parts.sort(key=lambda part: order.get(part.slug, len(order)))
    text = str(_environment(view.words).get_template("page.html.j2").render(**_context(view, parts)))
    if len(text.encode()) > LIMIT_BYTES:
        raise ResultsError("report", f"{len(text.encode()) >> 20} MiB, over the limit of 8", "report a shorter run")
    return text


def view_of(evidence: Evidence, words: Words) -> View:
    """Judge the claims and gather what sections look at."""
    return View(evidence=evidence, rows=judge(evidence), words=words)


def _environment(words: Words) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        lstrip_blocks=True,
    )
    environment.globals.update(
        say=words.say,
        data_uri=data_uri,
        drawn=lambda figure: drawn(figure, words),
        size=lambda content: human(len(content), "B"),
    )
    environment.filters["phrase"] = words.phrase
    return environment


def _context(view: View, parts: list[Part]) -> dict[str, Any]:
    from markupsafe import Markup

    script = (TEMPLATES / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    header = view.frame.run.header
    return {
        "language": "zh-Hans" if view.words.language == "zh" else view.words.language,
        "title": view.words.say("title.main"),
        "host_line": host_line(view),
        "run_line": [run_line(view)],
        "banner": list(banner(view)),
        "rows": [_row(view, row) for row in view.rows],
        "refusals": list(refusals(view)),
        "parts": parts,
        "source": view.evidence.claims.source,
        "version": str(header.host.get("tare", {}).get("version", "")),
        "style": Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),  # noqa: S704 - our own file
        "script": Markup(script),  # noqa: S704 - our own file
        "script_hash": f"sha256-{digest}",
    }


def data_uri(media_type: str, content: bytes) -> str:
    """`content` as a data: URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


def drawn(figure: Figure, words: Words) -> Markup:
    """A chart's SVG with its finding as the alternative text, its words in the page's language."""
    from markupsafe import Markup

    def said(match: re.Match[str]) -> str:
        return f">{html.escape(words.phrase(html.unescape(match[1])))}</text>"

    text = html.escape(f"{words.phrase(figure.title)}. {words.phrase(figure.finding)}.")
    inline = re.sub(r">([^<>]+)</text>", said, figure.inline)
    return Markup(inline.replace("@FINDING@", text, 1))  # noqa: S704 - drawn by matplotlib, which escapes text


def host_line(view: View) -> str:
    """CPU, cores, memory, kernel, cgroup mode, accelerator: what is known of them."""
    host, say = view.frame.run.header.host, view.words.say
    cpu, memory = host.get("cpu", {}), host.get("memory", {})
    found = [
        cpu.get("model"),
        say("line.cores", n=cpu["logical"]) if "logical" in cpu else None,
        say("line.memory", memory=human(memory["total_bytes"], "B")) if "total_bytes" in memory else None,
        say("line.kernel", kernel=host["kernel"]["release"]) if "release" in host.get("kernel", {}) else None,
        say("line.cgroups", mode=host["cgroup"]["mode"]) if "mode" in host.get("cgroup", {}) else None,
        _accelerator(view),
    ]
    return " · ".join(str(item) for item in found if item)


def _accelerator(view: View) -> str:
    vms = [entry for entry in view.frame.run.header.drivers if entry.kind == "vm" and entry.usable]
    names = dict.fromkeys(view.frame.accelerator(entry.name).upper() for entry in vms)
    return view.words.say("line.accelerator", accelerator=", ".join(names)) if names else view.words.say("line.no_vm")


def run_line(view: View) -> str:
    """Date, profile, number of blocks, duration."""
    header, say = view.frame.run.header, view.words.say
    blocks = view.frame.block_count
    took = sum(event.figures.get("elapsed_s", 0.0) for event in view.frame.run.events)
    found = [
        header.started_utc[:16].replace("T", " ") + " UTC",
        say("line.profile", profile=header.profile),
        say("line.time_factor", factor=f"{header.settings['time_factor']:g}")
        if "time_factor" in header.settings
        else None,
        say("line.one_block") if blocks == 1 else say("line.blocks", n=blocks),
        say("line.duration", duration=human(took, "s")) if took > 0 else None,
    ]
    return " · ".join(str(item) for item in found if item)


def banner(view: View) -> Iterator[str]:
    """One sentence for each thing that forbids to conclude something; nothing where nothing does."""
    say, frame = view.words.say, view.frame
    accelerators = {frame.accelerator(label) for label in frame.labels("vm") if frame.has_figures(label)}
    for name in sorted(accelerators - {"kvm"}):
        yield say(f"banner.{name}")
    if view.evidence.claims_nothing:
        yield say("banner.smoke")
    elif frame.block_count < stats.MIN_BLOCKS:
        yield say("banner.blocks", n=frame.block_count)
    controls = ((metric.name, view.evidence.control(metric.name)) for metric in frame.run.header.metrics)
    count = view.evidence.controls
    outside = [name for name, effect in controls if effect and stats.aa_outside(effect, count)]
    if outside:
        yield say("banner.aa", metrics=", ".join(outside))
    unlike = view.evidence.broken_parity(CONTAINER, VM)
    if unlike:
        yield say("banner.parity", what=unlike)
    if frame.run.events and not any(event.event in ("finished", "stopped") for event in frame.run.events):
        yield say("banner.interrupted")


def refusals(view: View) -> Iterator[str]:
    """What could not be measured here and why, one sentence a claim, like ones told together."""
    told: dict[str, list[str]] = {}
    for row in view.rows:
        if row.ruling in (Ruling.UNMEASURABLE, Ruling.UNMEASURED):
            told.setdefault(cells.ruling(row, view.words), []).append(view.words.own_text(row.claim.texts, "row"))
    for reason, names in told.items():
        yield f"{', '.join(names)}: {reason}."


def _row(view: View, row: Row) -> dict[str, Any]:
    words = view.words
    claimed = [words.own_text(row.claim.texts, side) for side in ("container", "vm")]
    plain = row.ruling in (Ruling.CONFIRMED, Ruling.REFUTED) and row.reason.key in ("reason.both", "reason.neither")
    return {
        "id": row.claim.id,
        "name": words.own_text(row.claim.texts, "row"),
        "claimed": " / ".join(text for text in claimed if text != "—"),
        "container": _side(view, row.container),
        "vm": _side(view, row.vm),
        "ratio": cells.contrast(row.contrast, words),
        "n": row.n,
        "ruling": str(row.ruling),
        "rank": RANKS[row.ruling],
        "word": words.say(f"verdict.{row.ruling}"),
        "reason": "" if plain else words.tell(row.reason),
    }


def _side(view: View, estimates: tuple[Estimate, ...]) -> list[dict[str, Any]]:
    # The deciding driver always; the others where they have a figure: their gaps stand with the evidence.
    return [_named(view, each) for place, each in enumerate(estimates) if place == 0 or each.value is not None]


def _named(view: View, estimate: Estimate) -> dict[str, Any]:
    value: Value = cells.cell(estimate, view.words)
    return {
        "name": estimate.label,
        "text": value.text,
        "exact": value.exact,
        "mark": value.mark,
        "note": value.note,
        "absent": value.absent,
        "unit": estimate.unit,
    }
