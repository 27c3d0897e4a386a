"""The claims table for a terminal: the page's first screen, narrower."""

from __future__ import annotations

import io
import shutil

from reports import cells
from reports.claims import Estimate
from reports.sections.base import View
from reports.words import Words

PLAIN_WIDTH = 100


def lines(view: View, *, rich: bool, width: int | None = None) -> list[str]:
    """The table as lines; claims that no workload tests follow it, told together.

    `rich`: for a terminal, in its width and with its styles; else plain, 100 columns wide.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    out = io.StringIO()
    columns = width or (shutil.get_terminal_size().columns if rich else PLAIN_WIDTH)
    console = Console(
        file=out, width=columns, force_terminal=rich, no_color=not rich, highlight=False, legacy_windows=False
    )
    words = view.words
    table = Table(box=box.SIMPLE_HEAD if rich else box.ASCII2, show_edge=False, pad_edge=False)
    for name in ("blank", "claim", "container", "vm", "ratio", "verdict"):
        right = name in ("container", "vm", "ratio")
        heading = words.say(f"head.{name}")
        table.add_column(Text(heading), justify="right" if right else "left", overflow="fold")
    for row in (row for row in view.rows if row.container):
        claimed = " / ".join(
            text for side in ("container", "vm") if (text := words.own_text(row.claim.texts, side)) != "—"
        )
        ratio = cells.contrast(row.contrast, words)
        table.add_row(*(Text(text) for text in (
            words.own_text(row.claim.texts, "row"),
            claimed,
            _side(row.container, words),
            _side(row.vm, words),
            " ".join(filter(None, (ratio.text, f"({ratio.note})" if ratio.note else ""))) if row.contrast else "—",
            cells.ruling(row, words),
        )))  # fmt: skip
    console.print(table)
    bare: dict[str, list[str]] = {}
    for row in view.rows:
        if not row.container:
            bare.setdefault(cells.ruling(row, words), []).append(words.own_text(row.claim.texts, "row"))
    for reason, names in bare.items():
        console.print(Text(f"{', '.join(names)}: {reason}"))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def _side(estimates: tuple[Estimate, ...], words: Words) -> str:
    if not estimates or estimates[0].value is None:
        return words.say("note.not_measured")
    value = cells.cell(estimates[0], words)
    return " ".join(filter(None, (value.text, value.mark, value.note)))
