"""Records: dataclasses in all but the cost of declaring them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from runtime.record import MISSING, field, fields, is_record, ordered_record, record, replace


@record
class Point:
    """Two numbers and more."""

    x: int
    y: int = 0
    names: Mapping[str, str] = field(default_factory=dict, metadata={"name": "n"})

    @property
    def sum(self) -> int:
        return self.x + self.y


def test_fields_have_their_values_and_defaults() -> None:
    point = Point(x=1)
    assert (point.x, point.y, point.names, point.sum) == (1, 0, {}, 1)
    assert Point(x=1).names is not point.names
    assert repr(Point(x=1, y=2)) == "Point(x=1, y=2, names={})"


def test_values_are_equal_by_content_and_class() -> None:
    assert Point(x=1, y=2) == Point(y=2, x=1)
    assert Point(x=1) != Point(x=2)
    other: object = {"x": 1, "y": 0, "names": {}}
    assert Point(x=1) != other


def test_equal_values_hash_alike_where_their_content_does() -> None:
    assert len({Point(x=1, names=()), Point(names=(), x=1)}) == 1  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="unhashable"):
        hash(Point(x=1))


def test_nothing_can_be_changed() -> None:
    point = Point(x=1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="'x'"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError, match="'z'"):
        point.z = 2  # type: ignore[attr-defined]
    with pytest.raises(dataclasses.FrozenInstanceError, match="'x'"):
        del point.x
    assert point == Point(x=1)


def test_what_is_missing_or_unknown_is_named() -> None:
    with pytest.raises(TypeError, match="Point needs 'x'"):
        Point(y=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Point has no field 'z'"):
        Point(x=1, z=2)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="positional"):
        Point(1)  # type: ignore[call-arg]


def test_the_tools_for_dataclasses_take_it_for_one() -> None:
    point = Point(x=1, names={"a": "b"})
    assert dataclasses.replace(point, y=5) == replace(point, y=5) == Point(x=1, y=5, names={"a": "b"})
    assert [each.name for each in dataclasses.fields(Point)] == ["x", "y", "names"]
    assert dataclasses.asdict(point) == {"x": 1, "y": 0, "names": {"a": "b"}}
    assert copy.deepcopy(point) == pickle.loads(pickle.dumps(point)) == point
    match point:
        case Point(x=1, y=y):
            assert y == 0
        case _:
            raise AssertionError("no match")


@ordered_record
class Line:
    """Two ends."""

    start: int
    end: int = 9
    marks: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.start > self.end:
            raise ValueError("backwards")


def test_an_ordered_record_is_given_by_position_or_name() -> None:
    assert Line(1) == Line(start=1) == Line(1, 9) == Line(1, end=9, marks=[])
    assert dataclasses.replace(Line(1), end=2) == Line(1, 2)
    match Line(3, 4):
        case Line(start, end):
            assert (start, end) == (3, 4)
        case _:
            raise AssertionError("no match")


def test_an_ordered_record_is_given_once() -> None:
    with pytest.raises(TypeError, match="Line is given 'start' twice"):
        Line(1, start=2)  # type: ignore[misc]
    with pytest.raises(TypeError, match="Line has 3 fields, not 4"):
        Line(1, 2, [], 4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="Line needs 'start'"):
        Line()  # type: ignore[call-arg]


def test_a_record_may_check_itself() -> None:
    with pytest.raises(ValueError, match="backwards"):
        Line(5, 4)


@ordered_record
class Arrow(Line):
    """A line with a name, whose fields come after the line's."""

    name: str = ""


def test_a_record_inherits_fields() -> None:
    assert Arrow(1, 2, [3], "x") == Arrow(start=1, end=2, marks=[3], name="x")
    assert [each.name for each in dataclasses.fields(Arrow)] == ["start", "end", "marks", "name"]
    with pytest.raises(ValueError, match="backwards"):
        Arrow(5, 4)


def test_the_default_of_a_field_is_the_class_s_too() -> None:
    @record
    class Named:
        given: int = field(metadata={"name": "g"})
        plain: str = field(default="x", metadata={"name": "p"})

    assert (Named.plain, hasattr(Named, "given")) == ("x", False)
    with pytest.raises(TypeError, match="Named needs 'given'"):
        Named()  # type: ignore[call-arg]
    assert [(each.name, each.metadata["name"]) for each in dataclasses.fields(Named)] == [
        ("given", "g"),
        ("plain", "p"),
    ]
    assert (Named.plain, Named(given=1).plain) == ("x", "x")


def test_fields_can_be_asked_for_without_dataclasses() -> None:
    assert [(each.name, each.type, each.required) for each in fields(Point)] == [
        ("x", "int", True),
        ("y", "int", False),
        ("names", "Mapping[str, str]", False),
    ]
    assert [each.first() for each in fields(Point)] == [MISSING, 0, {}]
    assert [each.metadata for each in fields(Point)] == [{}, {}, {"name": "n"}]
    assert [each.name for each in fields(Arrow)] == ["start", "end", "marks", "name"]
    assert is_record(Point(x=1))
    assert not is_record(Point)


def test_threads_that_ask_for_fields_at_once_get_the_same() -> None:
    @record
    class Fresh:
        first: int = field(default=1, metadata={"name": "f"})

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: dataclasses.fields(Fresh)[0].metadata["name"], range(64)))
    assert found == ["f"] * 64


@pytest.mark.parametrize("module", ["launcher", "defaults", "plan"])
def test_a_process_that_launches_does_without_dataclasses(module: str) -> None:
    source = Path(__file__).resolve().parents[3]
    wanted = f"runtime.container.{module}, runtime.cgroups.detect"
    code = f"import sys; sys.path.insert(0, sys.argv[1]); import {wanted}; print(*sys.modules)"
    command = [sys.executable, "-I", "-S", "-c", code, str(source)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert f"runtime.container.{module}" in loaded
    assert not {"dataclasses", "inspect", "ast"} & set(loaded)
