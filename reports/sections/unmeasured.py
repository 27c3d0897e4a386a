"""The claims that no workload of this version tests: each keeps its row, its question, and what would test it."""

from __future__ import annotations

from collections.abc import Iterator

from reports.page import Part
from reports.sections.base import Section, View, sections


class Unmeasured(Section):
    """One short part for every claim without a section of its own."""

    order = 10

    def parts(self, view: View) -> Iterator[Part]:
        """In the order of the table."""
        own = {getattr(section, "claim", "") for section in sections()}
        for row in view.rows:
            if row.claim.id not in own:
                yield Part(
                    slug=row.claim.id,
                    heading=view.words.own_text(row.claim.texts, "question"),
                    answer=view.words.say("answer.unmeasured", tested_by=row.claim.tested_by),
                    verdict=row.ruling,
                )
