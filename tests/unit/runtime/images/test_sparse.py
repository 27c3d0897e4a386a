"""Holes of a container's files stay holes in the layer made of them, and in what other readers make of it."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from runtime.images.layers import unpack
from runtime.images.pack import pack
from tests.unit.runtime.images.trees import grow


@pytest.mark.parametrize("ends_in_hole", [True, False])
def test_holes_stay_holes(tmp_path: Path, ends_in_hole: bool) -> None:
    upper = grow(tmp_path / "upper", {"plain": b"p" * 3000, "empty": b""})
    with (upper / "holes").open("wb") as file:
        for number in range(200):  # a map of more than one block
            file.seek(number << 18)
            file.write(os.urandom(4096))
        file.truncate((200 << 18) if ends_in_hole else file.tell())
    with (upper / "nothing").open("wb") as file:
        file.truncate(8 << 20)
    stream = io.BytesIO()
    pack(upper, stream, epoch_s=2**33, upper=True)
    assert len(stream.getvalue()) < 2 << 20
    stream.seek(0)
    with tarfile.open(fileobj=stream) as tar:
        theirs = tar.extractfile("holes")
        assert theirs is not None
        assert theirs.read() == (upper / "holes").read_bytes()
    stream.seek(0)
    unpack(stream, grow(tmp_path / "target", {}))
    for name in ("holes", "nothing", "plain", "empty"):
        assert (tmp_path / "target" / name).read_bytes() == (upper / name).read_bytes()
    assert (tmp_path / "target/holes").stat().st_blocks <= (upper / "holes").stat().st_blocks + 16
    assert (tmp_path / "target/nothing").stat().st_blocks == 0


def test_a_recipes_layer_does_not_depend_on_the_disks_holes(tmp_path: Path) -> None:
    archives = []
    for name in ("one", "two"):
        tree = grow(tmp_path / name, {"file": b""})
        with (tree / "file").open("wb") as file:
            if name == "one":
                file.write(bytes(1 << 20))
            file.truncate(1 << 20)
        os.utime(tree / "file", (1, 1))
        archives.append(io.BytesIO())
        pack(tree, archives[-1], epoch_s=0)
    assert archives[0].getvalue() == archives[1].getvalue()
