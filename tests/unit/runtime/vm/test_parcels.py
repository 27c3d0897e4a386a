"""A disk sent whole, and the clusters in which it differs from the one under it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from runtime.command import run
from runtime.errors import TareError
from runtime.vm.parcels import CHANGED, WHOLE, pack
from tests.conftest import skip_or_fail

MIB = 1 << 20


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    """An overlay with 1 MiB of its own over a raw disk that holds 8 MiB."""
    if shutil.which("qemu-img") is None:
        skip_or_fail("qemu-img is not installed")
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(os.urandom(8 * MIB))
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "raw", str(overlay)], timeout_s=60)
    run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", str(overlay)], timeout_s=60)
    return overlay


def content(disk: Path) -> bytes:
    flat = disk.with_suffix(".flat")
    run(["qemu-img", "convert", "-O", "raw", str(disk), str(flat)], timeout_s=60)
    return flat.read_bytes()


def test_the_whole_disk_needs_nothing_under_it(overlay: Path, tmp_path: Path) -> None:
    pack(overlay, WHOLE, tmp_path / "parcel")
    assert (tmp_path / "parcel").stat().st_size > 7 * MIB
    expected = content(overlay)
    (tmp_path / "base").unlink()
    assert content(tmp_path / "parcel") == expected


def test_the_changed_clusters_are_small_and_give_the_same_disk(overlay: Path, tmp_path: Path) -> None:
    pack(overlay, CHANGED, tmp_path / "parcel")
    assert (tmp_path / "parcel").stat().st_size < 2 * MIB
    assert content(tmp_path / "parcel") == content(overlay)
    assert content(overlay)[:MIB] == bytes([7]) * MIB


def test_a_disk_on_no_other_is_sent_whole_or_not_at_all(tmp_path: Path) -> None:
    if shutil.which("qemu-img") is None:
        skip_or_fail("qemu-img is not installed")
    (tmp_path / "disk").write_bytes(bytes(MIB))
    assert "backing-filename" not in json.loads(
        run(["qemu-img", "info", "--output=json", str(tmp_path / "disk")], timeout_s=60).stdout
    )
    with pytest.raises(TareError, match="reflink"):
        pack(tmp_path / "disk", CHANGED, tmp_path / "parcel")
