"""A guest's files as entries: against the compiled agent's file commands, and what no honest agent would send."""

from __future__ import annotations

import io
import os
import stat
import struct
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import TareError
from runtime.files.copying import Entry, TreeSink, copy, tree_entries
from runtime.files.placing import Side, place, thing
from runtime.vm import files
from runtime.vm.files import EntrySink, GuestSide, entries, for_host
from tests.agent import build

Run = Callable[..., bytes]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("agent"))


@pytest.fixture
def run(program: Path) -> Run:
    """A file command of the agent, its program in place of the agent's word for itself."""

    def act(words: tuple[str, ...], data: bytes = b"") -> bytes:
        done = subprocess.run([program, *words[1:]], input=data, capture_output=True, timeout=20, check=False)
        if done.returncode:
            raise TareError("guest", done.stderr.decode().strip())
        return done.stdout

    return act


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """One of everything."""
    made = tmp_path / "tree"
    (made / "deep/er").mkdir(parents=True)
    (made / "file").write_bytes(bytes(range(256)) * 3000)
    (made / "empty").touch(0o600)
    os.link(made / "file", made / "deep/hard")
    (made / "dangling").symlink_to("no/where")
    (made / "\udcff name\n").write_text("odd")
    os.mkfifo(made / "fifo", 0o620)
    (made / "file").chmod(0o4751)
    with suppress(OSError):
        os.setxattr(made / "empty", "user.note", b"\0\1")
    os.utime(made / "deep/er", ns=(5, -1_500_000_001))
    os.utime(made / "empty", ns=(5, 123_456_789_012_345_678))
    return made


def described(root: Path) -> list[tuple[object, ...]]:
    """What there is to know about every path below `root`."""
    found = list[tuple[object, ...]]()
    for path in sorted([root, *root.rglob("*")]):
        info = path.lstat()
        content: object = None
        if stat.S_ISLNK(info.st_mode):
            content = path.readlink()
        elif stat.S_ISREG(info.st_mode):
            names = [name for name in os.listxattr(path) if name.startswith("user.")]
            content = path.read_bytes(), [(name, os.getxattr(path, name)) for name in names], info.st_nlink
        found.append((str(path.relative_to(root)), info.st_mode, info.st_uid, info.st_mtime_ns, content))
    return found


def sent(path: Path) -> bytes:
    """The host's `path` as entries."""
    out = io.BytesIO()
    descriptor = os.open(path, os.O_PATH)
    copy(tree_entries(descriptor), EntrySink(out), name=path.name)
    os.close(descriptor)
    return out.getvalue()


def taken(stream: bytes, target: Path, name: str = "") -> None:
    """Entries into the host's `target`."""
    target.mkdir(exist_ok=True)
    descriptor = os.open(target, os.O_RDONLY)
    copy(entries(io.BytesIO(stream)), TreeSink(descriptor), name=name)
    os.close(descriptor)


def test_tree_comes_out_as_it_is(run: Run, tree: Path, tmp_path: Path) -> None:
    taken(run(files.send(str(tree))), tmp_path / "out", "copy")
    assert described(tmp_path / "out/copy") == described(tree)


def test_tree_goes_in_as_it_is(run: Run, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    run(files.receive(str(tmp_path / "in")), sent(tree))
    assert described(tmp_path / "in/tree") == described(tree)


def test_tree_goes_in_over_one_that_is_there(run: Run, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "in/tree/deep").mkdir(parents=True)
    (tmp_path / "in/tree/deep/own").write_text("stays")
    (tmp_path / "secret").write_text("kept")
    (tmp_path / "in/tree/file").symlink_to(tmp_path / "secret")
    run(files.receive(str(tmp_path / "in")), sent(tree))
    assert (tmp_path / "secret").read_text() == "kept"
    (tmp_path / "in/tree/deep/own").unlink()
    os.utime(tmp_path / "in/tree/deep", ns=(5, (tree / "deep").stat().st_mtime_ns))
    assert described(tmp_path / "in/tree") == described(tree)


def test_nothing_below_is_followed_on_the_way_in(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "in/d").symlink_to(tmp_path / "elsewhere")
    out = io.BytesIO()
    sink = EntrySink(out)
    sink.add(Entry(path="d/file", mode=stat.S_IFREG | 0o644))
    sink.finish()
    with pytest.raises(TareError, match="d: Not a directory"):
        run(files.receive(str(tmp_path / "in")), out.getvalue())
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(("made", "entry"), [("directory", stat.S_IFREG), ("file", stat.S_IFDIR)])
def test_a_file_and_a_directory_do_not_take_each_others_place(run: Run, tmp_path: Path, made: str, entry: int) -> None:
    (tmp_path / "x").mkdir() if made == "directory" else (tmp_path / "x").touch()
    out = io.BytesIO()
    sink = EntrySink(out)
    sink.add(Entry(path="x", mode=entry | 0o755))
    sink.finish()
    with pytest.raises(TareError, match=f"x: a {made} is there"):
        run(files.receive(str(tmp_path)), out.getvalue())


def test_input_that_ends_early_is_told(run: Run, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(TareError, match="input: it ended early"):
        run(files.receive(str(tmp_path / "in")), sent(tree)[:-1])


def test_missing_path_and_file_system_without_files_are_told(run: Run, tmp_path: Path) -> None:
    with pytest.raises(TareError, match="missing: No such file"):
        run(files.send(str(tmp_path / "missing")))
    with pytest.raises(TareError, match="holds no files"):
        run(files.send("/proc/self"))


def test_link_itself_is_sent_unless_it_is_to_be_followed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "target").mkdir()
    link = str(tmp_path / "link")
    for words, wanted in (
        (files.send(link), stat.S_ISLNK),
        (files.send(link, follow=True), stat.S_ISDIR),
        (files.send(f"{link}/"), stat.S_ISDIR),
        (files.send(f"{link}/."), stat.S_ISDIR),
    ):
        (entry,) = entries(io.BytesIO(run(words)))
        assert wanted(entry.mode)


@pytest.mark.parametrize(
    "target", ["d", "d/", "new", "new/", "f", "to-d", "to-new", "to-f", "gone/x", "f/x", "loop", ""]
)
@pytest.mark.parametrize("source", ["file", "directory", "directory/.", None])
def test_paths_mean_inside_what_they_mean_here(run: Run, tmp_path: Path, target: str, source: str | None) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "f").touch()
    for name, said in (("to-d", "d"), ("to-new", "new"), ("to-f", "f"), ("loop", "loop")):
        (tmp_path / name).symlink_to(tmp_path / said)
    what = None if source is None else thing(source, directory=source != "file")
    results = list[tuple[str, ...]]()
    for side in (Side(label="vm:"), GuestSide("vm:", run)):
        try:
            results.append(place(side, f"{tmp_path}/{target}", what))
        except TareError as error:
            results.append((error.why.rpartition(": ")[2].lower(),))
    assert results[0] == results[1]


HEAD = struct.Struct("<IIIIQqIIIII")


def raw(
    mode: int = stat.S_IFREG | 0o644, path: bytes = b"x", link: bytes = b"", attributes: bytes = b"", **odd: int
) -> bytes:
    """An entry as an agent would put it, but for what is odd."""
    lengths = odd.get("path_length", len(path)), len(link), odd.get("attributes_length", len(attributes))
    head = HEAD.pack(mode, 0, 0, odd.get("hard", 0), odd.get("size", 0), 0, 0, 0, *lengths)
    return head + path + link + attributes


@pytest.mark.parametrize(
    ("stream", "why"),
    [
        (raw(path=b"../x"), "leads outside"),
        (raw(path=b"a/../../x"), "leads outside"),
        (raw(link=b"../x", hard=1), "leads outside"),
        (raw(path=b"x\0y"), "malformed entry"),
        (raw(path_length=4096), "malformed entry"),
        (raw(attributes_length=1 << 30), "malformed entry"),
        (raw(hard=2), "malformed entry"),
        (raw(mode=stat.S_IFDIR, size=5), "malformed entry"),
        (raw(mode=stat.S_IFSOCK), "malformed entry"),
        (raw(mode=0o644), "malformed entry"),
        (raw(attributes=b"user.x"), "malformed attributes"),
        (raw(attributes=b"user.x\0\xff\0\0\0"), "malformed attributes"),
        (raw(attributes=b"trusted.overlay.opaque\0\1\0\0\0y"), "malformed attributes"),
        (raw(size=1 << 62), "early end"),
        (raw(), "early end"),
        (b"", "early end"),
    ],
)
def test_what_no_agent_sends_is_refused(stream: bytes, why: str) -> None:
    with pytest.raises(TareError, match=why):
        list(entries(io.BytesIO(stream)))


def test_absolute_path_stays_inside(tmp_path: Path) -> None:
    taken(raw(path=b"/etc/x") + bytes(HEAD.size), tmp_path / "out")
    assert (tmp_path / "out/etc/x").exists()


def test_more_than_there_is_room_for_is_refused_before_it_is_read() -> None:
    stream = io.BytesIO(raw(path=b"one", size=2) + b"ab" + raw(path=b"two", size=1 << 40))
    found = for_host(entries(stream), "vm:/d", 1 << 30, owned=True)
    assert next(found).path == "one"
    with pytest.raises(TareError, match=r"vm:/d/two: 1099511627778 bytes with what came before"):
        next(found)


def test_devices_are_refused_and_foreign_powers_dropped() -> None:
    suid = Entry(path="su", mode=stat.S_IFREG | 0o6755)
    assert [entry.mode for entry in for_host([suid], "", 1, owned=False)] == [stat.S_IFREG | 0o755]
    assert list(for_host([suid], "", 1, owned=True)) == [suid]
    with pytest.raises(TareError, match="vm:/d/sda: a device"):
        list(for_host([Entry(path="sda", mode=stat.S_IFBLK | 0o666, device=os.makedev(8, 0))], "vm:/d", 1, owned=True))


@given(st.binary(max_size=400))
def test_any_bytes_are_entries_or_refused(data: bytes) -> None:
    stream: BinaryIO = io.BytesIO(data)
    try:
        for entry in entries(stream):
            assert ".." not in entry.path.split("/")
    except TareError:
        pass
