"""Blocks on the host: each inode once, holes free, and what an instance adds."""

from __future__ import annotations

import fcntl
import os
import struct
from pathlib import Path
from typing import IO

import pytest

from runtime.driver import Kind
from tests.fakes import Behaviour
from tests.unit.workloads.visits import one, visit
from workloads.footprint import Blocks, Footprint, shared_ranges


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
    assert one(samples, "footprint.instance_logical").value == 4 << 20
    assert driver.instances[0].commands == [("sync",)]


def test_failed_flush_inside_is_an_error(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(fail_exec="sync"))
    with pytest.raises(Exception, match="told to fail"):
        list(Footprint().measure(context))


EXTENT = struct.Struct("=QQQ16xI12x")
SHARED, LAST = 0x2000, 0x1


def test_blocks_that_files_share_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base of 8 blocks and a reflink of it, two blocks of which have been written since."""
    block = 4096
    extents = {
        "base": [(0, 100, 4, SHARED), (4, 104, 2, 0), (6, 106, 2, SHARED | LAST)],
        "disk": [(0, 100, 3, SHARED), (3, 103, 1, SHARED), (4, 200, 2, 0), (6, 106, 2, SHARED | LAST)],
    }
    for name in extents:
        (tmp_path / name).write_bytes(os.urandom(8 * block))
    os.sync()
    asked = []

    def ioctl(file: IO[bytes], request: int, buffer: bytearray) -> int:
        assert request == 0xC020660B
        found = extents[Path(file.name).name]
        start = struct.unpack_from("=Q", buffer)[0] // block
        asked.append(start)
        rest = [extent for extent in found if extent[0] >= start][:2]  # as if no more fitted
        struct.pack_into("=I", buffer, 20, len(rest))
        for number, (logical, physical, length, flags) in enumerate(rest):
            EXTENT.pack_into(buffer, 32 + number * 56, logical * block, physical * block, length * block, flags)
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    assert shared_ranges(tmp_path / "base") == [(100 * block, 104 * block), (106 * block, 108 * block)]
    blocks = Blocks().add([tmp_path / "base"])
    assert blocks.allocated == 8 * block
    assert blocks.add([tmp_path / "disk"]).allocated == 10 * block
    assert asked[:2] == [0, 6]


def test_this_file_system_tells_of_no_shared_blocks_of_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    assert shared_ranges(tmp_path / "file") == []
    assert Blocks().add([tmp_path / "file"]).allocated == (tmp_path / "file").stat().st_blocks * 512
