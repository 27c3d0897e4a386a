"""Blocks on the host: each inode once, holes free, and what an instance adds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.driver import Kind
from tests.fakes import Behaviour
from tests.unit.workloads.visits import one, visit
from workloads.footprint import Blocks, Footprint


def test_hard_links_and_repeated_paths_count_once(tmp_path: Path) -> None:
    (tmp_path / "deep/er").mkdir(parents=True)
    (tmp_path / "deep/er/file").write_bytes(b"x" * 10_000)
    (tmp_path / "deep/link").hardlink_to(tmp_path / "deep/er/file")
    (tmp_path / "deep/symbolic").symlink_to("er/file")
    status = (tmp_path / "deep/er/file").lstat()
    blocks = Blocks().add([tmp_path, tmp_path / "deep", tmp_path / "deep/er/file"])
    assert blocks.logical == 10_000 + len("er/file")
    directories = sum(path.lstat().st_blocks for path in (tmp_path, tmp_path / "deep", tmp_path / "deep/er"))
    assert blocks.allocated == (status.st_blocks + directories + (tmp_path / "deep/symbolic").lstat().st_blocks) * 512


def test_holes_are_logical_but_not_allocated(tmp_path: Path) -> None:
    with (tmp_path / "disk").open("wb") as file:
        os.truncate(file.fileno(), 1 << 30)
    blocks = Blocks().add([tmp_path / "disk"])
    assert (blocks.logical, blocks.allocated) == (1 << 30, 0)


def test_symbolic_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/usr")
    assert Blocks().add([tmp_path / "out"]).logical == len("/usr")


def test_missing_path_is_an_error_not_zero(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Blocks().add([tmp_path / "absent"])


@pytest.mark.parametrize("kind", [Kind.NATIVE, Kind.CONTAINER, Kind.VM])
def test_footprint_of_an_instance_is_what_lies_on_the_host(tmp_path: Path, kind: Kind) -> None:
    context, driver = visit(tmp_path, kind=kind)
    (driver.instances[0].directory / "own").write_bytes(b"x" * (4 << 20))
    samples = list(Footprint().measure(context))
    own = Blocks().add([driver.instances[0].directory / "own"]).allocated
    assert one(samples, "footprint.image_logical").value == 65536
    assert own <= one(samples, "footprint.instance_allocated").value <= own + 8192
    assert driver.instances[0].commands == [("sync",)]


def test_failed_flush_inside_is_an_error(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(fail_exec="sync"))
    with pytest.raises(Exception, match="told to fail"):
        list(Footprint().measure(context))
