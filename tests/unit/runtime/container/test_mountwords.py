"""The words of mount(8)."""

from __future__ import annotations

import pytest

from runtime.container.mountwords import Wanted, read
from runtime.errors import UsageError
from runtime.linux import syscalls as sc


def words(text: str, *, bind: bool = False) -> Wanted:
    return read(text.split(","), bind=bind, where="mounts[3]")


def test_later_words_win() -> None:
    assert words("ro,rw").flags == 0
    assert words("rw,nosuid,ro").flags == sc.MS_RDONLY | sc.MS_NOSUID
    assert words("noatime,strictatime").flags == sc.MS_STRICTATIME
    assert words("noatime,atime").flags == 0


def test_what_nobody_knows_is_the_file_systems() -> None:
    assert words("size=64m,ro,mode=755").data == "size=64m,mode=755"


def test_on_a_bind_it_is_an_error_named_by_its_field() -> None:
    with pytest.raises(UsageError, match=r"mounts\[3\]\.options: 'size=1m'"):
        words("rbind,size=1m")


def test_a_bind_is_a_bind_by_type_or_word() -> None:
    assert words("ro", bind=True).bind
    assert words("bind").bind
    assert words("rbind").recursive
    assert not words("ro").bind


def test_attributes_belong_to_binds_and_flags_to_all() -> None:
    assert words("ro,noatime").attributes == (0, 0, 0, 0)
    assert words("bind,ro,noatime").attributes == (
        sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOATIME,
        sc.MOUNT_ATTR_ATIME,
        0,
        0,
    )


def test_words_with_an_r_reach_below() -> None:
    assert words("rbind,rro,rnosuid").attributes[2:] == (sc.MOUNT_ATTR_RDONLY | sc.MOUNT_ATTR_NOSUID, 0)
    assert words("rbind,rro,rrw").attributes[2:] == (0, sc.MOUNT_ATTR_RDONLY)
    assert words("rbind,rrelatime").attributes[2:] == (0, sc.MOUNT_ATTR_ATIME)


def test_relatime_is_itself_and_not_the_recursive_elatime() -> None:
    assert words("relatime").flags == sc.MS_RELATIME
    assert words("relatime").data == ""


def test_propagation_and_the_rest() -> None:
    assert words("rbind,rslave,unbindable").propagation == (sc.MS_SLAVE | sc.MS_REC, sc.MS_UNBINDABLE)
    assert words("tmpcopyup").copy_up
    assert words("bind,ridmap").idmap == "ridmap"
    assert words("defaults").data == ""
