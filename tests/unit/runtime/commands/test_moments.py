"""Times and durations of the command line."""

from __future__ import annotations

import time

import pytest

from runtime.commands import moments
from runtime.errors import UsageError


def test_a_time_in_any_zone_is_utc_with_nanoseconds() -> None:
    assert moments.moment("--since", "2024-05-01T12:00:00Z") == "2024-05-01T12:00:00.000000000Z"
    assert moments.moment("--since", "2024-05-01T12:00:00.123456789Z") == "2024-05-01T12:00:00.123456789Z"
    assert moments.moment("--since", "2024-05-01T14:00:00+02:00") == "2024-05-01T12:00:00.000000000Z"
    assert moments.moment("--since", "0") == "1970-01-01T00:00:00.000000000Z"
    assert moments.moment("--since", None) == ""


def test_a_duration_is_so_long_ago() -> None:
    found = moments.moment("--since", "1h30m")
    assert time.strftime("%Y-%m-%dT%H", time.gmtime(time.time() - 5401)) <= found[:13]
    assert found < moments.moment("--since", "0s")


@pytest.mark.parametrize("text", ["", "x", "10x", "2024-13-01T00:00:00Z"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="--since"):
        moments.moment("--since", text)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.5, "Less than a second"),
        (1, "1 second"),
        (59, "59 seconds"),
        (60, "About a minute"),
        (150, "2 minutes"),
        (3600, "About an hour"),
        (7200, "2 hours"),
        (86400, "24 hours"),
        (86400 * 3, "3 days"),
        (86400 * 15, "2 weeks"),
        (86400 * 90, "3 months"),
        (86400 * 800, "2 years"),
    ],
)
def test_durations_in_docker_s_words(seconds: float, words: str) -> None:
    assert moments.lasting(seconds) == words
