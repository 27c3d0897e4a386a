"""Which cells a run measures: pytest's `-k` words over cell names, `startup and not microvm`."""

from __future__ import annotations

import re
from collections.abc import Callable

from harness.results import Cell
from runtime.errors import UsageError

_WORD = re.compile(r"\s*([()]|[^\s()]+)")
_MOST_WORDS = 200  # each may be a level to descend
Test = Callable[[str], bool]


def selector(expression: str) -> Callable[[Cell], bool]:
    """A predicate from words joined by `and`, `or`, `not` and parentheses; a word matches as part of `startup[vm]`.

    An empty expression takes every cell. Raises UsageError for anything else.
    """
    words = _WORD.findall(expression)
    if not words:
        return lambda cell: True
    if len(words) > _MOST_WORDS:
        raise _wrong(f"{len(words)} words, more than {_MOST_WORDS}")
    test, rest = _either(words)
    if rest:
        raise _wrong(f"{rest[0]!r} is one too many")
    return lambda cell: test(str(cell).lower())


def _either(words: list[str]) -> tuple[Test, list[str]]:
    left, words = _both(words)
    if not words or words[0] != "or":
        return left, words
    right, words = _either(words[1:])
    return (lambda name: left(name) or right(name)), words


def _both(words: list[str]) -> tuple[Test, list[str]]:
    left, words = _one(words)
    if not words or words[0] != "and":
        return left, words
    right, words = _both(words[1:])
    return (lambda name: left(name) and right(name)), words


def _one(words: list[str]) -> tuple[Test, list[str]]:
    if not words or words[0] in (")", "and", "or"):
        raise _wrong("a word is missing")
    word, words = words[0], words[1:]
    if word == "not":
        inner, words = _one(words)
        return (lambda name: not inner(name)), words
    if word == "(":
        inner, words = _either(words)
        if not words or words[0] != ")":
            raise _wrong("a ) is missing")
        return inner, words[1:]
    return (lambda name: word.lower() in name), words


def _wrong(why: str) -> UsageError:
    return UsageError("-k", why, "write it like: startup and not microvm")
