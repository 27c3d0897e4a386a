"""Charts: the same bytes for the same data, readable in both themes, and unmistakable where emulated."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from reports import figures
from reports.figures import Bound, Lane, Track
from reports.page import Figure

LANES = (
    Lane(name="container", label="container", kind="container", points=((0, 0.004), (1, 0.005)), interval=None),
    Lane(name="vm", label="vm", kind="vm", points=((0, 13.0), (1, 14.0)), mark="TCG", interval=(13.5, 13.0, 14.0)),
)


def draw() -> Figure:
    return figures.dots("slug", "Title", "Finding", LANES, "s", "startup", bounds=[Bound(60.0, "1 min")])


def test_same_data_give_the_same_bytes() -> None:
    first, second = draw(), draw()
    assert (first.svg, first.pdf, first.inline) == (second.svg, second.pdf, second.inline)


def test_inline_svg_follows_the_theme_and_keeps_text_as_text() -> None:
    inline = draw().inline
    assert "currentColor" in inline
    assert "var(--blue)" in inline
    assert figures.INK not in inline
    assert "font-family" not in inline
    assert "<style" not in inline
    assert ">container<" in inline
    ET.fromstring(inline)


def test_inline_ids_carry_the_slug() -> None:
    root = ET.fromstring(draw().inline)
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert ids
    assert all(name.startswith("slug-") for name in ids)


def test_stand_alone_files_need_no_page() -> None:
    figure = draw()
    assert b"var(--" not in figure.svg
    assert b"currentColor" not in figure.svg
    ET.fromstring(figure.svg)
    assert figure.pdf.startswith(b"%PDF")


def test_emulated_lanes_are_grey_hatched_and_named() -> None:
    inline = draw().inline
    assert "vm (TCG)" in inline
    assert "pattern" in inline
    assert "var(--orange)" not in inline


def test_hardware_vms_are_orange() -> None:
    lane = Lane(name="vm", label="vm", kind="vm", points=((0, 1.0), (1, 1.1)))
    assert "var(--orange)" in figures.steps("s", "T", "F", [lane], "s", "startup").inline


def test_wide_ranges_are_logarithmic_and_say_so() -> None:
    assert "log scale" in draw().inline
    narrow = figures.dots("slug", "Title", "Finding", LANES[:1], "s", "startup")
    assert "log scale" not in narrow.inline
    assert "startup (ms)" in narrow.inline


def test_without_intervals_the_blocks_themselves_are_shown() -> None:
    lane = Lane(name="container", label="container", kind="container", points=((0, 1.1),))
    empty = Lane(name="container", label="container", kind="container", points=())
    shown, none = (figures.forest("s", "T", "F", [each], "ratio").inline for each in (lane, empty))
    assert "var(--blue)" in shown
    assert "var(--blue)" not in none


def test_linear_axes_of_quantities_begin_at_zero() -> None:
    lane = Lane(name="container", label="container", kind="container", points=((0, 708.0), (1, 712.0)))
    assert ">0<" in figures.dots("s", "T", "F", [lane], "B", "memory").inline


def test_drift_of_one_block_is_not_drawn() -> None:
    one = Lane(name="container", label="container", kind="container", points=((0, 1.0),))
    assert list(figures.drift("s", "T", [one])) == []
    assert len(list(figures.drift("s", "T", LANES))) == 1


def test_waterfall_tells_its_phases_in_words() -> None:
    track = Track(name="vm", kind="vm", events=(("spawned", 0.4), ("ready", 13.0)), mark="TCG")
    figure = figures.waterfall("s", "T", [track])
    assert figure.finding == "vm (TCG): spawned 400\u00a0ms · ready 13\u00a0s"


@pytest.mark.parametrize("label", ["native", "native~aa", "container", "docker", "runc", "vm", "microvm"])
def test_markers_tell_drivers_apart_without_colour(label: str) -> None:
    assert sum(marker == figures.MARKERS[label] for marker in figures.MARKERS.values()) == 1


def test_text_from_the_journal_cannot_leave_the_svg() -> None:
    lane = Lane(name="</text><script>x</script>", label="x", kind="container", points=((0, 1.0), (1, 2.0)))
    assert "<script" not in figures.dots("s", "T", "F", [lane], "s", "w").inline
