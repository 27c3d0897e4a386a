"""Flags as runc's callers write them."""

from __future__ import annotations

import pytest

from runtime.commands.goflags import BOOL, MANY, NUMBER, TEXT, Flags
from runtime.errors import UsageError

FLAGS = Flags({"bundle": TEXT, "force": BOOL, "env": MANY, "preserve-fds": NUMBER}, {"b": "bundle", "e": "env"})


@pytest.mark.parametrize(
    "words",
    [["--bundle", "/x", "id"], ["--bundle=/x", "id"], ["-bundle", "/x", "id"], ["-b", "/x", "id"], ["id", "-b=/x"]],
)
def test_value_after_equals_or_in_the_next_word_with_one_dash_or_two(words: list[str]) -> None:
    values, rest = FLAGS.parse(words)
    assert values.text("bundle") == "/x"
    assert rest == ["id"]


def test_first_other_word_ends_the_flags_unless_interspersed() -> None:
    values, rest = FLAGS.parse(["--force", "id", "ls", "--force", "-b"], interspersed=False)
    assert values.is_set("force")
    assert rest == ["id", "ls", "--force", "-b"]


def test_two_dashes_end_the_flags() -> None:
    values, rest = FLAGS.parse(["id", "--", "--force"])
    assert not values.is_set("force")
    assert rest == ["id", "--force"]


def test_many_keep_their_order_and_numbers_are_numbers() -> None:
    values, _ = FLAGS.parse(["-e", "A=1", "--env", "B=2", "--preserve-fds=3", "--force=false"])
    assert values.many("env") == ["A=1", "B=2"]
    assert values.number("preserve-fds") == 3
    assert not values.is_set("force")


@pytest.mark.parametrize("words", [["--nope"], ["--bundle"], ["--preserve-fds", "x"], ["--force=maybe"]])
def test_bad_flag_is_a_usage_error_that_names_it(words: list[str]) -> None:
    with pytest.raises(UsageError, match=f"flag {words[0].partition('=')[0]}"):
        FLAGS.parse(words)
