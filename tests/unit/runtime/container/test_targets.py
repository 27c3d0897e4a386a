"""Links resolved as text, and copying up. No root."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.container.copyup import copy_up
from runtime.container.targets import open_existing, open_target, resolved


def link(path: Path, target: str) -> None:
    path.symlink_to(target)


def test_links_are_replaced_those_to_nowhere_too(tmp_path: Path) -> None:
    base = os.fsencode(tmp_path)
    link(tmp_path / "relative", "a/b")
    link(tmp_path / "absolute", str(tmp_path / "elsewhere"))
    link(tmp_path / "chain", "relative/../c")
    assert resolved(base + b"/relative/x") == base + b"/a/b/x"
    assert resolved(base + b"/absolute") == base + b"/elsewhere"
    assert resolved(base + b"/chain") == base + b"/a/c"


def test_nothing_is_above_the_root(tmp_path: Path) -> None:
    link(tmp_path / "up", "../" * 40 + "etc")
    assert resolved(os.fsencode(tmp_path / "up")) == b"/etc"


def test_a_loop_of_links_is_an_error(tmp_path: Path) -> None:
    link(tmp_path / "a", "b")
    link(tmp_path / "b", "a")
    with pytest.raises(OSError, match="symbolic links"):
        resolved(os.fsencode(tmp_path / "a"))


def test_a_missing_target_is_made_where_its_links_lead(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    link(tmp_path / "etc/conf", "../run/deep/conf")
    os.close(open_target(os.fsencode(tmp_path / "etc/conf"), directory=False))
    assert (tmp_path / "run/deep/conf").is_file()
    os.close(open_target(os.fsencode(tmp_path / "new/directory"), directory=True))
    assert (tmp_path / "new/directory").is_dir()


def test_a_strict_target_has_no_link_on_its_way(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link(tmp_path / "linked", "real")
    os.close(open_target(os.fsencode(tmp_path / "real"), directory=True, strict=True))
    with pytest.raises(OSError, match="symbolic links"):
        open_target(os.fsencode(tmp_path / "linked"), directory=True, strict=True)
    os.close(open_existing(os.fsencode(tmp_path / "linked")))


def test_what_is_not_there_is_not_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_existing(os.fsencode(tmp_path / "absent"))


def test_a_tree_is_copied_with_modes_times_and_links(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "below").mkdir(parents=True)
    target.mkdir()
    (source / "below/file").write_bytes(b"x" * 3_000_000)
    (source / "below/file").chmod(0o640)
    link(source / "link", "nowhere")
    os.mkfifo(source / "fifo")
    os.utime(source / "below", ns=(10**18, 10**18 + 5))
    source.chmod(0o711)
    here, there = (os.open(path, os.O_PATH | os.O_DIRECTORY) for path in (source, target))
    copy_up(here, there)
    os.close(here)
    os.close(there)
    assert sorted(path.name for path in target.iterdir()) == ["below", "link"]
    assert (target / "below/file").read_bytes() == b"x" * 3_000_000
    assert (target / "below/file").stat().st_mode & 0o777 == 0o640
    assert (target / "below").stat().st_mtime_ns == 10**18 + 5
    assert (target / "link").readlink() == Path("nowhere")
    assert target.stat().st_mode & 0o777 == 0o711
