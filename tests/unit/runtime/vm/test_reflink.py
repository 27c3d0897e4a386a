"""Disks as reflinks of their base: made, or refused by name; really made only where a file system has them."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import IO

import pytest

from runtime.errors import TareError
from runtime.vm import reflink


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").write_bytes(bytes(range(256)) * 4096)
    return tmp_path / "base"


def test_reflink_is_what_its_base_is_or_is_refused_here(base: Path, tmp_path: Path) -> None:
    refused = ""
    try:
        reflink.clone(base, tmp_path / "disk")
    except TareError as error:
        refused = error.why
    content = None if refused else (tmp_path / "disk").read_bytes()
    assert (refused, content) in (("", base.read_bytes()), ("their file system has none", None))
    assert (tmp_path / "disk").exists() is not bool(refused)


def test_both_files_are_handed_to_the_kernel(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ioctl(target: IO[bytes], request: int, source: int) -> int:
        assert request == 0x40049409
        target.write(Path(f"/proc/self/fd/{source}").read_bytes())
        return 0

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    reflink.clone(base, tmp_path / "disk")
    assert (tmp_path / "disk").read_bytes() == base.read_bytes()
    reflink.require(base, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.EXDEV, "two file systems"), (errno.EOPNOTSUPP, "has none"), (errno.ENOTTY, "has none"), (errno.ENOSPC, "")],
)
def test_what_the_kernel_refuses_leaves_nothing(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    def ioctl(*_: object) -> int:
        raise OSError(number, "no")

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    with pytest.raises(TareError if why else OSError, match=why or "no"):
        reflink.require(base, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_disk_that_is_there_is_not_replaced(base: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("somebody's")
    with pytest.raises(FileExistsError):
        reflink.clone(base, tmp_path / "disk")
    assert (tmp_path / "disk").read_text() == "somebody's"
