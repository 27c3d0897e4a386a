"""Sentences that sections write in English, said in another language: by the whole text, or by a pattern with holes.

The table is `templates/phrases.LANGUAGE.toml`: English = translation; `{name}` is a hole, whose content is said in
turn. What it does not hold stays English: names, and what drivers and the host have said. Headings, verdicts and
reasons have keys of their own in `reports.words`.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache
from pathlib import Path

TEMPLATES = Path(__file__).parent / "templates"
_HOLE = re.compile(r"\{(\w+)\}")
_HAN = re.compile(r"[\u4e00-\u9fff]")
_COUNTS = ("n", "needed", "failed", "attempted", "skipped", "samples", "records", "block")  # holes that hold a number


class Phrases:
    """`say(text)` is `text` in the table's language, as far as the table knows it."""

    def __init__(self, table: dict[str, str]) -> None:
        self.exact = {english: own for english, own in table.items() if not _HOLE.search(english)}
        patterns = sorted((each for each in table.items() if each[0] not in self.exact), key=lambda each: -len(each[0]))
        self.patterns = [(_pattern(english), own) for english, own in patterns]

    def say(self, text: str) -> str:
        """The text whole; else its parts between semicolons, or between commas where it is a list of names."""
        found = self._find(text)
        if found is not None:
            return found
        clauses = text.split("; ")
        if len(clauses) > 1:
            said = [self.say(clause) for clause in clauses]
            return "；".join(said) if said != clauses else text
        names = text.split(", ")
        unknown = sum(name not in self.exact for name in names)
        return "，".join(self.exact.get(name, name) for name in names) if unknown < 2 <= len(names) else text

    def _find(self, text: str) -> str | None:
        if text in self.exact:
            return self.exact[text]
        if _HAN.search(text):
            return None  # it has been said already
        for pattern, own in self.patterns:
            match = pattern.fullmatch(text)
            if match:
                said = {name: self.say(value) for name, value in match.groupdict().items()}
                return _HOLE.sub(lambda hole, said=said: said[hole[1]], own)  # type: ignore[misc]
        return None


def _pattern(english: str) -> re.Pattern[str]:
    literal, *rest = _HOLE.split(english)
    pieces = [re.escape(literal)]
    for name, literal in zip(rest[::2], rest[1::2], strict=True):
        pieces += [rf"(?P<{name}>{'[0-9]+' if name in _COUNTS else '.+?'})", re.escape(literal)]
    return re.compile("".join(pieces))


@cache
def phrases(language: str) -> Phrases:
    """The table of a language; an empty one for a language without."""
    path = TEMPLATES / f"phrases.{language}.toml"
    return Phrases(tomllib.loads(path.read_text(encoding="utf-8")) if path.exists() else {})
