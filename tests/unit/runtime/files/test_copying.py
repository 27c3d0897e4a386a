"""Copies between trees and archives, by the rules of `docker cp`, and what must not lead outside."""

from __future__ import annotations

import errno
import io
import os
import stat
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import TareError
from runtime.files.copying import TreeSink, copy, tree_entries
from runtime.files.placing import Side, destination, source
from runtime.files.tarring import TarSink, tar_entries

Copy = Callable[[str, str], None]


@contextmanager
def rooted(directory: Path) -> Iterator[Side]:
    directory.mkdir(exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    yield Side(descriptor, "c:")
    os.close(descriptor)


@pytest.fixture
def inside(tmp_path: Path) -> Path:
    """The root directory of what stands for a container."""
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


@pytest.fixture
def copy_in(inside: Path) -> Copy:
    """Copy a host path to one inside."""

    def act(path: str, target: str) -> None:
        with (
            rooted(inside) as side,
            source(Side(), path) as what,
            destination(side, target, what) as where,
        ):
            copy(tree_entries(what.descriptor), TreeSink(where.directory), name=where.name)

    return act


@pytest.fixture
def copy_out(inside: Path) -> Copy:
    """Copy a path inside to the host."""

    def act(path: str, target: str) -> None:
        with (
            rooted(inside) as side,
            source(side, path) as what,
            destination(Side(), target, what) as where,
        ):
            copy(tree_entries(what.descriptor), TreeSink(where.directory), name=where.name)

    return act


def listed(root: Path) -> list[str]:
    """Every path below `root`, directories with a slash."""
    return sorted(str(path.relative_to(root)) + ("/" if path.is_dir() else "") for path in root.rglob("*"))


@pytest.fixture
def host(tmp_path: Path) -> Path:
    """Host files: file, dir/one, dir/sub/two."""
    host = tmp_path / "host"
    (host / "dir/sub").mkdir(parents=True)
    (host / "file").write_text("file")
    (host / "dir/one").write_text("one")
    (host / "dir/sub/two").write_text("two")
    return host


@pytest.mark.parametrize(
    ("path", "target", "wanted"),
    [
        ("file", "/new", ["have/", "new"]),
        ("file", "/have", ["have/", "have/file"]),
        ("file", "have/", ["have/", "have/file"]),
        ("dir", "/have", ["have/", "have/dir/", "have/dir/one", "have/dir/sub/", "have/dir/sub/two"]),
        ("dir/", "/have", ["have/", "have/dir/", "have/dir/one", "have/dir/sub/", "have/dir/sub/two"]),
        ("dir/.", "/have", ["have/", "have/one", "have/sub/", "have/sub/two"]),
        ("dir", "/new", ["have/", "new/", "new/one", "new/sub/", "new/sub/two"]),
        ("dir/.", "/new/", ["have/", "new/", "new/one", "new/sub/", "new/sub/two"]),
        ("dir/sub", "/", ["have/", "sub/", "sub/two"]),
    ],
)
def test_paths_mean_what_they_mean_to_docker(
    host: Path, inside: Path, copy_in: Copy, path: str, target: str, wanted: list[str]
) -> None:
    (inside / "have").mkdir()
    copy_in(f"{host}/{path}", target)
    assert listed(inside) == wanted


@pytest.mark.parametrize(
    ("path", "target", "why"),
    [
        ("file", "/new/", "no such directory"),
        ("file", "/absent/new", "no such file"),
        ("dir", "/there", "cannot be copied onto a file"),
        ("dir", "/absent/new", "no such file"),
        ("file", "/there/", "not a directory"),
        ("nothing", "/x", "no such file"),
    ],
)
def test_what_docker_refuses_is_refused_and_nothing_is_made(
    host: Path, inside: Path, copy_in: Copy, path: str, target: str, why: str
) -> None:
    (inside / "there").write_text("kept")
    with pytest.raises(TareError, match=why):
        copy_in(f"{host}/{path}", target)
    assert listed(inside) == ["there"]
    assert (inside / "there").read_text() == "kept"


def test_a_link_inside_leads_nowhere_outside(tmp_path: Path, host: Path, inside: Path, copy_in: Copy) -> None:
    (tmp_path / "secret").mkdir()
    (inside / "out").symlink_to(tmp_path / "secret")
    (inside / "up").symlink_to("../../../../../.." + str(tmp_path / "secret"))
    for target in ("/out/x", "/up/x"):
        with pytest.raises(TareError):
            copy_in(f"{host}/file", target)
    copy_in(f"{host}/file", "/../../up2")
    assert listed(tmp_path / "secret") == []
    assert (inside / "up2").read_text() == "file"


def test_a_file_inside_that_is_a_link_is_written_where_it_leads_inside(
    tmp_path: Path, host: Path, inside: Path, copy_in: Copy
) -> None:
    (inside / "etc").mkdir()
    (inside / "etc/real").write_text("old")
    (inside / "link").symlink_to("/etc/real")
    (inside / "fresh").symlink_to("etc/made")
    (inside / "host").symlink_to(tmp_path / "target")
    copy_in(f"{host}/file", "/link")
    copy_in(f"{host}/file", "/fresh")
    assert (inside / "link").is_symlink()
    assert (inside / "etc/real").read_text() == (inside / "etc/made").read_text() == "file"
    with pytest.raises(TareError):
        copy_in(f"{host}/file", "/host")
    assert not (tmp_path / "target").exists()


def test_a_directory_that_is_a_link_inside_is_never_walked_into(
    tmp_path: Path, host: Path, inside: Path, copy_in: Copy
) -> None:
    (tmp_path / "secret").mkdir()
    (inside / "dir").mkdir()
    (inside / "dir/sub").symlink_to(tmp_path / "secret")
    with pytest.raises(TareError, match="a file is there and no directory"):
        copy_in(f"{host}/dir", "/")
    assert listed(tmp_path / "secret") == []


def test_a_link_to_the_host_is_copied_out_as_a_link(tmp_path: Path, inside: Path, copy_out: Copy) -> None:
    (inside / "passwd").symlink_to("/etc/passwd")
    copy_out("/passwd", f"{tmp_path}/out")
    assert (tmp_path / "out").is_symlink()


def test_followed_a_link_inside_means_the_file_inside(tmp_path: Path, inside: Path) -> None:
    (inside / "etc").mkdir()
    (inside / "etc/passwd").write_text("the container's")
    (inside / "link").symlink_to("/etc/passwd")
    with (
        rooted(inside) as side,
        source(side, "/link", follow=True) as what,
        destination(Side(), str(tmp_path), what) as where,
    ):
        copy(tree_entries(what.descriptor), TreeSink(where.directory), name=where.name)
    assert (tmp_path / "link").read_text() == "the container's"


def test_a_copy_keeps_modes_times_holes_and_hard_links(host: Path, inside: Path, copy_in: Copy) -> None:
    file = host / "dir/one"
    with file.open("wb") as content:
        content.seek(1 << 20)
        content.write(b"end")
        content.truncate(3 << 20)
    file.chmod(0o4751)
    os.link(file, host / "dir/again")
    os.utime(file, ns=(5, 1_600_000_000_123_456_789))
    os.utime(host / "dir", ns=(5, 1_500_000_000_000_000_001))
    copy_in(f"{host}/dir", "/")
    made = (inside / "dir/one").stat()
    assert (stat.S_IMODE(made.st_mode), made.st_mtime_ns) == (0o4751, 1_600_000_000_123_456_789)
    assert made.st_size == 3 << 20
    assert made.st_blocks * 512 < 1 << 20
    assert made.st_ino == (inside / "dir/again").stat().st_ino
    assert (inside / "dir").stat().st_mtime_ns == 1_500_000_000_000_000_001
    assert (inside / "dir/one").read_bytes() == file.read_bytes()


def test_a_link_that_takes_a_nodes_place_meanwhile_changes_nothing_outside(
    copy_in: Copy, inside: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = tmp_path / "victim"
    victim.touch(0o600)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fifo").chmod(0o4777)
    make = os.mknod

    def raced(name: str, *words: object, dir_fd: int) -> None:
        make(name, *words, dir_fd=dir_fd)  # type: ignore[arg-type]
        os.unlink(name, dir_fd=dir_fd)
        os.symlink(victim, name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mknod", raced)
    with suppress(TareError, OSError):
        copy_in(str(tmp_path / "fifo"), "/fifo")
    assert stat.S_IMODE(victim.stat().st_mode) == 0o600


def test_devices_named_closed_are_not_entered(host: Path) -> None:
    descriptor = os.open(host, os.O_PATH)
    entries = list(tree_entries(descriptor, closed={host.stat().st_dev: False}))
    os.close(descriptor)
    assert [entry.path for entry in entries] == [""]


NAMES = st.text("ab.é \n", min_size=1, max_size=5).filter(lambda name: name not in (".", ".."))
CONTENTS = st.recursive(
    st.binary(max_size=50) | st.just("fifo") | NAMES.map(lambda name: f"->{name}"),
    lambda children: st.dictionaries(NAMES, children, max_size=4),
    max_leaves=10,
)


def _make(path: Path, content: object) -> None:
    if isinstance(content, dict):
        path.mkdir()
        for name, inner in content.items():
            _make(path / name, inner)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(str(content)[2:])


def _shape(path: Path) -> object:
    info = path.lstat()
    times = (stat.filemode(info.st_mode), info.st_mtime_ns)
    if stat.S_ISDIR(info.st_mode):
        return (*times, {child.name: _shape(child) for child in path.iterdir()})
    return (*times, path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(tree=st.dictionaries(NAMES, CONTENTS, max_size=4))
def test_through_a_tar_and_out_of_it_a_tree_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, object]
) -> None:
    base = tmp_path_factory.mktemp("tree")
    _make(base / "from", tree)
    (base / "to").mkdir()
    one, two = os.open(base / "from", os.O_PATH), os.open(base / "to", os.O_PATH)
    archive = io.BytesIO()
    copy(tree_entries(one), TarSink(archive), name="from")
    archive.seek(0)
    copy(tar_entries(archive), TreeSink(two), name="")
    os.close(one)
    os.close(two)
    assert _shape(base / "to/from") == _shape(base / "from")


def _archive(*members: tuple[str, bytes, str]) -> io.BytesIO:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            tar.addfile(member)
    out.seek(0)
    return out


@pytest.mark.parametrize(
    "members",
    [
        [("../x", tarfile.REGTYPE, "")],
        [("a/../../x", tarfile.REGTYPE, "")],
        [("l", tarfile.SYMTYPE, "../secret"), ("l/x", tarfile.REGTYPE, "")],
        [("h", tarfile.LNKTYPE, "../secret/key")],
        [("l", tarfile.SYMTYPE, "../secret"), ("h", tarfile.LNKTYPE, "l/key")],
        [("odd", b"Z", "")],
    ],
)
def test_an_archive_that_would_reach_outside_is_refused(tmp_path: Path, members: list[tuple[str, bytes, str]]) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("host")
    (tmp_path / "to").mkdir()
    descriptor = os.open(tmp_path / "to", os.O_PATH)
    with pytest.raises(TareError):
        copy(tar_entries(_archive(*members)), TreeSink(descriptor), name="")
    os.close(descriptor)
    assert listed(tmp_path / "secret") == ["key"]
    assert (tmp_path / "secret/key").stat().st_nlink == 1


def test_an_archive_with_an_impossible_time_is_refused() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a")
        member.pax_headers = {"mtime": "noon"}
        tar.addfile(member)
    out.seek(0)
    with pytest.raises(TareError, match="not a whole tar"):
        list(tar_entries(out))


@pytest.mark.parametrize("data", [b"", b"not a tar at all" * 100, b"\x1f\x8bbroken"])
def test_what_is_no_archive_is_refused(data: bytes) -> None:
    with pytest.raises(TareError, match="not a whole tar"):
        list(tar_entries(io.BytesIO(data)))


def test_archive_that_nobody_takes_is_an_error_once(tmp_path: Path) -> None:
    class Broken(io.RawIOBase):
        writes = 0

        def write(self, _: object) -> int:
            self.writes += 1
            raise BrokenPipeError(errno.EPIPE, "nobody")

    out = Broken()
    sink = TarSink(out)  # type: ignore[arg-type]
    (tmp_path / "file").write_bytes(bytes(1 << 20))
    descriptor = os.open(tmp_path / "file", os.O_PATH)
    with pytest.raises(BrokenPipeError):
        copy(tree_entries(descriptor), sink, name="file")
    os.close(descriptor)
    del sink
    assert out.writes == 1
