"""The data: every raw sample, the journal itself, and the claims table in forms that a paper takes."""

from __future__ import annotations

import gzip
from collections.abc import Iterator

from harness.results import JOURNAL
from reports import export
from reports.page import Download, Part
from reports.sections.base import Section, View

PLAIN_BYTES, LARGEST_BYTES = 1 << 20, 2 << 20


class Data(Section):
    """Downloads carried inside the page."""

    order = 24

    def parts(self, view: View) -> Iterator[Part]:
        """Samples and journal, compressed where large; what is too large even so is named with where it lies."""
        rows, words = view.rows, view.words
        carried = [
            Download(name=name, label=label, media_type=media, content=content)
            for name, label, media, content in (
                ("claims.csv", "Claims table, CSV", "text/csv", export.claims_csv(rows, words)),
                ("claims.tex", "Claims table, LaTeX", "text/x-tex", export.claims_latex(rows, words)),
            )
        ]
        left_out = []
        journal = view.frame.run.directory / JOURNAL
        for name, label, content in (
            ("samples.csv", "Every raw sample, CSV", export.samples_csv(view.frame)),
            (JOURNAL, "The journal, JSON lines", journal.read_bytes() if journal.exists() else b""),
        ):
            packed = pack(name, label, content)
            if not content:
                continue
            if len(packed.content) > LARGEST_BYTES:
                left_out.append(f"{name} is too large to be carried here; it lies in the run's directory.")
            else:
                carried.append(packed)
        yield Part(
            slug="data",
            heading=view.words.say("section.data"),
            answer=f"{len(view.frame.samples)} raw samples in {len(view.frame.run.records)} records; none was dropped.",
            paragraphs=tuple(left_out),
            downloads=tuple(carried),
        )


def pack(name: str, label: str, content: bytes) -> Download:
    """`content` as a download, gzipped (without a time stamp) beyond PLAIN_BYTES."""
    if len(content) <= PLAIN_BYTES:
        media = "text/csv" if name.endswith(".csv") else "application/x-ndjson"
        return Download(name=name, label=label, media_type=media, content=content)
    packed = gzip.compress(content, mtime=0)
    return Download(name=f"{name}.gz", label=f"{label}, gzip", media_type="application/gzip", content=packed)
