"""A layer that takes directories for granted gets them as the layers below have them."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

import pytest

from runtime.images.store import ImageStore, Layer
from runtime.spec import ImageRef
from tests.conftest import skip_or_fail
from tests.unit.runtime.images.trees import Member, archive, member

REF = ImageRef.parse("test/image:1")


def directory(name: str, mode: int = 0o755) -> Member:
    return member(name, kind=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str) -> Member:
    return member(name, kind=tarfile.SYMTYPE, linkname=target)


def stacked(tmp_path: Path, *layers: list[Member]) -> tuple[Layer, ...]:
    """The layers of an image made of these archives."""
    store = ImageStore(tmp_path / "root")
    made = []
    for number, members in enumerate(layers):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(archive(members).getvalue())
        made.append(store.put_layer(path))
    return store.add(REF, made, labels={}).layers


def test_a_layer_that_describes_all_it_holds_is_shared_as_it_is(tmp_path: Path) -> None:
    lower, upper = stacked(tmp_path, [directory("etc/", 0o700)], [directory("etc/", 0o711), member("etc/x")])
    assert len({lower.directory.parent, upper.directory.parent}) == 2
    assert len(list((tmp_path / "root/images/layers").iterdir())) == 2
    assert (upper.directory / "etc").stat().st_mode & 0o777 == 0o711


def test_an_undescribed_directory_keeps_the_mode_it_has_below(tmp_path: Path) -> None:
    layers = stacked(
        tmp_path, [directory("tmp/", 0o1777), directory("root/", 0o700)], [member("tmp/x"), member("new/y")]
    )
    assert (layers[1].directory / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (layers[1].directory / "new/y").exists()


@pytest.mark.parametrize("target", ["usr/lib", "/usr/lib", "../../usr/lib", "other"])
def test_members_go_where_a_link_below_leads(tmp_path: Path, target: str) -> None:
    lower = [directory("usr/"), directory("usr/lib/", 0o751), link("lib", target), link("other", "usr/lib")]
    upper = stacked(tmp_path, lower, [member("lib/a/b", b"new"), member("usr/lib/c", b"c")])[1].directory
    assert not (upper / "lib").exists()
    assert (upper / "usr/lib/a/b").read_bytes() == b"new"
    assert (upper / "usr/lib/c").read_bytes() == b"c"
    assert (upper / "usr/lib").stat().st_mode & 0o777 == 0o751


def test_a_directory_below_that_was_removed_in_between_is_not_taken(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        skip_or_fail("trusted attributes need root")
    layers = [directory("etc/", 0o700)], [member(".wh.etc")], [member("etc/x")]
    assert (stacked(tmp_path, *layers)[2].directory / "etc").stat().st_mode & 0o777 == 0o755


def test_the_same_layer_serves_other_images_unchanged(tmp_path: Path) -> None:
    members = [member("lib/x", b"1")]
    upper = stacked(tmp_path, [directory("usr/lib/"), link("lib", "usr/lib")], members)[1]
    alone = ImageStore(tmp_path / "root").layers([upper.digest])[0]
    assert (alone.directory / "lib/x").read_bytes() == b"1"
    assert (upper.directory / "usr/lib/x").read_bytes() == b"1"
