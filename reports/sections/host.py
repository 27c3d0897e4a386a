"""The host: everything the run recorded of the machine, by topic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reports.page import Column, Part, Table
from reports.sections.base import Section, View
from reports.units import human


class Host(Section):
    """Machine, kernel, settings, programs, as recorded before the first cell ran; what the harness used of it."""

    order = 20

    def parts(self, view: View) -> Iterator[Part]:
        """One table of topic, item and value."""
        rows = (*flatten(view.frame.run.header.host), *_own(view))
        columns = (Column("Topic"), Column("Item"), Column("Value"))
        yield Part(
            slug="host",
            heading=view.words.say("section.host"),
            tables=(
                Table(
                    slug="host-facts", caption="What was recorded of the host", columns=columns, rows=rows, folded=True
                ),
            ),
        )


def _own(view: View) -> Iterator[tuple[str, str, str]]:
    """What the measuring itself took from the host."""
    own = view.frame.run.own_cpu()
    if own is not None:
        yield "harness", "own CPU time", human(own.cpu_s, "s")
        yield "harness", "share of one CPU", human(own.fraction, "1")


def flatten(host: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(topic, item, value) for every leaf; nested items are joined with dots, lists with commas."""
    for topic, found in host.items():
        for name, value in _leaves(found, ""):
            yield topic, name or topic, value


def _leaves(found: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(found, Mapping):
        for key, value in found.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(found, (list, tuple)):
        yield prefix, ", ".join(str(item) for item in found)
    elif isinstance(found, bool):
        yield prefix, "yes" if found else "no"
    else:
        yield prefix, str(found)
