"""The ledger: what a crash leaves behind is found again, and what still lives is let alone."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from runtime.ledger import Ledger, Resource, boot_id, make_directory, new_id, process_start

BOOT = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc on which this process runs since tick 500."""
    proc = tmp_path / "proc"
    add_process(proc, os.getpid(), 500)
    (proc / "sys/kernel/random").mkdir(parents=True)
    (proc / "sys/kernel/random/boot_id").write_text(BOOT + "\n")
    return proc


@pytest.fixture
def ledger(tmp_path: Path, proc: Path) -> Ledger:
    return Ledger(tmp_path / "run", proc)


def add_process(proc: Path, pid: int, start: int, name: str = "python3") -> None:
    (proc / str(pid)).mkdir(parents=True, exist_ok=True)
    (proc / str(pid) / "stat").write_text(f"{pid} ({name}) S {' '.join(['0'] * 18)} {start} 0 0\n")


def page(tmp_path: Path, instance_id: str) -> Path:
    return tmp_path / "run/instances" / f"{instance_id}.jsonl"


def kill_owner(proc: Path) -> None:
    add_process(proc, os.getpid(), 501)  # the same number, another process


def test_ids_are_fresh_and_fit_for_every_name() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(re.fullmatch(r"tare-[0-9a-f]{12}", instance_id) for instance_id in ids)


@pytest.mark.parametrize("name", ["sh", "a b", "x) R 1 (y", "((("])
def test_process_start_is_read_behind_any_name(tmp_path: Path, name: str) -> None:
    add_process(tmp_path, 7, 12345, name)
    assert process_start(7, tmp_path) == 12345


def test_process_start_of_nothing_is_none(tmp_path: Path) -> None:
    assert process_start(7, tmp_path) is None


@pytest.mark.parametrize("state", ["Z", "X"])
def test_a_process_that_only_waits_to_be_reaped_does_not_run(tmp_path: Path, state: str) -> None:
    add_process(tmp_path, 7, 12345)
    stat = tmp_path / "7/stat"
    stat.write_text(stat.read_text().replace(" S ", f" {state} "))
    assert process_start(7, tmp_path) is None


def test_process_start_on_this_host_names_this_process() -> None:
    start = process_start(os.getpid())
    assert start is not None
    assert start == process_start(os.getpid())
    assert re.fullmatch(r"[0-9a-f-]{36}", boot_id())


def test_page_of_a_running_owner_is_live_not_stale(ledger: Ledger) -> None:
    entry = ledger.open("tare-1", "container")
    assert ledger.live() == [("tare-1", os.getpid())]
    assert list(ledger.stale("container")) == []
    entry.close(gone=True)
    assert ledger.live() == []


def test_page_of_a_dead_owner_lists_what_it_noted_in_order(ledger: Ledger, proc: Path) -> None:
    entry = ledger.open("tare-1", "container")
    entry.note("cgroup", "/sys/fs/cgroup/tare/tare-1")
    entry.note("pid", "77:900")
    entry.close(gone=False)
    kill_owner(proc)
    (stale,) = ledger.stale("container")
    assert (stale.id, stale.driver, stale.same_boot) == ("tare-1", "container", True)
    assert stale.resources == (Resource("cgroup", "/sys/fs/cgroup/tare/tare-1"), Resource("pid", "77:900"))
    assert ledger.live() == []


def test_sweep_sees_only_its_own_drivers_pages(ledger: Ledger, proc: Path) -> None:
    ledger.open("tare-1", "container").close(gone=False)
    ledger.open("tare-2", "vm").close(gone=False)
    kill_owner(proc)
    assert [stale.id for stale in ledger.stale("vm")] == ["tare-2"]


def test_page_from_before_a_reboot_is_stale_even_if_the_owner_s_number_runs(ledger: Ledger, proc: Path) -> None:
    ledger.open("tare-1", "container").close(gone=False)
    (proc / "sys/kernel/random/boot_id").write_text("another\n")
    (stale,) = ledger.stale("container")
    assert not stale.same_boot
    assert ledger.live() == []


def test_torn_last_line_is_left_out(ledger: Ledger, proc: Path, tmp_path: Path) -> None:
    entry = ledger.open("tare-1", "container")
    entry.note("dir", "/a")
    entry.close(gone=False)
    with page(tmp_path, "tare-1").open("a") as file:
        file.write('{"kind": "mount", "val')
    kill_owner(proc)
    (stale,) = ledger.stale("container")
    assert stale.resources == (Resource("dir", "/a"),)


@pytest.mark.parametrize("content", ["", '{"driver": "contai'])
def test_page_without_a_head_is_stale_for_every_driver(ledger: Ledger, tmp_path: Path, content: str) -> None:
    ledger.open("tare-1", "container").close(gone=True)
    page(tmp_path, "tare-2").write_text(content)
    for driver in ("container", "vm"):
        (stale,) = ledger.stale(driver)
        assert (stale.id, stale.resources) == ("tare-2", ())


def test_note_is_on_disk_before_it_returns_as_one_line(ledger: Ledger, tmp_path: Path) -> None:
    entry = ledger.open("tare-1", "container")
    entry.note("dir", "/with\nnewline and ünïcode")
    lines = page(tmp_path, "tare-1").read_text().splitlines()
    assert json.loads(lines[0]) == {"driver": "container", "pid": os.getpid(), "start": 500, "boot": BOOT}
    assert [json.loads(line) for line in lines[1:]] == [{"kind": "dir", "value": "/with\nnewline and ünïcode"}]
    entry.close(gone=True)


def test_page_is_private_and_never_opened_twice(ledger: Ledger, tmp_path: Path) -> None:
    entry = ledger.open("tare-1", "container")
    assert page(tmp_path, "tare-1").stat().st_mode & 0o777 == 0o600
    with pytest.raises(FileExistsError):
        ledger.open("tare-1", "container")
    entry.close(gone=True)


def test_close_and_strike_may_be_repeated(ledger: Ledger, tmp_path: Path) -> None:
    entry = ledger.open("tare-1", "container")
    entry.close(gone=False)
    entry.close(gone=False)
    assert page(tmp_path, "tare-1").exists()
    ledger.strike("tare-1")
    ledger.strike("tare-1")
    assert not page(tmp_path, "tare-1").exists()


def test_empty_host_has_no_pages(ledger: Ledger) -> None:
    assert list(ledger.stale("container")) == []
    assert ledger.live() == []


def test_page_that_has_no_room_for_its_first_line_is_not_left(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.open("tare-1", "container").close(gone=True)
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:5]))
    with pytest.raises(OSError, match="No space left"):
        ledger.open("tare-2", "container")
    assert not page(tmp_path, "tare-2").exists()


def test_note_cut_short_by_a_full_disk_is_told(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = ledger.open("tare-1", "container")
    whole = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:5]))
    with pytest.raises(OSError, match="No space left"):
        entry.note("dir", "/a")
    entry.close(gone=True)


@pytest.mark.parametrize("error", [FileExistsError, FileNotFoundError])
def test_directory_is_made_again_if_it_goes_while_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[OSError]
) -> None:
    make, failures = Path.mkdir, [error(), error()]

    def failing(self: Path, *words: object, **named: object) -> None:
        if failures:
            raise failures.pop()
        make(self, *words, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", failing)
    make_directory(tmp_path / "run/instances")
    assert (tmp_path / "run/instances").is_dir()


def test_directory_is_not_made_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "file")
