"""What is packed comes back, and a difference put over its base gives the whole."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from runtime.images.layers import unpack
from runtime.images.merging import merge
from runtime.images.pack import pack
from tests.unit.runtime.images.trees import Node, grow, read

EPOCH_S = 1_500_000_000
NAMES = st.sampled_from(["a", "b", "c", "ü", "n\nl", "x" * 120])
NODES: st.SearchStrategy[Node] = st.recursive(
    st.one_of(st.binary(max_size=40), st.sampled_from(["a", "../b", "/etc", "nowhere"])),
    lambda inner: st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
TREES = st.dictionaries(NAMES, NODES, max_size=5)


def packed(tree: Path, below: Path | None = None, exclude: tuple[str, ...] = ()) -> io.BytesIO:
    stream = io.BytesIO()
    pack(tree, stream, epoch_s=EPOCH_S, below=below, exclude=exclude)
    stream.seek(0)
    return stream


def unpacked(stream: io.BytesIO, target: Path) -> Path:
    target.mkdir()
    unpack(stream, target)
    return target


@settings(max_examples=50, deadline=None)
@given(TREES)
def test_a_tree_comes_back(nodes: dict[str, Node]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        tree = grow(Path(scratch) / "tree", nodes)
        assert read(unpacked(packed(tree), Path(scratch) / "back")) == nodes


@settings(max_examples=100, deadline=None)
@given(TREES, TREES)
@example({"a": "a"}, {"a": {"a": b""}})  # a link of the lower tree must not be followed
@example({"a": {"b": b"1"}, "c": "a"}, {"a": {"b": b"1"}, "c": {"b": b"1"}})
def test_base_and_difference_make_the_whole(base: dict[str, Node], whole: dict[str, Node]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        lower = grow(root / "lower", base)
        upper = unpacked(packed(grow(root / "whole", whole), below=lower), root / "upper")
        merge([lower, upper], root / "merged")
        assert read(root / "merged") == whole


def test_difference_of_equal_trees_is_empty(tmp_path: Path) -> None:
    nodes: dict[str, Node] = {"dir": {"file": b"same", "link": "file"}}
    one, two = grow(tmp_path / "one", nodes), grow(tmp_path / "two", nodes)
    assert pack(two, io.BytesIO(), epoch_s=EPOCH_S, below=one) == 0


@pytest.mark.parametrize("change", ["mode", "content", "time"])
def test_difference_sees_every_kind_of_change(tmp_path: Path, change: str) -> None:
    nodes: dict[str, Node] = {"dir": {"file": b"same"}, "other": b""}
    one, two = grow(tmp_path / "one", nodes), grow(tmp_path / "two", nodes)
    file = two / "dir/file"
    if change == "mode":
        file.chmod(0o600)
    elif change == "time":
        os.utime(file, (5, 5))
    else:
        file.write_bytes(b"SAME")
        os.utime(file, (1_000_000_000, 1_000_000_000))
    upper = unpacked(packed(two, below=one), tmp_path / "upper")
    assert sorted(str(path.relative_to(upper)) for path in upper.rglob("*")) == ["dir", "dir/file"]


def test_an_unchanged_directory_keeps_its_mode_around_a_change(tmp_path: Path) -> None:
    one = grow(tmp_path / "one", {"private": {"deep": {"file": b"1"}}})
    two = grow(tmp_path / "two", {"private": {"deep": {"file": b"2"}}})
    for tree in (one, two):
        (tree / "private").chmod(0o700)
    upper = unpacked(packed(two, below=one), tmp_path / "upper")
    assert (upper / "private").stat().st_mode & 0o777 == 0o700


def test_packing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    nodes: dict[str, Node] = {"b": b"1", "a": {"z": b"", "y": "z"}}
    reverse = dict(reversed(nodes.items()))
    one, two = grow(tmp_path / "one", nodes, EPOCH_S + 5), grow(tmp_path / "two", reverse, EPOCH_S + 99)
    assert packed(one).getvalue() == packed(two).getvalue()


def test_hard_links_stay_links_and_times_are_clamped(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"a": b"data"}, EPOCH_S + 1000)
    os.link(tree / "a", tree / "b")
    back = unpacked(packed(tree), tmp_path / "back")
    assert (back / "a").stat().st_ino == (back / "b").stat().st_ino
    assert (back / "a").stat().st_mtime == EPOCH_S


def test_excluded_paths_are_neither_packed_nor_whited_out(tmp_path: Path) -> None:
    lower = grow(tmp_path / "lower", {"run": {"old": b""}, "keep": b""})
    tree = grow(tmp_path / "tree", {"run": {"new": b""}, "keep": b"", "log": b""})
    back = unpacked(packed(tree, lower, ("run/*", "log")), tmp_path / "back")
    assert list(back.rglob("*")) == []


def test_extended_attributes_come_back(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree", {"file": b""})
    os.setxattr(tree / "file", "user.raw", b"\x01\x00\xff")
    back = unpacked(packed(tree), tmp_path / "back")
    assert os.getxattr(back / "file", "user.raw") == b"\x01\x00\xff"
