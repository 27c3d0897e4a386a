"""Writing controls: refused as a whole, in whichever order works, undone as a whole."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from runtime.cgroups.controls import Control, demand, plain, present, put, replace_all
from runtime.errors import TareError


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Files `low` and `high` of which the first may never exceed the second; every write is recorded."""
    (tmp_path / "low").write_text("10")
    (tmp_path / "high").write_text("20")
    (tmp_path / "other").write_text("1")
    written: list[tuple[str, str]] = []

    def write(path: Path, value: str) -> None:
        after = {name: int((tmp_path / name).read_text()) for name in ("low", "high")} | {path.name: int(value)}
        if int(value) < 0 or after["low"] > after["high"]:
            raise OSError(errno.EINVAL, "Invalid argument", str(path))
        written.append((path.name, value))
        path.write_text(value)

    monkeypatch.setattr("runtime.cgroups.controls.write", write)
    return written


def _pair(tmp_path: Path, low: int, high: int) -> tuple[Control, ...]:
    return plain("the.low", tmp_path / "low", str(low)), plain("the.high", tmp_path / "high", str(high))


@pytest.mark.parametrize(("low", "high"), [(1, 2), (30, 40), (15, 15), (10, 30)])
def test_bounds_are_written_in_the_order_that_the_kernel_takes(
    tmp_path: Path, pair: list[tuple[str, str]], low: int, high: int
) -> None:
    put([_pair(tmp_path, low, high)])
    assert ((tmp_path / "low").read_text(), (tmp_path / "high").read_text()) == (str(low), str(high))
    assert all(control.reading().holds for control in _pair(tmp_path, low, high))


def test_a_value_that_no_order_makes_right_is_told_by_name(tmp_path: Path, pair: list[tuple[str, str]]) -> None:
    with pytest.raises(TareError, match=r"limit the\.high: .*Invalid argument"):
        put([_pair(tmp_path, 9, 8)])  # the first of them goes in beside the old second


def test_a_failed_update_brings_everything_back(tmp_path: Path, pair: list[tuple[str, str]]) -> None:
    bad = plain("other", tmp_path / "other", "-1")
    with pytest.raises(TareError, match="limit other"):
        replace_all([_pair(tmp_path, 30, 40), (bad,)])
    assert [(tmp_path / name).read_text() for name in ("low", "high", "other")] == ["10", "20", "1"]


def test_a_missing_file_is_found_before_anything_is_written(tmp_path: Path, pair: list[tuple[str, str]]) -> None:
    with pytest.raises(TareError, match=r"limit gone: this host has no not\.there"):
        demand([_pair(tmp_path, 30, 40), (plain("gone", tmp_path / "not.there", "1"),)])
    assert pair == []


def test_of_a_group_not_made_the_one_above_tells_what_there_is(tmp_path: Path) -> None:
    (tmp_path / "pids.max").touch()
    demand([(plain("pids", tmp_path / "new/pids.max", "1"),)])
    with pytest.raises(TareError, match="limit cpu"):
        demand([(plain("cpu", tmp_path / "new/cpu.max", "1"),)])


def test_what_cannot_be_read_does_not_hold(tmp_path: Path) -> None:
    reading = plain("pids", tmp_path / "pids.max", "1").reading()
    assert (reading.holds, reading.read) == (False, "No such file or directory")


@pytest.mark.parametrize(
    ("root", "file", "told"),
    [
        (("release_agent", "memory.limit_in_bytes"), "memory.limit_in_bytes", True),
        (("release_agent",), "pids.max", True),
        (("release_agent",), "blkio.bfq.weight", True),
        (("release_agent",), "blkio.weight", False),
        (("release_agent",), "cpu.idle", False),
        (("cgroup.controllers",), "memory.max", True),
        (("cgroup.controllers", "cgroup.events"), "memory.max", False),
    ],
)
def test_a_host_without_any_group_of_ours_is_told_by_its_root(
    tmp_path: Path, root: tuple[str, ...], file: str, told: bool
) -> None:
    for name in root:
        (tmp_path / name).touch()
    assert present(tmp_path / "tare" / "id" / file) == told
    assert present(tmp_path / "tare" / "deeper" / "id" / file) == told
    (tmp_path / "tare").mkdir()
    (tmp_path / "tare/cgroup.events").touch()
    assert not present(tmp_path / "tare" / "id" / file)
    (tmp_path / "tare" / file).touch()
    assert present(tmp_path / "tare" / "id" / file)
