"""What both versions share: removal, pauses, parsing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from runtime.cgroups.controls import line_of_device, scheduler
from runtime.cgroups.files import members, number, pauses, remove_directories, write
from runtime.cgroups.weights import cpu_list, whole_pages
from runtime.errors import TareError


def test_removing_retries_while_the_kernel_says_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group, answers = tmp_path / "tare-0", [errno.EBUSY, errno.EBUSY]
    group.mkdir()
    removed = os.rmdir

    def rmdir(path: Path) -> None:
        if answers:
            raise OSError(answers.pop(), "busy")
        removed(path)

    monkeypatch.setattr(os, "rmdir", rmdir)
    remove_directories([group])
    assert not answers
    assert not group.exists()


def test_removing_gives_up_in_time_and_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rmdir(path: Path) -> None:
        raise OSError(errno.EBUSY, "busy")

    (tmp_path / "tare-0").mkdir()
    monkeypatch.setattr(os, "rmdir", rmdir)
    with pytest.raises(TareError, match="tare-0: still busy"):
        remove_directories([tmp_path / "tare-0"], timeout_s=0.01)


def test_removing_what_is_absent_is_no_error(tmp_path: Path) -> None:
    remove_directories([tmp_path / "absent"])


def test_other_errors_are_not_retried(tmp_path: Path) -> None:
    (tmp_path / "group/child").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        remove_directories([tmp_path / "group"])


def test_pauses_yield_at_once_and_end_after_the_deadline() -> None:
    assert len(list(pauses(0.0))) == 1


def test_a_failed_write_names_file_and_value(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device writing '7'.*/dev/full"):
        write(Path("/dev/full"), "7")


def test_numbers_and_their_absence(tmp_path: Path) -> None:
    (tmp_path / "max").write_text("max\n")
    (tmp_path / "seven").write_text("7\n")
    assert [number(tmp_path / name) for name in ("max", "seven", "absent")] == [None, 7, None]


def test_a_device_line_is_found_by_its_whole_number() -> None:
    assert line_of_device("8:1")("8:16 5\n8:1 7\n") == "7"
    assert line_of_device("8:2")("8:16 5\n") == ""


def test_memory_is_rounded_down_to_pages() -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    assert whole_pages(page + 1) == str(page)


def test_the_scheduler_in_use_is_the_one_in_brackets(tmp_path: Path) -> None:
    queue = tmp_path / "dev/block/8:0/queue"
    queue.mkdir(parents=True)
    (queue / "scheduler").write_text("none [mq-deadline] bfq\n")
    assert scheduler("8:0", tmp_path) == "mq-deadline"
    assert scheduler("8:1", tmp_path) == ""


@pytest.mark.parametrize(("text", "shown"), [("0", "0"), ("0,1", "0-1"), ("5,0-2", "0-2,5"), ("1-1,3", "1,3")])
def test_a_cpu_list_as_the_kernel_shows_it(text: str, shown: str) -> None:
    assert cpu_list(text) == shown


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_a_group_that_is_gone_has_no_members(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def read_text(path: Path) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "read_text", read_text)
    assert members(tmp_path) == ()


def test_other_errors_of_reading_members_are_told(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").mkdir()
    with pytest.raises(IsADirectoryError):
        members(tmp_path)
