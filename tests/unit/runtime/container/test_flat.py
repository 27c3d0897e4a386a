"""Layers linked into one tree, as overlayfs would show them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runtime.container.flat import flat
from runtime.images import merging


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    """Two layers; whiteouts are marked by name here, as device nodes need root."""
    low, high = tmp_path / "low", tmp_path / "high"
    for layer in (low, high):
        (layer / "etc/app").mkdir(parents=True)
    (low / "etc/kept").write_text("low")
    (low / "etc/replaced").write_text("low")
    (low / "etc/gone").write_text("low")
    (low / "etc/app/old").write_text("low")
    (low / "etc/link").symlink_to("kept")
    (low / "var").mkdir(mode=0o1777)
    (low / "var").chmod(0o1777)
    (high / "etc/replaced").write_text("high")
    (high / "etc/gone").write_text("whiteout")
    (high / "etc/app/new").write_text("high")
    (high / "var").symlink_to("etc")
    return [low, high]


@pytest.fixture(autouse=True)
def marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "_whiteout", lambda info: info.st_size == len("whiteout"))
    monkeypatch.setattr(merging, "_opaque", lambda directory: directory.name == "app" and "high" in directory.parts)


def test_one_layer_is_its_own_tree(layers: list[Path], tmp_path: Path) -> None:
    assert flat(layers[:1], tmp_path / "cache") == layers[0]
    assert not (tmp_path / "cache").exists()


def test_upper_entries_replace_and_remove_lower_ones(layers: list[Path], tmp_path: Path) -> None:
    tree = flat(layers, tmp_path / "cache")
    assert sorted(str(path.relative_to(tree)) for path in tree.rglob("*")) == [
        "etc",
        "etc/app",
        "etc/app/new",
        "etc/kept",
        "etc/link",
        "etc/replaced",
        "var",
    ]
    assert (tree / "etc/replaced").read_text() == "high"
    assert str((tree / "var").readlink()) == "etc"
    assert str((tree / "etc/link").readlink()) == "kept"


def test_files_are_links_and_directories_keep_their_modes(layers: list[Path], tmp_path: Path) -> None:
    (layers[1] / "var").unlink()
    tree = flat(layers, tmp_path / "cache")
    assert (tree / "etc/kept").samefile(layers[0] / "etc/kept")
    assert stat.S_IMODE((tree / "var").stat().st_mode) == 0o1777


def test_it_is_made_once_and_nothing_half_made_stays(
    layers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = flat(layers, tmp_path / "cache")
    made = tree.stat().st_ino
    assert flat(layers, tmp_path / "cache").stat().st_ino == made

    def link(*arguments: object, **options: object) -> None:
        raise OSError("no")

    monkeypatch.setattr(os, "link", link)
    with pytest.raises(OSError, match="no"):
        flat(layers, tmp_path / "other")
    assert list((tmp_path / "other").iterdir()) == []


def test_a_real_whiteout_is_a_device_without_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert not merging._whiteout(Path("/dev/null").stat())
    assert not merging._whiteout(Path("/etc/passwd").stat())
