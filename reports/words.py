"""The words of a report in one language: headings, verdicts, reasons, answers, from one catalogue.

The catalogue is `templates/strings.toml`. A key that a language lacks falls back to English, so a new
sentence can never break a page; a test holds the tables' and headings' keys complete in every language.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from harness.results import ResultsError
from reports.frame import Message
from reports.phrases import phrases

CATALOGUE = Path(__file__).parent / "templates" / "strings.toml"
LANGUAGES = ("en", "zh")


@dataclass(frozen=True, slots=True)
class Words:
    """`say(key, **values)` is the sentence of that key with its values filled in."""

    language: str
    own: dict[str, str]
    english: dict[str, str]

    @classmethod
    def load(cls, language: str, path: Path = CATALOGUE) -> Self:
        """The catalogue in `language`. Raises ResultsError for a language that it does not hold."""
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        if language not in raw:
            raise ResultsError(f"language {language!r}", "no such catalogue", f"choose from {', '.join(raw)}")
        return cls(language=language, own=_flat(raw[language]), english=_flat(raw["en"]))

    def say(self, key: str, **values: object) -> str:
        """The sentence `key`. What is a Message or a phrase among the values is said first.

        Raises KeyError for an unknown key.
        """
        said = {name: self._value(value) for name, value in values.items()}
        return self.own.get(key, self.english[key]).format(**said)

    def _value(self, value: object) -> object:
        if isinstance(value, Message):
            return self.tell(value)
        return self.phrase(value) if isinstance(value, str) else value

    def tell(self, message: Message) -> str:
        """The sentence of a message."""
        return self.say(message.key, **message.values)

    def phrase(self, text: str) -> str:
        """A sentence that a section wrote in English, in this language as far as its table knows it."""
        return phrases(self.language).say(text)

    def own_text(self, texts: dict[str, dict[str, str]], name: str) -> str:
        """`name` of a claims file's texts in this language, or in English."""
        return texts.get(self.language, {}).get(name) or texts["en"][name]


def _flat(table: dict[str, object], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in table.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = str(value)
    return flat
