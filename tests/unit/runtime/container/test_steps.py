"""Steps without privileges: what they say, that they travel, and what the harmless ones do."""

from __future__ import annotations

import marshal
import os
import resource
from pathlib import Path

import pytest

from runtime.container import steps
from runtime.container.steps import (
    CharacterDevice,
    Confine,
    DieWithParent,
    Directory,
    Execute,
    Hostname,
    Interface,
    JoinNamespaces,
    LeaveHost,
    Link,
    LoopbackUp,
    Mount,
    NewFile,
    PivotRoot,
    ReadOnly,
    ResourceLimit,
    Step,
    Unshare,
    WaitForParent,
    Write,
    from_row,
    to_row,
)
from runtime.linux import syscalls

EVERY: list[Step] = [
    Write(b"/sys/fs/cgroup/tasks", b"0"),
    NewFile(b"/dev/0", b"text"),
    Unshare(0x2000000),
    Mount(b"proc", b"/proc", b"proc", 0xE),
    ReadOnly(b"/proc/sys"),
    Directory(b"/dev/pts"),
    Link(b"/proc/self/fd", b"/dev/fd"),
    CharacterDevice(b"/dev/null", 1, 3),
    PivotRoot(b"/state/root"),
    LeaveHost(b"/srv"),
    JoinNamespaces(0x20000),
    WaitForParent("hooks"),
    LoopbackUp(),
    Interface("eth0", b"\x0a\x57\0\2", 22, b"\x0a\x57\0\1", b"\2T\x0a\x57\0\1"),
    Hostname(b"tare-0"),
    ResourceLimit(7, 1024, 4096),
    Confine(0, 0, (), (21,), 0xFF, True, b"\0" * 16),
    DieWithParent(),
    Execute((b"/bin/true",), (b"true",), ((b"A", b"1"),)),
]


@pytest.mark.parametrize("step", EVERY, ids=lambda step: type(step).__name__)
def test_a_step_travels_as_plain_values_and_says_what_it_does(step: Step) -> None:
    assert from_row(marshal.loads(marshal.dumps(to_row(step)))) == step
    assert len(step.describe()) > 5


def test_every_kind_of_step_is_tried_here() -> None:
    assert {type(step) for step in EVERY} == set(steps._CLASSES)


def test_descriptions_hold_what_matters() -> None:
    assert EVERY[3].describe() == "mount proc proc at /proc (0xe)"
    assert Mount(b"dev/null", b"/proc/keys", None, syscalls.MS_BIND).describe().startswith("mount bind dev/null at")
    assert "2 instructions" in EVERY[16].describe()


def test_a_write_is_one_write(tmp_path: Path) -> None:
    (tmp_path / "tasks").touch()
    Write(os.fsencode(tmp_path / "tasks"), b"0").execute()
    assert (tmp_path / "tasks").read_bytes() == b"0"


def test_a_write_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Write(os.fsencode(tmp_path / "absent"), b"0").execute()


def test_a_new_file_replaces_none(tmp_path: Path) -> None:
    step = NewFile(os.fsencode(tmp_path / "new"), b"text")
    step.execute()
    assert (tmp_path / "new").read_bytes() == b"text"
    with pytest.raises(FileExistsError):
        step.execute()


def test_directories_and_links_are_made(tmp_path: Path) -> None:
    Directory(os.fsencode(tmp_path / "d")).execute()
    Link(b"d", os.fsencode(tmp_path / "l")).execute()
    assert (tmp_path / "l").is_dir()


@pytest.mark.parametrize("file", [False, True])
def test_a_missing_mount_point_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: bool) -> None:
    calls: list[bytes] = []

    def mount(source: bytes | None, target: bytes, filesystem: bytes | None, flags: int, data: bytes | None) -> None:
        calls.append(target)
        Path(os.fsdecode(target)).stat()

    monkeypatch.setattr(syscalls, "mount", mount)
    target = tmp_path / "a/b"
    Mount(None, os.fsencode(target), file=file).execute()
    assert (target.is_file(), target.is_dir()) == (file, not file)
    assert len(calls) == 2


def test_other_mount_errors_make_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mount(*arguments: object) -> None:
        raise PermissionError(1, "no", "x")

    monkeypatch.setattr(syscalls, "mount", mount)
    with pytest.raises(PermissionError):
        Mount(None, os.fsencode(tmp_path / "a")).execute()
    assert not (tmp_path / "a").exists()


def test_resource_limits_are_set() -> None:
    before = resource.getrlimit(resource.RLIMIT_CORE)
    ResourceLimit(resource.RLIMIT_CORE, 0, before[1]).execute()
    assert resource.getrlimit(resource.RLIMIT_CORE) == (0, before[1])
    resource.setrlimit(resource.RLIMIT_CORE, before)


def test_what_cannot_be_found_is_enoent_and_what_may_not_be_executed_eacces(tmp_path: Path) -> None:
    (tmp_path / "data").touch(0o600)
    absent, data = os.fsencode(tmp_path / "absent"), os.fsencode(tmp_path / "data")
    with pytest.raises(FileNotFoundError):
        Execute((absent, absent), (b"absent",), ()).execute()
    with pytest.raises(PermissionError):
        Execute((data, absent), (b"data",), ()).execute()


def test_confining_drops_before_it_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def noted(name: str) -> None:
        monkeypatch.setattr(syscalls, name, lambda *arguments: done.append(f"{name} {arguments[0]}"))

    for name in ("prctl", "capset", "seccomp_set_filter"):
        noted(name)
    for name in ("setgroups", "setresgid", "setresuid", "umask"):
        monkeypatch.setattr(os, name, lambda *arguments, name=name: done.append(name))
    Confine(0, 0, (), (21, 22), 0xFF, True, b"f").execute()
    assert done == [
        "prctl 47",
        "prctl 24",
        "prctl 24",
        "umask",
        "setgroups",
        "setresgid",
        "setresuid",
        "capset 255",
        "prctl 38",
        "seccomp_set_filter b'f'",
    ]


def test_another_user_keeps_no_capabilities_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr(syscalls, "prctl", lambda *arguments: 0)
    monkeypatch.setattr(syscalls, "capset", lambda *arguments: done.append("capset"))
    for name in ("setgroups", "setresgid", "setresuid", "umask"):
        monkeypatch.setattr(os, name, lambda *arguments: None)
    Confine(1000, 1000, (), (), 0xFF, False, None).execute()
    assert done == []
