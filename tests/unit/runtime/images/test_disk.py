"""Layers merge as an overlay would show them, and a machine is identified by all it is made from."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.images import disk
from runtime.images.descent import OPAQUE
from runtime.images.merging import merge
from tests.conftest import skip_or_fail
from tests.unit.runtime.images.trees import grow, read


def test_upper_entries_win_whatever_their_kind(tmp_path: Path) -> None:
    lower = grow(tmp_path / "lower", {"a": b"low", "b": {"deep": b""}, "c": "a", "d": {"x": b""}, "same": {"low": b""}})
    upper = grow(
        tmp_path / "upper", {"a": {"new": b""}, "b": b"file", "c": {"dir": b""}, "d": "a", "same": {"up": b""}}
    )
    merge([lower, upper], tmp_path / "tree")
    assert read(tmp_path / "tree") == {
        "a": {"new": b""},
        "b": b"file",
        "c": {"dir": b""},
        "d": "a",
        "same": {"low": b"", "up": b""},
    }
    assert read(lower)["b"] == {"deep": b""}, "the layers stay as they are"


def test_whiteouts_and_opaque_directories_hide(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("trusted attributes need root")
    lower = grow(tmp_path / "lower", {"gone": b"", "tree": {"gone": b""}, "opaque": {"old": b""}})
    upper = grow(tmp_path / "upper", {"opaque": {"new": b""}})
    for name in ("gone", "tree"):
        os.mknod(upper / name, stat.S_IFCHR, 0)
    os.setxattr(upper / "opaque", OPAQUE, b"y")
    merge([lower, upper], tmp_path / "tree")
    assert read(tmp_path / "tree") == {"opaque": {"new": b""}}
    assert OPAQUE not in os.listxattr(tmp_path / "tree/opaque")


def test_files_are_not_copied(tmp_path: Path) -> None:
    lower = grow(tmp_path / "lower", {"file": b"data"})
    merge([lower], tmp_path / "tree")
    assert (tmp_path / "tree/file").stat().st_ino == (lower / "file").stat().st_ino


def test_directories_carry_the_uppermost_mode_and_time(tmp_path: Path) -> None:
    lower, upper = grow(tmp_path / "lower", {"dir": {"a": b""}}), grow(tmp_path / "upper", {"dir": {}})
    (upper / "dir").chmod(0o1777)
    os.utime(upper / "dir", (7, 7))
    merge([lower, upper], tmp_path / "tree")
    info = (tmp_path / "tree/dir").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime) == (0o1777, 7)


def test_an_image_without_a_kernel_is_refused(tmp_path: Path) -> None:
    work = grow(tmp_path / "work", {})
    with pytest.raises(TareError, match="no kernel"):
        disk.build([grow(tmp_path / "layer", {"boot": {}})], work, "name", 1 << 30)


def test_a_machine_is_identified_by_layers_and_size() -> None:
    one = disk.digest(("sha256:a", "sha256:b"), 4 << 30)
    assert one == disk.digest(("sha256:a", "sha256:b"), 4 << 30)
    assert (
        len({one, disk.digest(("sha256:b", "sha256:a"), 4 << 30), disk.digest(("sha256:a", "sha256:b"), 2 << 30)}) == 3
    )
