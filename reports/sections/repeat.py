"""How to repeat the run and how to cite it: versions, digests, seed, command."""

from __future__ import annotations

from collections.abc import Iterator

from reports.page import Column, Part, Table
from reports.sections.base import Section, View
from reports.sections.host import flatten


class Repeat(Section):
    """What another pair of hands needs."""

    order = 25

    def parts(self, view: View) -> Iterator[Part]:
        """The command and the versions; then a citation."""
        header = view.frame.run.header
        rows = [
            ("run", header.run_id),
            ("started", header.started_utc),
            ("profile", header.profile),
            ("seed", str(header.seed)),
            ("host fingerprint", header.fingerprint),
            *((f"image {name}", digest) for name, digest in header.image.items()),
            *((f"{topic} {name}", value) for topic, name, value in flatten({"tare": header.host.get("tare", {})})),
        ]
        yield Part(
            slug="repeat",
            heading=view.words.say("section.repeat"),
            answer="The same seed gives the same order. Compare only within one host fingerprint and one profile.",
            code=header.command,
            tables=(
                Table(
                    slug="versions",
                    caption="Versions and digests",
                    columns=(Column("Item"), Column("Value")),
                    rows=tuple(rows),
                ),
            ),
        )
        year = header.started_utc[:4]
        yield Part(
            slug="cite",
            heading=view.words.say("section.cite"),
            code=citation(header.run_id, year, str(header.host.get("tare", {}).get("version", ""))),
        )


def citation(run_id: str, year: str, version: str) -> str:
    """A BibTeX entry for the run."""
    return "\n".join((
        f"@misc{{tare-{run_id},",
        "  title = {Tare: containers and virtual machines, measured on one host},",
        "  author = {{The Tare maintainers}},",
        f"  year = {{{year}}},",
        f"  note = {{Version {version or 'unknown'}, run {run_id}}}",
        "}",
    ))  # fmt: skip
