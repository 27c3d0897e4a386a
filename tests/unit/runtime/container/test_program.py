"""Steps as a flat list of calls: the same things done, in the same order, and failures of the same step."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from pathlib import Path

import pytest

from runtime.container.furnishing import Device, Directory, Ensure, Link, NewFile, ReadOnly
from runtime.container.mounting import Cover, Mount
from runtime.container.program import position, program
from runtime.container.stepping import Step
from runtime.container.steps import Write
from runtime.linux import syscalls
from runtime.linux.syscalls import MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT


def test_bare_steps_become_calls_and_others_stay() -> None:
    there = Ensure(b"/x")
    entries = program((Mount(b"tmpfs", b"/a", b"tmpfs", 2, b"mode=755"), there, Directory(b"/a/b")))
    assert entries == (
        (syscalls.bare_mount, (b"tmpfs", b"/a", b"tmpfs", 2, b"mode=755")),
        (None, there),
        (syscalls.bare_mkdir, (b"/a/b", 0o755)),
    )


@pytest.mark.parametrize(
    "step",
    [
        ReadOnly(b"/a", 0),
        Device(b"/dev/a", 0o20666, 1, 3, uid=5),
        Device(b"/dev/net/tun", 0o20666, 10, 200),
    ],
)
def test_a_step_that_must_look_first_stays_a_step(step: Step) -> None:
    assert program((step,)) == ((None, step),)


def test_a_mount_that_must_not_be_led_astray_looks_first(tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "link").symlink_to("directory")
    (tmp_path / "file").touch()
    answers = {}
    for name in ("directory", "link", "file", "absent"):
        step = Mount(b"tmpfs", os.fsencode(tmp_path / name), b"tmpfs", strict=True)
        (look, place), (mount, _) = step.calls()
        assert (look, mount) == (syscalls.bare_is_directory, syscalls.bare_mount)
        answers[name] = look(*place)
    assert [name for name, answer in answers.items() if answer == -1] == ["link", "file", "absent"]


def test_files_are_written_and_what_fails_says_why(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path / "file")
    open_ones = len(list(Path("/proc/self/fd").iterdir()))
    for step, answer in ((Write(path, b"old"), -1), (NewFile(path, b"new text"), 0), (Write(path, b"old"), 0)):
        ((function, given),) = step.calls()
        assert function(*given) == answer
    assert (tmp_path / "file").read_text() == "old text"
    ((function, given),) = NewFile(path, b"x").calls()
    assert function(*given) == -1
    with pytest.raises(FileExistsError):
        NewFile(path, b"x").recover()
    ((function, given),) = Write(b"/dev/full", b"x").calls()
    assert function(*given) == -1
    assert len(list(Path("/proc/self/fd").iterdir())) == open_ones
    with pytest.raises(OSError, match="No space left"):
        Write(b"/dev/full", b"x").recover()


def test_a_new_file_that_a_full_disk_kept_empty_is_told_as_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        ctypes.set_errno(errno.ENOSPC)
        return -1

    monkeypatch.setattr(syscalls, "_write", full)
    step = NewFile(os.fsencode(tmp_path / "file"), b"text")
    ((function, given),) = step.calls()
    assert function(*given) == -1
    with pytest.raises(OSError, match="No space left"):
        step.recover()


def test_a_file_behind_a_link_is_not_covered_in_haste(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/hosts").touch()
    (tmp_path / "link").symlink_to("etc")
    for name, looks in (("etc/hosts", True), ("link/hosts", False), ("etc/absent", False)):
        look, place = Cover(b"/dev/0", os.fsencode(tmp_path / name), ()).calls()[0]
        assert look(*place) == (0 if looks else -1)


def test_a_step_of_two_calls_is_found_by_either() -> None:
    steps = (Directory(b"/a"), ReadOnly(b"/b", 2), Write(b"/c", b"0"))
    entries = program(steps)
    assert [given[3] for _, given in entries[1:3]] == [MS_BIND | MS_REC, MS_BIND | MS_REMOUNT | MS_RDONLY | 2]
    assert [position(steps, at) for at in range(-1, len(entries))] == [-1, 0, 1, 1, 2]
    with pytest.raises(IndexError):
        position(steps, len(entries))


def test_calls_do_what_their_steps_do(tmp_path: Path) -> None:
    paths = [os.fsencode(tmp_path / name) for name in ("d", "l", "f")]
    steps = (Directory(paths[0], 0o700), Link(b"d", paths[1]))
    assert [function(*given) for function, given in program(steps) if function is not None] == [0, 0]
    assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
    assert (tmp_path / "l").readlink() == Path("d")
    assert [function(*given) for function, given in program(steps) if function is not None] == [-1, -1]
