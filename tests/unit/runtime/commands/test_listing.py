"""Listings shaped by `--format`, as Docker shapes them."""

from __future__ import annotations

import json

import pytest

from runtime.commands import listing
from runtime.errors import UsageError

HEADS = {"ID": "CONTAINER ID", "Names": "NAMES", "Labels": "LABELS"}
_LABELS, _LABEL = listing.labels({"a.b": "1", "c": ""})
ROWS = [
    {"ID": "abc", "Names": "web", "Labels": _LABELS, "Label": _LABEL},
    {"ID": "d", "Names": "a longer one", "Labels": "", "Label": lambda name: ""},
]


def shown(capsys: pytest.CaptureFixture[str], form: str | None) -> list[str]:
    listing.show(ROWS, HEADS, form, ("ID", "Names"))
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("form", [None, "", "table"])
def test_a_table_has_the_usual_columns(form: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, form) == ["CONTAINER ID   NAMES", "abc            web", "d              a longer one"]


def test_a_table_has_the_columns_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    found = shown(capsys, r'table {{.Names}}\t{{.Label "a.b"}}\t{{.Labels}}')
    assert [line.split("   ")[0] for line in found] == ["NAMES", "web", "a longer one"]
    assert found[0].split()[1:] == ["B", "LABELS"]
    assert found[1].split()[1:] == ["1", "a.b=1,c="]


def test_a_template_makes_a_line_of_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, r"{{.ID}}\t{{.Names}}") == ["abc\tweb", "d\ta longer one"]


def test_json_is_an_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert [json.loads(line)["Names"] for line in shown(capsys, "json")] == ["web", "a longer one"]


def test_a_column_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"there is no \.Colour"):
        shown(capsys, "{{.Colour}}")


@pytest.mark.parametrize(
    ("size_bytes", "words"), [(0, "0B"), (999, "999B"), (1234, "1.23kB"), (74_800_000, "74.8MB"), (2 * 10**12, "2TB")]
)
def test_sizes_in_docker_s_words(size_bytes: int, words: str) -> None:
    assert listing.human(size_bytes) == words
