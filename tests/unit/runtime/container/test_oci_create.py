"""What `create` decides before it makes anything: the group's place, what it refuses, what it says and sends."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

import pytest

from runtime.cgroups.resources import DeviceRule, Resources
from runtime.container import decode, oci_cgroup, oci_create
from runtime.container.config import Capabilities, Config
from runtime.container.oci_cgroup import cgroup_path
from runtime.container.oci_create import Making
from runtime.errors import TareError, UsageError
from runtime.linux import capabilities


def config(**process: object) -> Config:
    return decode.parse(
        {"ociVersion": "1.2.0", "root": {"path": "rootfs"}, "process": {"args": ["sh"], "cwd": "/", **process}}
    )


@pytest.mark.parametrize(
    ("path", "systemd", "expected"),
    [
        (None, False, ("id", "tare")),
        ("/tare/web", False, ("web", "tare")),
        ("docker/abc", False, ("abc", "docker")),
        ("/a//b/./c", False, ("c", "a/b")),
        ("single", False, ("single", "")),
        ("user-1000.slice:libpod:abc", True, ("libpod-abc.scope", "user.slice/user-1000.slice")),
        ("system.slice:docker:abc", False, ("docker-abc.scope", "system.slice")),
        (":docker:abc", True, ("docker-abc.scope", "system.slice")),
        ("-.slice:docker:abc", True, ("docker-abc.scope", "")),
        ("machine.slice::pod.slice", True, ("pod.slice", "machine.slice")),
    ],
)
def test_cgroups_path_names_a_group(path: str | None, systemd: bool, expected: tuple[str, str]) -> None:
    assert cgroup_path(path, "id", systemd=systemd) == expected


@pytest.mark.parametrize(
    ("path", "systemd"), [("/", False), ("../x", False), ("a/../b", False), ("a:b", True), ("a:b:c", True)]
)
def test_bad_cgroups_path_is_refused(path: str, systemd: bool) -> None:
    with pytest.raises(UsageError, match="cgroupsPath"):
        cgroup_path(path, "id", systemd=systemd)


def test_terminal_needs_somewhere_to_go(tmp_path: Path) -> None:
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(UsageError, match="console socket"):
        oci_create.check(config(terminal=True), Making(), tmp_path)
    oci_create.check(config(terminal=True), Making(console_socket="/s"), tmp_path)
    oci_create.check(config(terminal=True), Making(foreground=True), tmp_path)
    with pytest.raises(UsageError, match="console socket"):
        oci_create.check(config(), Making(console_socket="/s"), tmp_path)


def test_missing_root_and_missing_program_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"root\.path"):
        oci_create.check(config(), Making(), tmp_path)
    (tmp_path / "rootfs").mkdir()
    with pytest.raises(UsageError, match="args"):
        oci_create.check(
            decode.parse({"ociVersion": "1.2.0", "root": {"path": "rootfs"}}),
            Making(),
            tmp_path,
        )


def test_missing_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config\.json"):
        oci_create.read_config(tmp_path)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null"])
def test_config_that_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(UsageError):
        oci_create.load_json(text, "config.json")


@pytest.mark.parametrize(
    ("name", "number", "code", "words"),
    [
        ("nope", errno.ENOENT, 127, 'exec: "nope": executable file not found in $PATH'),
        ("/nope", errno.ENOENT, 127, 'exec: "/nope": no such file or directory'),
        ("/etc/passwd", errno.EACCES, 126, 'exec: "/etc/passwd": permission denied'),
    ],
)
def test_programs_that_cannot_run_are_told_apart_as_engines_expect(
    name: str, number: int, code: int, words: str
) -> None:
    error = oci_create.cannot_execute(name, number)
    assert words in str(error)
    assert error.exit_code == code


def test_devices_of_every_container_are_added_to_a_filter_and_none_is_left_to_the_default() -> None:
    assert oci_cgroup.limits(config()) == Resources()
    document = {
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}], "resources": {"devices": [{"allow": False, "access": "rwm"}]}},
    }
    devices = oci_cgroup.limits(decode.parse(document)).devices
    assert devices is not None
    assert devices[0] == DeviceRule(allow=False, access="rwm")
    assert DeviceRule(allow=True, type="c", major=1, minor=3, access="rwm") in devices


def test_pid_file_is_there_whole(tmp_path: Path) -> None:
    oci_create.write_pid_file(str(tmp_path / "pid"), 42)
    assert (tmp_path / "pid").read_text() == "42"
    assert list(tmp_path.iterdir()) == [tmp_path / "pid"]
    with pytest.raises(TareError, match="pid file"):
        oci_create.write_pid_file(str(tmp_path / "absent/pid"), 42)


def test_console_is_sent_with_its_name(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    master, slave = os.openpty()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        oci_create.send_console(path, master)
        connection, _ = server.accept()
        with connection:
            message, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
    assert message == b"/dev/ptmx"
    os.write(slave, b"x")
    assert os.read(descriptors[0], 1) == b"x"
    for descriptor in (master, slave, *descriptors):
        os.close(descriptor)
    with pytest.raises(TareError, match="console socket"):
        oci_create.send_console(str(tmp_path / "absent"), 0)


def test_preserved_descriptors_keep_their_numbers() -> None:
    making = Making(preserve_fds=2)
    assert oci_create.streams(making) == ((0, 3), (1, 4))
    assert oci_create.inherited(making) == [3, 4]


def test_capabilities_that_cannot_be_given_are_left_out_with_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "held", lambda: ("CAP_KILL",))
    sets = {"bounding": ["CAP_KILL", "CAP_SYS_RESOURCE"], "permitted": ["CAP_KILL", "CAP_FUTURE"]}
    process = config(capabilities=sets).process
    assert process is not None
    warnings: list[str] = []
    left = oci_create.grantable(process, warnings.append, new_user=False).capabilities
    assert left == Capabilities(bounding=("CAP_KILL",), permitted=("CAP_KILL",))
    assert [warning.split()[1] for warning in warnings] == ["CAP_FUTURE", "CAP_SYS_RESOURCE"]
    inside = oci_create.grantable(process, warnings.append, new_user=True).capabilities
    assert inside == Capabilities(bounding=("CAP_KILL", "CAP_SYS_RESOURCE"), permitted=("CAP_KILL",))


def test_home_is_what_the_containers_passwd_says(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\ngames:x:5:60::/usr/games:/bin/sh\n")

    def home(**process: object) -> str:
        made = config(**process).process
        assert made is not None
        return oci_create.with_home(made, tmp_path).env[-1]

    assert home() == "HOME=/root"
    assert home(user={"uid": 5, "gid": 5}) == "HOME=/usr/games"
    assert home(user={"uid": 6, "gid": 5}) == "HOME=/"
    assert home(env=["HOME=/x"]) == "HOME=/x"
