"""The writable layer's directories."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runtime.container import storage


def test_the_upper_directory_has_a_roots_mode_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        storage.make(str(tmp_path / "i"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "i/upper").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "i").stat().st_mode) == 0o700


def test_an_untouched_layer_is_removed_without_a_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.make(str(tmp_path / "i"))
    (tmp_path / "i/work/work").mkdir()
    (tmp_path / "i/console.log").touch()
    walked: list[str] = []
    monkeypatch.setattr(storage, "_remove_all", walked.append)
    storage.remove(str(tmp_path / "i"))
    assert (walked, (tmp_path / "i").exists()) == ([], False)


def test_a_written_one_is_removed_too_and_an_absent_one_is_no_error(tmp_path: Path) -> None:
    storage.make(str(tmp_path / "i"))
    (tmp_path / "i/upper/etc").mkdir()
    (tmp_path / "i/upper/etc/file").touch()
    storage.remove(str(tmp_path / "i"))
    storage.remove(str(tmp_path / "i"))
    assert not (tmp_path / "i").exists()


def test_the_skeleton_is_made_once(tmp_path: Path) -> None:
    made = Path(storage.skeleton(str(tmp_path)))
    inode = made.stat().st_ino
    assert Path(storage.skeleton(str(tmp_path))).stat().st_ino == inode
    assert sorted(path.name for path in made.iterdir()) == ["dev", "etc", "proc", "sys"]
    assert (made / "etc/hosts").read_bytes() == b""
    assert [path.name for path in tmp_path.iterdir()] == ["skeleton"]
