"""The listings that Docker's `--format` shapes: a table, a table of one's own columns, JSON, or a template per row.

A row is a mapping by Docker's names of the columns. Not what stands in a row (`described`, `usage`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from runtime.commands.templates import Template

option = click.option("--format", "form", metavar="TEMPLATE", help="table, table {{.ID}}…, json, or a Go template.")
Row = Mapping[str, Any]


def show(rows: Sequence[Row], heads: Mapping[str, str], form: str | None, columns: Sequence[str]) -> None:
    """Print `rows` as `form` says, the columns `columns` unless it says which. `heads` are all there are.

    Raises UsageError for a template that is none, or asks for what is not there.
    """
    form = form or "table"
    if form == "json":
        for row in rows:
            click.echo(json.dumps({name: value for name, value in row.items() if not callable(value)}))
    elif form == "table":
        table(tuple(heads[name] for name in columns), [tuple(str(row[name]) for name in columns) for row in rows])
    elif form.startswith("table "):
        template = Template(_plain(form.removeprefix("table ").strip()))
        label = {"Label": lambda name: name.rpartition(".")[2].upper()}
        head, *lines = (template.render(row).split("\t") for row in ({**heads, **label}, *rows))
        table(head, lines)
    else:
        template = Template(_plain(form))
        for row in rows:
            click.echo(template.render(row))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, each as wide as what is in it."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        click.echo("   ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def _plain(text: str) -> str:
    r"""Docker takes \t and \n outside actions, too, for what they are in a shell's quotes."""
    return re.sub(r"\\[tn]", lambda match: {"\\t": "\t", "\\n": "\n"}[match[0]], text)


def labels(found: Mapping[str, str]) -> tuple[str, Callable[[str], str]]:
    """What `.Labels` and `.Label NAME` show."""
    return ",".join(f"{key}={value}" for key, value in found.items()), lambda name: found.get(name, "")


def human(size_bytes: int) -> str:
    """A size as Docker shows it: three digits, decimal units."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            break
        size /= 1000
    return f"{size:.3g}{unit}"
