"""The words of `tare cp` and `tare vm cp`: which way they go, and what they cannot mean."""

from __future__ import annotations

from typing import Any

import pytest

from runtime.commands.cp import cp_command
from runtime.commands.files import cp as of_containers
from runtime.commands.vmcopy import cp as of_guests
from runtime.errors import UsageError


def asked(*words: str) -> list[tuple[Any, ...]]:
    """What `cp` with these words would have done."""
    done: list[tuple[Any, ...]] = []
    cp = cp_command("JAR", "jar", "Copy.", lambda *way: done.append(("out", *way)), lambda *way: done.append(way))
    cp.main(list(words), standalone_mode=False)
    return done


@pytest.mark.parametrize(
    ("words", "way"),
    [
        (("b:/x", "y"), ("out", "b", "/x", "y", False, False)),
        (("b:x", "-"), ("out", "b", "x", "-", False, False)),
        (("-aL", "b:x", "./c:y"), ("out", "b", "x", "./c:y", True, True)),
        (("b:x:y", "/c:y"), ("out", "b", "x:y", "/c:y", False, False)),
        (("-q", "x", "b:/y"), ("x", "b", "/y", False, False)),
        (("-a", "-", "b:y"), ("-", "b", "y", True, False)),
        (("-L", "d/c:x", "b:y"), ("d/c:x", "b", "y", False, True)),
    ],
)
def test_the_name_before_the_colon_says_which_way(words: tuple[str, ...], way: tuple[Any, ...]) -> None:
    assert asked(*words) == [way]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("b:x", "c:y"), "both are in jars"),
        (("x", "y"), "neither is in a jar"),
        (("b:", "y"), "'b:': not a jar and a path"),
        (("x", ":y"), "':y': not a jar and a path"),
    ],
)
def test_what_names_no_way_is_refused_before_anything_is_done(words: tuple[str, str], why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        asked(*words)
    assert "JAR:PATH" in str(caught.value)


def test_containers_and_guests_are_copied_with_the_same_options() -> None:
    options = [[(option.name, option.opts) for option in cp.params[2:]] for cp in (of_containers, of_guests)]
    assert options[0] == options[1]
    assert [name for name, _ in options[0]] == ["archive", "follow_link", "quiet"]
