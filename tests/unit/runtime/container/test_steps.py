"""Steps without privileges: what they say, that they travel, and what the harmless ones do."""

from __future__ import annotations

import ctypes
import errno
import marshal
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.container import becoming, furnishing, mounting, steps
from runtime.container.becoming import Confine, Execute, Find, ResourceLimit
from runtime.container.furnishing import Device, Directory, Link, NewFile
from runtime.container.mounting import Attach, Mount, Overlay
from runtime.container.spawning import release
from runtime.container.stepping import Context, Step, Talking
from runtime.container.steps import Hold, OpenHold, RunHook, WaitForParent, Write, from_row, to_row
from runtime.linux import syscalls

EVERY: list[Step] = [
    Write(b"/sys/fs/cgroup/tasks", b"0"),
    steps.Unshare(0x2000000),
    steps.EnterTime(),
    steps.JoinNamespaces(0x20000, 7, 123456),
    steps.LoopbackUp(),
    steps.Interface("eth0", b"\x0a\x57\0\2", 22, b"\x0a\x57\0\1", b"\2T\x0a\x57\0\1"),
    steps.Hostname(b"tare-0"),
    steps.DomainName(b"example.org"),
    WaitForParent(),
    OpenHold(b"/run/fifo"),
    Hold(),
    RunHook("createContainer", 0, ("/bin/true",), ("A=b",), 5, b"{}", b"/rootfs"),
    Mount(b"proc", b"/proc", b"proc", 0xE),
    Overlay((b"/l/2", b"/l/1"), b"/i", 4),
    Attach(b"srv", b"/data", attributes=(1, 0, 0, 0), propagation=(1 << 18,)),
    mounting.Cover(b"/dev/0", b"/etc/hosts", (b"/etc",)),
    mounting.AttachRoot(2, b"/i/upper"),
    mounting.PrivateParent(b"/i/upper"),
    mounting.PivotRoot(b"/state/root"),
    mounting.LeaveHost(b"/srv"),
    mounting.Enter(b"/srv"),
    furnishing.ReadOnly(b"/proc/sys"),
    furnishing.ReadOnlyRoot(),
    furnishing.Mask(b"/proc/kcore"),
    NewFile(b"/dev/0", b"text"),
    Directory(b"/dev/pts"),
    furnishing.Ensure(b"/dev"),
    furnishing.Unmount(b"/dev"),
    Link(b"/proc/self/fd", b"/dev/fd"),
    Device(b"/dev/null", 0o20666, 1, 3),
    becoming.BecomeRoot(),
    becoming.Undumpable(),
    ResourceLimit(7, 1024, 4096),
    becoming.IoPriority(2, 7),
    becoming.Personality(8),
    becoming.SessionKeyring(),
    becoming.Terminal(24, 80, 1000),
    Confine(0, 0, (), (21,), (0xFF, 0xFF, 0), (), True, b"\0" * 16),
    becoming.DieWithParent(),
    Find((b"/bin/true",), (b"true",)),
    Execute((b"/bin/true",), (b"true",), ((b"A", b"1"),)),
]


@pytest.mark.parametrize("step", EVERY, ids=lambda step: type(step).__name__)
def test_a_step_travels_as_plain_values_and_says_what_it_does(step: Step) -> None:
    assert from_row(marshal.loads(marshal.dumps(to_row(step)))) == step
    assert len(step.describe()) > 5


def test_every_kind_of_step_is_tried_here() -> None:
    assert {type(step) for step in EVERY} == set(steps._CLASSES)


def test_descriptions_hold_what_matters() -> None:
    assert Mount(b"proc", b"/proc", b"proc", 0xE).describe() == "mount proc proc at /proc (0xe)"
    assert Mount(b"dev/null", b"/proc/keys", None, syscalls.MS_BIND).describe().startswith("mount bind dev/null at")
    assert "2 instructions" in Confine(0, 0, (), (), None, (), True, b"\0" * 16).describe()
    assert "tree 1 at /data" in Attach(None, b"/data", tree=1).describe()


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


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What confining calls, in order, without doing it."""
    calls: list[str] = []

    def note(name: str, first: object) -> int:
        calls.append(f"{name} {first!r}")
        return 0

    for name in ("prctl", "capset", "seccomp_set_filter", "setgroups", "setresgid", "setresuid", "umask"):
        monkeypatch.setattr(syscalls, f"bare_{name}", lambda first, *_, name=name: note(name, first))
    return calls


def test_confining_drops_before_it_filters(done: list[str]) -> None:
    Confine(0, 0, (), (21, 22), (0xFF, 0xFF, 0), (), True, b"f").execute()
    assert done == [
        "prctl 47",
        "prctl 24",
        "prctl 24",
        "umask 18",
        "setgroups 0",
        "setresgid 0",
        "setresuid 0",
        f"capset {syscalls.capability_sets(0xFF, 0xFF, 0)!r}",
        "prctl 38",
        "seccomp_set_filter b'f'",
    ]


def test_without_no_new_privileges_the_filter_comes_while_there_is_the_privilege_to_set_it(done: list[str]) -> None:
    Confine(0, 0, (), (), (0, 0, 0), (), False, b"f").execute()
    assert done[0] == "seccomp_set_filter b'f'"
    assert "prctl 38" not in done


def test_another_user_keeps_what_it_is_given(done: list[str]) -> None:
    Confine(1000, 1000, (), (), (1 << 10, 1 << 10, 1 << 10), (10,), True, None).execute()
    sets = syscalls.capability_sets(1 << 10, 1 << 10, 1 << 10)
    assert done[-5:] == ["prctl 8", "setresuid 1000", f"capset {sets!r}", "prctl 47", "prctl 38"]


def test_what_cannot_be_taken_away_is_told_and_not_tried_again(
    monkeypatch: pytest.MonkeyPatch, done: list[str]
) -> None:
    def refuse(*_: object) -> int:
        ctypes.set_errno(errno.EPERM)
        return -1

    monkeypatch.setattr(syscalls, "bare_setresuid", refuse)
    step = Confine(1000, 1000, (5,), (), None, (), False, None)
    with pytest.raises(PermissionError, match="setresuid"):
        step.execute()
    before = len(done)
    assert any(function(*given) == -1 for function, given in step.calls())
    done.clear()
    with pytest.raises(PermissionError):
        step.recover()
    assert not done
    assert before == 4


def test_capabilities_that_are_not_given_are_left_to_the_kernel(done: list[str]) -> None:
    Confine(1000, 1000, (), (), None, (), False, None).execute()
    assert not [call for call in done if call.startswith("capset")]


def test_a_talking_step_cannot_be_executed_without_its_context() -> None:
    for step in EVERY:
        if isinstance(step, Talking):
            with pytest.raises(TypeError, match="context"):
                step.execute()


@pytest.fixture
def talk() -> Iterator[tuple[Context, socket.socket]]:
    """A context, and the parent's end of its socket."""
    parent, child = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with parent, child:
        yield Context(child), parent


def test_a_child_goes_on_when_its_parent_answers_and_fails_when_it_is_gone(
    talk: tuple[Context, socket.socket],
) -> None:
    context, parent = talk
    parent.send(b"go")
    WaitForParent().talk(context)
    assert parent.recv(16) == b"hooks"
    parent.shutdown(socket.SHUT_WR)
    with pytest.raises(OSError, match="parent is gone"):
        WaitForParent().talk(context)


def test_a_held_child_goes_on_when_it_is_released(talk: tuple[Context, socket.socket], tmp_path: Path) -> None:
    context, parent = talk
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    OpenHold(os.fsencode(fifo)).talk(context)
    release(str(fifo))
    Hold().talk(context)
    assert parent.recv(16) == b"start"
    os.close(context.hold)


def test_releasing_nobody_is_an_error(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="No such device"):
        release(str(tmp_path / "fifo"))


def test_a_hook_that_fails_says_what_it_said() -> None:
    RunHook("startContainer", 0, ("/bin/sh", "sh", "-c", 'read x; test "$x" = state'), (), 5, b"state\n").execute()
    with pytest.raises(OSError, match=r"startContainer hook #1 /bin/sh.*exit status 3.*oh"):
        RunHook("startContainer", 1, ("/bin/sh", "sh", "-c", "echo oh; exit 3"), (), 5, b"").execute()


@pytest.mark.parametrize(("name", "number"), [("absent", 2), ("data", 13), ("program", 0)])
def test_a_program_is_looked_for_as_it_is_executed(tmp_path: Path, name: str, number: int) -> None:
    (tmp_path / "data").touch(0o600)
    (tmp_path / "program").touch(0o755)
    step = Find((b"/absent/x", os.fsencode(tmp_path / name)), (b"x",))
    if number == 0:
        step.execute()
        return
    with pytest.raises(OSError, match=name) as caught:
        step.execute()
    assert caught.value.errno == number


def test_more_layers_than_a_page_of_options_holds_go_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(syscalls, "mount", lambda *arguments: asked.append("mount"))

    def detached(_: Overlay) -> int:
        asked.append("detached")
        return os.open("/", os.O_PATH)

    monkeypatch.setattr(Overlay, "detached", detached)
    monkeypatch.setattr(syscalls, "move_mount", lambda *arguments: asked.append("move"))
    Overlay((b"/l",), b"/i").execute()
    Overlay(tuple(b"/%b" % bytes([97 + number % 26]) * 100 for number in range(60)), b"/i").execute()
    assert asked == ["mount", "detached", "move"]


def test_odd_paths_are_escaped_in_an_overlays_options(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []
    monkeypatch.setattr(syscalls, "mount", lambda *arguments: asked.append(arguments[4]))
    Overlay((b"/l/2", b"/a:b,c\\d"), b"/i").execute()
    assert asked == [b"redirect_dir=off,lowerdir=/l/2:/a\\:b\\,c\\\\d,upperdir=/i/upper,workdir=/i/work"]


def test_a_directory_or_link_that_is_there_is_left(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path / "d")
    for _ in range(2):
        Directory(place).execute()
        Link(b"d", os.fsencode(tmp_path / "l")).execute()
    (tmp_path / "f").touch()
    with pytest.raises(FileExistsError):
        Directory(os.fsencode(tmp_path / "f")).execute()
