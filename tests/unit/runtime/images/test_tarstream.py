"""Members are read as the standard library's reader reads them, whatever the format, and damage is a refusal."""

from __future__ import annotations

import io
import tarfile
from contextlib import suppress
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.images.stream import Feed, RefusedError
from runtime.images.tarstream import Member, TarStream

NAMES = st.text(st.sampled_from("ab/.é"), min_size=1, max_size=300).filter(lambda name: name.strip("/"))
LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, *LINKS, tarfile.CHRTYPE, tarfile.FIFOTYPE])
FORMATS = st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])


@st.composite
def members(draw: st.DrawFn) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(draw(NAMES))
    info.type = draw(KINDS)
    info.mode, info.uid, info.gid = (
        draw(st.integers(0, 0o7777)),
        draw(st.integers(0, 2**31)),
        draw(st.integers(0, 2**31)),
    )
    info.mtime = draw(st.integers(0, 2**34))
    content = b""
    if info.isreg():
        content = draw(st.binary(max_size=1500))
        info.size = len(content)
    elif info.type in LINKS:
        info.linkname = draw(NAMES)
    elif info.type == tarfile.CHRTYPE:
        info.devmajor, info.devminor = draw(st.integers(0, 500)), draw(st.integers(0, 500))
    return info, content


def read(data: bytes) -> list[tuple[Member, bytes]]:
    with Feed(io.BytesIO(data), "", 1 << 30) as feed:
        stream = TarStream(feed)
        return [(member, b"".join(bytes(part) for part in stream.content())) for member in stream]


def written(entries: list[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=form) as tar:
        for info, content in entries:
            tar.addfile(info, io.BytesIO(content))
    return target.getvalue()


@settings(max_examples=200, deadline=None)
@given(st.lists(members(), max_size=4), FORMATS)
def test_members_are_what_the_standard_library_reads(entries: list[tuple[tarfile.TarInfo, bytes]], form: int) -> None:
    data = written(entries, form)
    with tarfile.open(fileobj=io.BytesIO(data), errors="surrogateescape") as tar:
        expected = [(info, (tar.extractfile(info) or io.BytesIO()).read() if info.isreg() else b"") for info in tar]
    found = read(data)
    assert [(one.name.rstrip("/"), one.kind, one.mode, one.uid, one.gid, one.linkname) for one, _ in found] == [
        (info.name.rstrip("/"), info.type, info.mode, info.uid, info.gid, info.linkname) for info, _ in expected
    ]
    assert [one.mtime_ns for one, _ in found] == [int(Decimal(info.mtime) * 10**9) for info, _ in expected]
    assert [one.device for one, _ in found] == [(info.devmajor, info.devminor) for info, _ in expected]
    assert [content for _, content in found] == [content for _, content in expected]


def test_content_that_is_not_asked_for_is_passed_over() -> None:
    entries = []
    for number in range(3):
        info = tarfile.TarInfo(f"file{number}")
        info.size = 700
        entries.append((info, bytes([number]) * 700))
    with Feed(io.BytesIO(written(entries, tarfile.GNU_FORMAT)), "", 1 << 30) as feed:
        assert [member.name for member in TarStream(feed)] == ["file0", "file1", "file2"]


def test_a_global_header_speaks_of_all_that_follow() -> None:
    target = io.BytesIO()
    with tarfile.open(
        fileobj=target, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"uid": "7", "comment": "x"}
    ) as tar:
        tar.addfile(tarfile.TarInfo("one"))
        tar.addfile(tarfile.TarInfo("two"))
    assert [member.uid for member, _ in read(target.getvalue())] == [7, 7]


@settings(max_examples=200, deadline=None)
@given(st.lists(members(), min_size=1, max_size=3), FORMATS, st.integers(0, 5000), st.binary(min_size=1, max_size=40))
def test_damage_is_refused_or_read(
    entries: list[tuple[tarfile.TarInfo, bytes]], form: int, at: int, noise: bytes
) -> None:
    data = bytearray(written(entries, form))
    at %= len(data)
    data[at : at + len(noise)] = noise
    with suppress(RefusedError):
        read(bytes(data))


@pytest.mark.parametrize("cut", [1, 511, 513, 1030])
def test_an_end_in_the_middle_is_refused(cut: int) -> None:
    info = tarfile.TarInfo("file")
    info.size = 1000
    with pytest.raises(RefusedError, match="ends in the middle"):
        read(written([(info, b"x" * 1000)], tarfile.GNU_FORMAT)[:cut])
