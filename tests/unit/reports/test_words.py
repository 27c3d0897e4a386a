"""The catalogue: complete where it must be, and never able to break a page."""

from __future__ import annotations

import re
import tomllib

import pytest

from harness.results import ResultsError
from reports.claims import ClaimSet
from reports.frame import Message
from reports.words import CATALOGUE, LANGUAGES, Words


def flat(language: str) -> dict[str, str]:
    return Words.load(language).own


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language_has_every_key_with_the_same_values(language: str) -> None:
    english, own = flat("en"), flat(language)
    assert own.keys() == english.keys()
    for key, text in own.items():
        assert set(re.findall(r"\{(\w+)\}", text)) <= set(re.findall(r"\{(\w+)\}", english[key])), key


def test_catalogue_holds_the_languages_offered() -> None:
    assert tuple(tomllib.loads(CATALOGUE.read_text(encoding="utf-8"))) == LANGUAGES


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_claim_is_told_in_every_language(language: str) -> None:
    for claim in ClaimSet.load().claims:
        assert {"row", "container", "vm", "question"} <= claim.texts[language].keys()


def test_message_inside_a_message_is_said_first() -> None:
    inner = Message("absent.no_driver", {"driver": "vm"})
    assert (
        Words.load("en").tell(Message("reason.missing", {"label": "vm", "why": inner})).startswith("vm: not measured")
    )


def test_braces_in_a_value_are_not_filled_in() -> None:
    assert Words.load("en").say("plain", text="{0} {text}") == "{0} {text}"


def test_unknown_language_is_one_line() -> None:
    with pytest.raises(ResultsError, match="choose from en, zh"):
        Words.load("fr")
