"""Device nodes of the host, found by path."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.container.devices import grants, host_devices
from runtime.errors import UsageError


def test_a_node_is_granted_where_and_as_far_as_asked() -> None:
    (plain,) = grants("/dev/null")
    assert (plain.device.path, plain.device.type, plain.device.major, plain.device.minor) == ("/dev/null", "c", 1, 3)
    assert plain.access == "rwm"
    (moved,) = grants("/dev/zero:/dev/nought:r")
    assert (moved.device.path, moved.device.minor, moved.access) == ("/dev/nought", 5, "r")
    (short,) = grants("/dev/zero:rw")
    assert (short.device.path, short.access) == ("/dev/zero", "rw")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("/dev/nothing-here", "No such file"),
        ("null", "absolute paths"),
        ("/dev/null:null", "absolute paths"),
        ("/dev/null:/a:/b:rw", "absolute paths"),
        ("/dev/null:/a:rwx", "absolute paths"),
        ("", "absolute paths"),
        ("/proc/self/status", "not a device node"),
    ],
)
def test_what_is_no_device_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        grants(text)


def test_a_directory_without_devices_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not a device node"):
        grants(str(tmp_path))


def test_the_hosts_devices_leave_out_what_is_per_container(tmp_path: Path) -> None:
    (tmp_path / "pts").mkdir()
    (tmp_path / "link").symlink_to("/dev/null")
    (tmp_path / "file").write_text("")
    assert host_devices(tmp_path) == ()
    paths = {device.path for device in host_devices()}
    assert "/dev/null" in paths
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/")) for path in paths)


@pytest.mark.skipif(os.geteuid() != 0, reason="making device nodes needs root")
def test_a_directory_grants_all_below_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    os.mknod(tmp_path / "deep/b", 0o60640, os.makedev(7, 3))
    os.mknod(tmp_path / "a", 0o20600, os.makedev(1, 3))
    found = [grant.device for grant in grants(f"{tmp_path}:/dev/all")]
    assert [(device.path, device.type, device.minor, device.file_mode) for device in found] == [
        ("/dev/all/a", "c", 3, 0o600),
        ("/dev/all/deep/b", "b", 3, 0o640),
    ]
