"""The flags that ask for mounts, and the mounts that they become."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.container.mountflags import (
    MountRequest,
    Resolver,
    Source,
    parse_mount,
    parse_tmpfs,
    parse_volume,
)
from runtime.container.volumes import VolumeStore
from runtime.errors import UsageError


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/data", MountRequest(kind=Source.VOLUME, target="/data")),
        ("name:/data/", MountRequest(kind=Source.VOLUME, source="name", target="/data")),
        ("name:/d:ro,nocopy", MountRequest(kind=Source.VOLUME, source="name", target="/d", read_only=True, copy=False)),
        ("/h:/d", MountRequest(kind=Source.BIND, source="/h", target="/d", make_source=True)),
        (
            "./h:/d:ro,rslave,z",
            MountRequest(
                kind=Source.BIND, source="./h", target="/d", read_only=True, propagation="rslave", make_source=True
            ),
        ),
    ],
)
def test_v_is_read_as_docker_reads_it(text: str, wanted: MountRequest) -> None:
    assert parse_volume(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not SOURCE:TARGET"),
        ("a:/b:ro:x", "not SOURCE:TARGET"),
        ("name:data", "no absolute path"),
        ("/a:/..", "no absolute path"),
        ("/a:/", "root itself"),
        ("/a:/b:nocopy", "'nocopy' is not known for a host path"),
        ("name:/b:rshared", "'rshared' is not known for a volume"),
        ("name:/b:fast", "'fast' is not known"),
        ("na/me:/b", "not a name"),
    ],
)
def test_v_is_refused_by_its_wrong_part(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_volume(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("target=/d", MountRequest(kind=Source.VOLUME, target="/d")),
        (
            "type=bind,src=/h,dst=/d,ro,bind-propagation=shared",
            MountRequest(kind=Source.BIND, source="/h", target="/d", read_only=True, propagation="shared"),
        ),
        (
            'type=bind,"source=/h,i",target=/d,readonly=false',
            MountRequest(kind=Source.BIND, source="/h,i", target="/d"),
        ),
        (
            "type=tmpfs,target=/d,tmpfs-size=2m,tmpfs-mode=700",
            MountRequest(kind=Source.TMPFS, target="/d", options=("size=2097152", "mode=700")),
        ),
        (
            "source=v1,target=/d,volume-nocopy",
            MountRequest(kind=Source.VOLUME, source="v1", target="/d", copy=False),
        ),
    ],
)
def test_mount_is_read_as_docker_reads_it(text: str, wanted: MountRequest) -> None:
    assert parse_mount(text) == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("type=nfs,target=/d", "'nfs' is not one of bind, volume, tmpfs"),
        ("type=bind,target=/d", "host path"),
        ("type=bind,source=/h", "no absolute path"),
        ("type=tmpfs,source=/h,target=/d", "'source' is not known for type tmpfs"),
        ("type=bind,source=/h,target=/d,readonly=maybe", "neither true nor false"),
        ("type=bind,source=/h,src=/i,target=/d", "source is given twice"),
        ("type=bind,source=/h,target=/d,bind-propagation=odd", "not one of private"),
        ("type=tmpfs,target=/d,tmpfs-size=big", "no size"),
        ("type=tmpfs,target=/d,tmpfs-mode=9", "no octal mode"),
    ],
)
def test_mount_is_refused_by_its_wrong_part(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_mount(text)


def test_tmpfs_keeps_its_options_and_refuses_unknown_ones() -> None:
    wanted = MountRequest(kind=Source.TMPFS, target="/t", read_only=True, options=("size=64m", "exec"))
    assert parse_tmpfs("/t:size=64m,ro,exec") == wanted
    with pytest.raises(UsageError, match="'fast' is not known"):
        parse_tmpfs("/t:fast")


@given(st.text(max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    for parse in (parse_volume, parse_mount, parse_tmpfs):
        try:
            assert parse(text).target.startswith("/")
        except UsageError:
            continue


def test_mounts_come_in_an_order_in_which_none_hides_another(tmp_path: Path) -> None:
    store = VolumeStore(tmp_path)
    requests = [parse_volume("deep:/a/b/c"), parse_tmpfs("/a"), parse_volume(f"{tmp_path}/new/host:/a/b:ro")]
    found = Resolver(store, tmp_path).resolve(requests)
    assert [each.mount.destination for each in found] == ["/a", "/a/b", "/a/b/c"]
    assert found[0].mount.type == "tmpfs"
    assert found[1].mount.options == ("rbind", "rprivate", "ro")
    assert (tmp_path / "new/host").is_dir()  # as Docker makes a host directory for -v
    assert found[2].volume is not None
    assert found[2].mount.source == str(tmp_path / "volumes/deep/_data")
    assert found[2].copy


def test_where_ids_are_mapped_a_volume_is_too_and_a_host_path_is_not(tmp_path: Path) -> None:
    requests = [parse_volume("vol:/a"), parse_volume(f"{tmp_path}:/b"), parse_tmpfs("/c")]
    found = Resolver(VolumeStore(tmp_path), tmp_path, mapped=True).resolve(requests)
    assert ["idmap" in each.mount.options for each in found] == [True, False, False]


def test_nothing_is_made_when_one_mount_is_wrong(tmp_path: Path) -> None:
    resolver = Resolver(VolumeStore(tmp_path / "root"), tmp_path)
    missing = parse_mount(f"type=bind,source={tmp_path}/absent,target=/b")
    with pytest.raises(UsageError, match="no such file"):
        resolver.resolve([parse_volume("/a"), missing])
    with pytest.raises(UsageError, match="twice"):
        resolver.resolve([parse_volume("/a"), parse_tmpfs("/a/")])
    assert list(tmp_path.iterdir()) == []
