"""Layer archives are unpacked as they say, and never reach outside, whatever they say."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import TareError
from runtime.images.descent import OPAQUE
from runtime.images.layers import Bounds, unpack
from runtime.images.layout import LAYER_GZIP, LAYER_ZSTD, digest_of
from tests.conftest import skip_or_fail
from tests.unit.runtime.images.trees import Member, archive, census, grow, member


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "target"
    path.mkdir()
    return path


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def is_whiteout(path: Path) -> bool:
    info = path.lstat()
    return stat.S_ISCHR(info.st_mode) and info.st_rdev == 0


def test_files_keep_mode_time_and_content(target: Path) -> None:
    stream = archive(
        [
            member("bin/", kind=tarfile.DIRTYPE, mode=0o2750, mtime=1_111_111_111),
            member("bin/tool", b"\x7fELF", mode=0o4755, mtime=1_234_567_890),
            member("bin/alias", kind=tarfile.SYMTYPE, linkname="../../../etc/passwd"),
            member("bin/twin", kind=tarfile.LNKTYPE, linkname="bin/tool"),
            member("fifo", kind=tarfile.FIFOTYPE),
        ]
    )
    expected = "sha256:" + hashlib.sha256(stream.getvalue()).hexdigest()
    assert unpack(stream, target) == (expected, expected, ())
    tool = (target / "bin/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), tool.st_mtime_ns, tool.st_nlink) == (0o4755, 1_234_567_890 * 10**9, 2)
    directory = (target / "bin").stat()
    assert (stat.S_IMODE(directory.st_mode), directory.st_mtime) == (0o2750, 1_111_111_111)
    assert str((target / "bin/alias").readlink()) == "../../../etc/passwd"
    assert (target / "bin/twin").read_bytes() == b"\x7fELF"
    assert (target / "fifo").is_fifo()


def test_time_keeps_its_nanoseconds(target: Path) -> None:
    stream = archive([member("file", pax_headers={"mtime": "1700000000.123456789"})])
    unpack(stream, target)
    assert (target / "file").stat().st_mtime_ns == 1_700_000_000_123_456_789


def test_whiteout_hides_the_layers_below_but_not_its_own_layer(target: Path) -> None:
    unpack(archive([member(".wh.gone"), member("own", b"mine"), member(".wh.own"), member(".wh..wh.plnk")]), target)
    assert is_whiteout(target / "gone")
    assert (target / "own").read_bytes() == b"mine"
    assert names(target) == ["gone", "own"]


def test_file_replaces_an_earlier_whiteout(target: Path) -> None:
    unpack(archive([member(".wh.name"), member("name", b"new")]), target)
    assert (target / "name").read_bytes() == b"new"


def test_opaque_directory_carries_the_overlay_attribute(target: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("trusted attributes need root")
    members = [member("dir/", kind=tarfile.DIRTYPE), member("dir/.wh..wh..opq"), member("dir/new", b"1")]
    unpack(archive(members), target)
    assert os.getxattr(target / "dir", OPAQUE) == b"y"
    assert names(target / "dir") == ["new"]


def test_directory_after_its_own_whiteout_is_opaque(target: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("trusted attributes need root")
    unpack(archive([member(".wh.dir"), member("dir/", kind=tarfile.DIRTYPE)]), target)
    assert os.getxattr(target / "dir", OPAQUE) == b"y"


@pytest.mark.parametrize("members", [[".wh.dir", "dir/sub/new"], ["dir/sub/new", ".wh.dir"]])
def test_what_lies_below_a_whiteout_of_its_layer_hides_what_was_there(target: Path, members: list[str]) -> None:
    if os.geteuid() != 0:
        skip_or_fail("trusted attributes need root")
    found = unpack(archive([member(name, b"1" if "new" in name else b"") for name in members]), target)
    assert os.getxattr(target / "dir", OPAQUE) == b"y"
    assert (target / "dir/sub/new").read_bytes() == b"1"
    assert "dir/sub" in found.implied
    assert OPAQUE not in os.listxattr(target / "dir/sub")


def test_only_harmless_attributes_are_kept(target: Path) -> None:
    headers = {
        "SCHILY.xattr.user.colour": "r\udce9d",
        "SCHILY.xattr.trusted.overlay.redirect": "/etc",
        "SCHILY.xattr.trusted.overlay.metacopy": "",
    }
    unpack(archive([member("file", pax_headers=headers)]), target)
    assert os.listxattr(target / "file") == ["user.colour"]
    assert os.getxattr(target / "file", "user.colour") == b"r\xe9d"


def test_sparse_file_stays_sparse(target: Path, tmp_path: Path) -> None:
    # GNU's old format by hand: a header whose map has one block of 512 bytes at 1 MiB, of a file of 2 MiB.
    info = member("sparse", b"", size=512)
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[386:398], header[398:410] = b"%011o\0" % (1 << 20), b"%011o\0" % 512
    header[483:495] = b"%011o\0" % (2 << 20)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    unpack(io.BytesIO(bytes(header) + b"x" * 512 + b"\0" * 1024), target)
    content = (target / "sparse").read_bytes()
    assert content == b"\0" * (1 << 20) + b"x" * 512 + b"\0" * ((1 << 20) - 512)
    assert (target / "sparse").stat().st_blocks * 512 <= 128 << 10


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([member("/etc/passwd", b"root")], "leaves the layer"),
        ([member("a/../../b", b"")], "leaves the layer"),
        ([member("loop", kind=tarfile.SYMTYPE, linkname="loop"), member("loop/x", b"")], "leads to itself"),
        ([member("file", b""), member("file/below", b"")], "leads through 'file'"),
        ([member("hard", kind=tarfile.LNKTYPE, linkname="../outside/secret")], "leaves the layer"),
        ([member("hard", kind=tarfile.LNKTYPE, linkname="nowhere")], "does not hold"),
        ([member("soft", kind=tarfile.SYMTYPE, linkname="")], "links to nothing"),
        (
            [
                member("up", kind=tarfile.SYMTYPE, linkname="../outside"),
                member("hard", kind=tarfile.LNKTYPE, linkname="up/secret"),
            ],
            "does not hold",
        ),
        ([member("/".join("d" * 300), b"")], "too deep"),
        ([member("fifo", kind=tarfile.FIFOTYPE), member("fifo/x", b"")], "leads through 'fifo'"),
        ([member("zero", kind=tarfile.CHRTYPE)], "takes for a whiteout"),
        ([member("dir/.wh...")], "hides nothing"),
        ([member("dir/.wh.")], "hides nothing"),
        ([member("file", uid=2**32 - 1)], "impossible size or owner"),
        ([member("file", pax_headers={"mtime": "1e30"})], "impossible time"),
        ([member("file", pax_headers={"mtime": "nan"})], "impossible time"),
        ([member("x" * 300)], "File name too long"),
        ([member("file", pax_headers={"mtime": "1e1000"})], "impossible time"),
        ([member("file", pax_headers={"SCHILY.xattr.security.capability": "x"})], "impossible attribute"),
        ([member("y", kind=b"V")], "unknown kind"),
        ([member("big", b"12345678901")], "exceeds the bounds"),
        ([member(str(number)) for number in range(7)], "exceeds the bounds"),
    ],
)
def test_hostile_members_are_refused(tmp_path: Path, members: list[Member], why: str) -> None:
    outside = grow(tmp_path / "outside", {"secret": b"secret"})
    before = census(outside)
    target = grow(tmp_path / "target", {})
    bounds = Bounds(members=6, size_bytes=1 << 20)
    if members[0].name == "big":
        bounds = Bounds(size_bytes=10)
    with pytest.raises(TareError, match=why if members[0].name != "big" else "larger than the bound|exceeds"):
        unpack(archive(members), target, bounds=bounds)
    assert census(outside) == before


@pytest.mark.parametrize("link", ["/", "../../..", "/outside/../", "nowhere", "/outside"])
def test_a_link_leads_within_the_root(tmp_path: Path, link: str) -> None:
    outside = grow(tmp_path / "outside", {"secret": b"secret"})
    before = census(outside)
    target = grow(tmp_path / "target", {})
    unpack(archive([member("link", kind=tarfile.SYMTYPE, linkname=link), member("link/etc/x", b"in")]), target)
    where = target / {"nowhere": "nowhere", "/outside": "outside"}.get(link, "")
    assert (where / "etc/x").read_bytes() == b"in"
    assert (target / "link").is_symlink()
    assert census(outside) == before


def test_undescribed_directories_are_told(target: Path) -> None:
    members = [member("a/b/c/file"), member("a/", kind=tarfile.DIRTYPE), member("x/.wh.gone"), member("x/y/z")]
    found = unpack(archive([*members, member("x", b"file now")]), target)
    assert found.implied == ("a/b", "a/b/c")


def test_a_file_takes_a_directorys_place(target: Path) -> None:
    members = [member("dir/", kind=tarfile.DIRTYPE), member("dir/sub/file", b"1"), member("dir", b"2"), member("z")]
    unpack(archive(members), target)
    assert (target / "dir").read_bytes() == b"2"


def test_a_hard_link_takes_a_files_place(target: Path) -> None:
    link = [
        member("twin", kind=tarfile.LNKTYPE, linkname="d/one"),
        member("d/one", kind=tarfile.LNKTYPE, linkname="twin"),
    ]
    unpack(archive([member("d/one", b"1"), member("twin", b"2"), *link]), target)
    assert (target / "twin").read_bytes() == b"1"
    assert (target / "twin").stat().st_nlink == 2


def test_zstd_gives_both_digests(target: Path) -> None:
    plain = archive([member("file", b"data")]).getvalue()
    packed = zstandard.compress(plain[:1000]) + zstandard.compress(plain[1000:])
    found = unpack(io.BytesIO(packed), target, media_type=LAYER_ZSTD)
    assert found[:2] == tuple("sha256:" + hashlib.sha256(data).hexdigest() for data in (packed, plain))
    with pytest.raises(TareError, match="no zstd"):
        unpack(io.BytesIO(b"not zstd at all"), grow(target / "second", {}), media_type=LAYER_ZSTD)


def test_zstd_bomb_stops_at_the_bound(target: Path) -> None:
    bomb = zstandard.compress(archive([member("file", bytes(64 << 20))]).getvalue())
    with pytest.raises(TareError, match=r"larger than the bound|exceeds the bounds"):
        unpack(io.BytesIO(bomb), target, media_type=LAYER_ZSTD, bounds=Bounds(size_bytes=1 << 20))


def test_gzip_of_several_members_is_one_stream(target: Path) -> None:
    plain = archive([member("file", os.urandom(600_000)), member("zeros", bytes(5 << 20))]).getvalue()
    packed = gzip.compress(plain[:300_000]) + gzip.compress(plain[300_000:]) + bytes(512)
    assert unpack(io.BytesIO(packed), target, media_type=LAYER_GZIP).diff_id == digest_of(plain)


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_gnu_tars_sparse_files(tmp_path: Path, form: str) -> None:
    if shutil.which("tar") is None:
        skip_or_fail("tar is not installed")
    source = grow(tmp_path / "source", {"x" * 120: b"", "plain": b"p"})
    holes = source / ("x" * 120)
    with holes.open("wb") as file:
        for number in range(40):
            file.seek(number << 20)
            file.write(os.urandom(5000))
        file.truncate(60 << 20)
    options = ["--format=gnu"] if form == "gnu" else ["--format=posix", f"--sparse-version={form}"]
    blob = tmp_path / "blob.tar"
    subprocess.run(["tar", "-C", source, "--sparse", *options, "-cf", blob, "."], check=True)
    target = grow(tmp_path / "target", {})
    with blob.open("rb") as file:
        unpack(file, target)
    assert (target / holes.name).read_bytes() == holes.read_bytes()
    assert (target / holes.name).stat().st_blocks * 512 < 4 << 20
    assert (target / "plain").read_bytes() == b"p"


def test_truncated_archive_is_refused(target: Path) -> None:
    whole = archive([member("file", b"x" * 5000)]).getvalue()
    with pytest.raises(TareError, match="damaged"):
        unpack(io.BytesIO(whole[:3000]), target)


def test_truncated_gzip_is_refused(target: Path) -> None:
    whole = gzip.compress(archive([member("file", os.urandom(5000))]).getvalue())
    with pytest.raises(TareError, match="damaged"):
        unpack(io.BytesIO(whole[:3000]), target, media_type=LAYER_GZIP)


@pytest.mark.parametrize("part", [0.0, 0.001, 0.9, 0.99999])
def test_damaged_gzip_is_refused(target: Path, part: float) -> None:
    text = random.Random(1).randbytes(2 << 20).hex().encode()  # enough for damage to lie in the middle of a file
    whole = bytearray(gzip.compress(archive([member("file", text)]).getvalue(), 1))
    at = int(part * len(whole))
    whole[at : at + 64] = b"\xff" * 64
    with pytest.raises(TareError, match="damaged"):
        unpack(io.BytesIO(bytes(whole)), target, media_type=LAYER_GZIP)


def test_what_follows_the_archive_belongs_to_its_digest_and_its_bound(target: Path) -> None:
    long = archive([member("file")]).getvalue() + bytes(3 << 20)
    digest = unpack(io.BytesIO(long), target).digest
    assert digest == "sha256:" + hashlib.sha256(long).hexdigest()
    with pytest.raises(TareError, match="larger than the bound"):
        unpack(io.BytesIO(long), target, bounds=Bounds(size_bytes=2 << 20))


def test_gzip_bomb_stops_at_the_bound(target: Path) -> None:
    bomb = gzip.compress(archive([member("file", bytes(4 << 20))]).getvalue())
    with pytest.raises(TareError, match=r"larger than the bound|exceeds the bounds"):
        unpack(io.BytesIO(bomb), target, media_type=LAYER_GZIP, bounds=Bounds(size_bytes=1 << 20))


def test_gzip_gives_both_digests(target: Path) -> None:
    plain = archive([member("file", b"data")]).getvalue()
    packed = gzip.compress(plain)
    digests = unpack(io.BytesIO(packed), target, media_type=LAYER_GZIP)[:2]
    assert digests == tuple("sha256:" + hashlib.sha256(data).hexdigest() for data in (packed, plain))


def test_giant_extended_header_is_not_read(target: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    with pytest.raises(TareError, match="impossible size"):
        unpack(io.BytesIO(info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)), target)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE])
def test_extended_headers_without_end_are_not_kept(target: Path, kind: bytes) -> None:
    """Each is small, and there is never a member."""

    def header(number: int) -> bytes:
        info = tarfile.TarInfo("pax")
        info.type, value = kind, f"SCHILY.xattr.user.{number:06}=" + "x" * 100_000
        record = f"{len(value) + 8} {value}\n".encode()
        info.size = len(record)
        return info.tobuf(tarfile.GNU_FORMAT) + record + bytes(-len(record) % 512)

    with pytest.raises(TareError, match=r"impossible size|too many global"):
        unpack(io.BytesIO(b"".join(header(number) for number in range(30))), target)


def test_global_headers_are_few(target: Path) -> None:
    members = [member(str(number)) for number in range(3)]
    stream = io.BytesIO()
    many = {f"SCHILY.xattr.user.{number}": "x" for number in range(200)}
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT, pax_headers=many) as tar:
        for info in members:
            tar.addfile(info)
    with pytest.raises(TareError, match="too many global headers"):
        unpack(io.BytesIO(stream.getvalue()), target)


@pytest.mark.parametrize(("offset", "length", "logical"), [(10, -5, 100), (0, 0, -100)])
def test_negative_numbers_of_a_sparse_file_are_refused(target: Path, offset: int, length: int, logical: int) -> None:
    def number(value: int) -> bytes:
        return value.to_bytes(12, "big", signed=True) if value < 0 else b"%011o\0" % value

    header = bytearray(member("sparse", b"x" * 512).tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:410] = number(offset) + number(length)
    header[483:495] = number(logical)
    header[148:156] = b"        "
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(TareError, match=r"map of holes|impossible size"):
        unpack(io.BytesIO(bytes(header) + b"x" * 512 + b"\0" * 1024), target)


@pytest.mark.parametrize("frames", [1, 2])
def test_truncated_zstd_is_refused(target: Path, frames: int) -> None:
    """The archive itself is whole: what is missing is the frame's end."""
    plain = archive([member("file", os.urandom(1000))]).getvalue()
    whole = zstandard.ZstdCompressor(write_checksum=True).compress(plain)
    end = zstandard.ZstdCompressor().compress(bytes(100)) if frames == 2 else whole
    packed = whole[: len(whole) - 4] if frames == 1 else whole + end[: len(end) - 1]
    with pytest.raises(TareError, match="zstd that ends too early"):
        unpack(io.BytesIO(packed), target, media_type=LAYER_ZSTD)


def test_zstd_frames_of_every_kind_end_where_they_say(target: Path) -> None:
    plain = archive([member("file", os.urandom(300_000) + bytes(300_000))]).getvalue()
    half = len(plain) // 2
    skipped = b"\x5a\x2a\x4d\x18" + (7).to_bytes(4, "little") + b"skipped"
    streamed = zstandard.ZstdCompressor(write_content_size=False, write_checksum=True).compressobj()
    packed = zstandard.ZstdCompressor(level=19).compress(plain[:half]) + skipped
    packed += streamed.compress(plain[half:]) + streamed.flush()
    digests = unpack(io.BytesIO(packed), target, media_type=LAYER_ZSTD)
    assert digests.diff_id == digest_of(plain)


COMPONENTS = st.sampled_from(
    [
        "a",
        "b",
        "link",
        "..",
        ".",
        "",
        "/",
        "é",
        "\udcff",
        "n\nl",
        ".wh.a",
        ".wh.",
        ".wh..",
        ".wh...",
        ".wh..wh..opq",
        "x" * 256,
    ]
)
NAMES = st.lists(COMPONENTS, min_size=1, max_size=4).map("/".join)
LINKS = st.one_of(NAMES, st.sampled_from(["../outside", "../outside/secret", "/", "..", "../../../../../../etc", "."]))
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, b"Z"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, KINDS, LINKS), max_size=8))
def test_no_archive_reaches_outside(entries: list[tuple[str, bytes, str]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        outside = grow(Path(scratch) / "outside", {"secret": b"secret", "dir": {"file": b"1"}})
        target = grow(Path(scratch) / "target", {})
        before = census(outside)
        try:
            stream = archive(member(name, b"hostile", kind, linkname=link) for name, kind, link in entries)
            unpack(stream, target)
        except TareError:
            pass
        except PermissionError:
            assert os.geteuid() != 0  # trusted attributes need root
        assert census(outside) == before
        assert names(Path(scratch)) == ["outside", "target"]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2048), st.integers(0, 2047))
def test_garbage_never_raises_anything_but_an_explanation(noise: bytes, at: int) -> None:
    whole = bytearray(archive([member("a", b"1" * 600), member("b/c", b"2")]).getvalue())
    whole[at : at + len(noise)] = noise
    with tempfile.TemporaryDirectory() as scratch:
        try:
            unpack(io.BytesIO(bytes(whole)), Path(scratch))
        except TareError:
            pass
        except PermissionError:
            assert os.geteuid() != 0  # random owners need root
