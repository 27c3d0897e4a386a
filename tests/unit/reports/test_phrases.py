"""What sections write in English is said in Chinese: the table's patterns, and a page without English sentences."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser

import pytest

from reports.phrases import Phrases, phrases

SENTENCE = re.compile(r"[A-Za-z]{3,}(?:[ ,;:]+[A-Za-z]{3,}){2,}")
VOID = {"meta", "input", "br", "path", "use", "circle", "rect", "stop"}


class Prose(HTMLParser):
    """The text of headings, captions, notes, methods and charts: what Tare itself says, not what was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[tuple[str, str]] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.stack.append((tag, dict(attrs).get("scope") or dict(attrs).get("class") or ""))

    def handle_endtag(self, tag: str) -> None:
        while self.stack and self.stack.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        tags = [tag for tag, _ in self.stack]
        if not {"style", "script", "pre", "code", "td", "footer"} & set(tags) and ("th", "row") not in self.stack:
            self.found.append(" ".join(data.split()))


def english(page: str) -> Iterator[str]:
    prose = Prose()
    prose.feed(page)
    return (text for text in prose.found if SENTENCE.search(text))


def test_a_chinese_page_says_no_sentence_in_english(pages: dict[str, str]) -> None:
    left = list(dict.fromkeys(english(pages["zh"])))
    assert left == [], "say it in Chinese in reports/templates/phrases.zh.toml"


def test_the_search_finds_what_is_english(pages: dict[str, str]) -> None:
    assert len(list(english(pages["tcg"]))) > 50


TABLE = Phrases(
    {
        "a cat": "猫",
        "{n} cats": "{n} 只猫",
        "{who} sees {what}": "{who}看见{what}",
        "{n} cats of {n2}": "{n2} 中 {n} 只",
    }
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a cat", "猫"),
        ("3 cats", "3 只猫"),
        ("three cats", "three cats"),
        ("a cat sees 3 cats", "猫看见3 只猫"),
        ("a cat; 3 cats; a dog", "猫；3 只猫；a dog"),
        ("a dog; a mouse", "a dog; a mouse"),
        ("a cat, vm", "猫，vm"),
        ("a dog, a cat, a mouse", "a dog, a cat, a mouse"),
        ("a 猫 sees a cat", "a 猫 sees a cat"),
        ("{n} cats", "{n} cats"),
        ("<b> sees \\1", "<b>看见\\1"),
    ],
)
def test_patterns_are_filled_and_what_is_unknown_stays(text: str, said: str) -> None:
    assert TABLE.say(text) == said


def test_english_needs_no_table_and_every_translation_fills_its_holes() -> None:
    assert phrases("en").say("Median") == "Median"
    chinese = phrases("zh")
    assert chinese.say("12 block, too few for an interval: at least 6 are needed").startswith("12 个区组")
    holes = re.compile(r"\{(\w+)\}")
    for pattern, own in chinese.patterns:
        assert set(holes.findall(own)) <= pattern.groupindex.keys(), own
