"""The -k words of `tare bench`."""

from __future__ import annotations

import pytest

from harness.results import Cell
from harness.selection import selector
from runtime.errors import UsageError

CELLS = [
    Cell("startup", "native", "native~aa"),
    Cell("startup", "microvm", "microvm"),
    Cell("overhead_cpu", "vm", "vm"),
]


@pytest.mark.parametrize(
    ("expression", "chosen"),
    [
        ("", [0, 1, 2]),
        ("startup", [0, 1]),
        ("vm", [1, 2]),
        ("[vm]", [2]),
        ("startup and not microvm", [0]),
        ("~aa or overhead", [0, 2]),
        ("not (startup or cpu)", []),
        ("native or vm and not microvm", [0, 2]),
        ("STARTUP", [0, 1]),
    ],
)
def test_words_choose_cells_as_in_pytest(expression: str, chosen: list[int]) -> None:
    choose = selector(expression)
    assert [index for index, cell in enumerate(CELLS) if choose(cell)] == chosen


@pytest.mark.parametrize(
    "expression", ["(" * 3000, "and", "startup and", "(startup", "startup vm", "not", ")", "startup )"]
)
def test_anything_else_is_a_usage_error(expression: str) -> None:
    with pytest.raises(UsageError, match="-k"):
        selector(expression)
