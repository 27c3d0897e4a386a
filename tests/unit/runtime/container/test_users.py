"""Names looked up in an image's layers, never in the host's files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.container.users import Identity, identify, read_file
from runtime.errors import TareError

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1::/usr/sbin:/bin/false
broken:x:zero:0::/:/bin/sh

web:x:33:34:web:/var/www:/bin/false
twin:x:33:99::/twin:
"""
GROUP = """\
root:x:0:
daemon:x:1:web,root
web:x:34:
video:x:44:root,web
bad:x:y:root
last:x:50:web
"""


def who(uid: int, gid: int, groups: tuple[int, ...] = (), home: str = "/") -> Identity:
    return Identity(uid=uid, gid=gid, groups=groups, home=home)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    return make(tmp_path / "layer", {"etc/passwd": PASSWD, "etc/group": GROUP})


def make(root: Path, files: dict[str, str]) -> Path:
    root.mkdir(exist_ok=True)
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("user", "identity"),
    [
        ("", who(0, 0, (1, 44), "/root")),
        ("root", who(0, 0, (1, 44), "/root")),
        ("web", who(33, 34, (1, 44, 50), "/var/www")),
        ("33", who(33, 34, (1, 44, 50), "/var/www")),
        ("web:video", who(33, 44, (), "/var/www")),
        ("web:7", who(33, 7, (), "/var/www")),
        ("1000", who(1000, 0, (), "/")),
        ("1000:1000", who(1000, 1000, (), "/")),
        (":video", who(0, 44, (), "/root")),
    ],
)
def test_users_are_found_as_docker_finds_them(layer: Path, user: str, identity: Identity) -> None:
    assert identify((layer,), user) == identity


def test_groups_may_be_added_once(layer: Path) -> None:
    assert identify((layer,), "web", ("video", "99", "34")).groups == (1, 44, 50, 99)


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("nobody", "user 'nobody': no matching entry in the image's /etc/passwd"),
        ("broken", "user 'broken'"),
        ("web:wheel", "group 'wheel': no matching entry in the image's /etc/group"),
        ("web:bad", "group 'bad'"),
        ("-1", "user '-1'"),
        ("2147483648", "range 0-2147483647"),
        ("1:99999999999999999999", "range 0-2147483647"),
        ("٣", "user '٣'"),
    ],
)
def test_a_name_that_is_not_there_is_named(layer: Path, user: str, message: str) -> None:
    with pytest.raises(TareError, match=message):
        identify((layer,), user)


def test_numbers_need_no_files(tmp_path: Path) -> None:
    assert identify((), "") == who(0, 0, (), "/root")
    assert identify((make(tmp_path / "empty", {}),), "5:6") == who(5, 6)


def test_the_topmost_layer_wins(layer: Path, tmp_path: Path) -> None:
    top = make(tmp_path / "top", {"etc/passwd": "web:x:7:7::/:\n"})
    assert identify((layer, top), "web").uid == 7
    assert identify((top, layer), "web").uid == 33


def test_a_directory_above_is_merged_with_that_below(layer: Path, tmp_path: Path) -> None:
    assert identify((layer, make(tmp_path / "top", {"etc/hosts": ""})), "web").uid == 33


def test_a_file_in_the_way_hides_what_is_below(layer: Path, tmp_path: Path) -> None:
    assert read_file((layer, make(tmp_path / "top", {"etc": "a file"})), "/etc/passwd") is None


def test_links_stay_in_the_image(layer: Path, tmp_path: Path) -> None:
    top = make(tmp_path / "top", {})
    (top / "etc").mkdir()
    (top / "etc/passwd").symlink_to("../../../../../usr/lib/passwd")
    usr = make(tmp_path / "usr", {"real/lib/passwd": "web:x:8:8::/:\n"})
    (usr / "usr").symlink_to("/real")
    assert identify((layer, usr, top), "web").uid == 8


def test_a_link_to_the_hosts_files_reads_the_images(tmp_path: Path) -> None:
    secret = make(tmp_path / "host", {"secret": "mallory:x:0:0::/:\n"})
    image = make(tmp_path / "image", {})
    (image / "etc").symlink_to(secret)
    assert read_file((image,), "/etc/secret") is None
    with pytest.raises(TareError, match="mallory"):
        identify((image,), "mallory")


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    image = make(tmp_path / "image", {})
    (image / "etc").symlink_to("etc")
    with pytest.raises(TareError, match="Too many levels"):
        identify((image,), "web")


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    image = make(tmp_path / "image", {"etc/x": ""})
    os.mkfifo(image / "etc/passwd")
    (image / "etc/group").mkdir()
    assert read_file((image,), "/etc/passwd") is None
    assert read_file((image,), "/etc/group") is None
    assert read_file((image,), "/etc") is None


@pytest.mark.skipif(os.geteuid() != 0, reason="making whiteouts needs root")
def test_whiteouts_and_opaque_directories_hide(layer: Path, tmp_path: Path) -> None:
    gone = make(tmp_path / "gone", {"etc/x": ""})
    os.mknod(gone / "etc/passwd", 0o20000, 0)
    assert read_file((layer, gone), "/etc/passwd") is None
    opaque = make(tmp_path / "opaque", {"etc/x": ""})
    try:
        os.setxattr(opaque / "etc", "trusted.overlay.opaque", b"y")
    except OSError as error:
        pytest.skip(f"no trusted attributes here: {error}")
    assert read_file((layer, opaque), "/etc/passwd") is None
    assert read_file((layer, opaque), "/etc/x") == b""
