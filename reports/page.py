"""What a page is made of: tables, figures, sections. Data only; `render` turns it into HTML."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column. `unit` stands in the head; `number` columns are right-aligned."""

    name: str
    unit: str = ""
    number: bool = False


@dataclass(frozen=True, slots=True)
class Value:
    """A table's cell: `text` as shown, `exact` the figure in full (hover and sorting), `mark` as `TCG`.

    `note` stands small under it: an interval, a limiter.
    """

    text: str
    exact: str = ""
    mark: str = ""
    absent: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """`rows` hold one Value (or text) a column; the first is the row's header. A `folded` one opens on demand."""

    slug: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value | str, ...], ...]
    note: str = ""
    folded: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawn chart. `inline` is SVG for the page, `svg` and `pdf` stand alone; `finding` is its alt text."""

    slug: str
    title: str
    finding: str
    inline: str
    svg: bytes
    pdf: bytes
    data: Table | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One section of the page: a question, its answer, what shows it, and how it was found."""

    slug: str
    heading: str
    answer: str = ""
    verdict: str = ""
    paragraphs: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()
    tables: tuple[Table, ...] = ()
    method: tuple[str, ...] = ()
    failures: str = ""
    code: str = ""
    downloads: tuple[Download, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Download:
    """A file carried inside the page."""

    name: str
    label: str
    media_type: str
    content: bytes = field(repr=False)
