"""docs/method.md describes the code: what can be held against it is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harness import stats
from harness.profiles import PROFILES, Profile

TEXT = (Path(__file__).parents[3] / "docs/method.md").read_text()


@pytest.mark.parametrize("code", list(stats.Refusal))
def test_every_refusal_is_described(code: str) -> None:
    assert f"| `{code}` |" in TEXT


@pytest.mark.parametrize("verdict", list(stats.Verdict))
def test_every_verdict_is_described(verdict: str) -> None:
    assert re.search(rf"^\| .*\b{verdict}\b", TEXT, re.MULTILINE)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_every_profile_has_its_numbers(profile: Profile) -> None:
    row = next(line for line in TEXT.splitlines() if line.startswith(f"| {profile.name} |"))
    _, blocks, target, budget = (cell.strip() for cell in row.strip("| ").split("|"))
    if profile.name != "smoke":
        assert blocks == f"{profile.min_blocks} to {profile.max_blocks}"
        assert target == f"{profile.target_half_width * 100:g} %"
    factor = {"s": 1, "min": 60, "h": 3600}[budget.split()[1]]
    assert float(budget.split()[0]) * factor == profile.budget_s


@pytest.mark.parametrize(
    "said",
    [
        f"fewer than {stats.MIN_BLOCKS} blocks",
        f"max({stats.MIN_MARGIN:.0%}, high".replace("%", " %"),
        f"exceeds {stats.MAX_MARGIN:.0%}".replace("%", " %"),
        f"Up to {stats.BOOTSTRAP_BEYOND} blocks",
        f"p < {stats.GATE_P}",
    ],
)
def test_constants_are_as_said(said: str) -> None:
    assert said in " ".join(TEXT.split())
