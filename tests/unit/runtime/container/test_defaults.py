"""Images and the words of `docker run` as OCI configurations: Docker's default container, and what changes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.cgroups.resources import Memory, Resources
from runtime.container import decode, defaults
from runtime.container.config import Config, Device, MountPoint, Process
from runtime.container.defaults import DeviceGrant, IdRange, Options, build
from runtime.errors import TareError, UsageError
from runtime.linux import capabilities
from runtime.linux.profile import default_profile

DATA = Path(__file__).parent / "data"
IMAGE: dict[str, Any] = {
    "architecture": "amd64",
    "config": {
        "Entrypoint": ["/entry"],
        "Cmd": ["serve", "--all"],
        "Env": ["PATH=/bin", "LANG=C", "BROKEN"],
        "WorkingDir": "srv/../app",
        "Labels": {"maintainer": "me", "tier": "image"},
    },
}
BARE: dict[str, Any] = {"config": {"Cmd": ["sh"]}}
ID = "0123456789abcdef" * 4


def container(image: dict[str, Any] = BARE, /, **options: Any) -> Config:
    return build(image, Options(container_id=ID, **options))


def process(image: dict[str, Any] = BARE, /, **options: Any) -> Process:
    found = container(image, **options).process
    assert found is not None
    return found


def document(config: Config) -> dict[str, Any]:
    """Without the default filter, which has its own tests."""
    found = decode.document(config)
    if config.linux.seccomp == default_profile():
        found["linux"]["seccomp"] = "default"
    return found


GOLDEN = {
    "default": Options(container_id=ID),
    "privileged": Options(
        container_id=ID, privileged=True, host_devices=(Device(type="b", path="/dev/sda", major=8, minor=0),)
    ),
    "many-words": Options(
        container_id=ID,
        argv=("id",),
        env=("A=1", "LANG"),
        cwd="/work",
        user="5:6",
        groups=("7",),
        tty=True,
        hostname="box",
        labels={"tier": "mine"},
        cap_add=("net_admin",),
        cap_drop=("ALL",),
        no_new_privileges=True,
        read_only=True,
        mounts=(
            MountPoint(destination="/b/c", type="bind", source="/srv", options=("rbind", "ro")),
            MountPoint(destination="/a", type="tmpfs", source="tmpfs", options=("mode=1777",)),
        ),
        devices=(DeviceGrant(device=Device(type="c", path="/dev/fuse", major=10, minor=229), access="rw"),),
        resources=Resources(memory=Memory(limit=1 << 28)),
        id_range=IdRange(host_id=100000),
        network="/proc/7/ns/net",
        shm_bytes=1 << 20,
    ),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_documents_are_as_recorded(name: str) -> None:
    path = DATA / f"config-{name}.json"
    assert document(build(IMAGE, GOLDEN[name])) == json.loads(path.read_text())


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ({}, ("/entry", "serve", "--all")),
        ({"argv": ("x",)}, ("/entry", "x")),
        ({"entrypoint": ("/other",)}, ("/other",)),
        ({"entrypoint": ("/other",), "argv": ("x",)}, ("/other", "x")),
        ({"entrypoint": ("",), "argv": ("x", "y")}, ("x", "y")),
    ],
)
def test_entry_point_and_command_follow_dockers_rules(options: dict[str, Any], args: tuple[str, ...]) -> None:
    assert process(IMAGE, **options).args == args


@pytest.mark.parametrize("image", [{}, {"config": None}, {"config": {"Cmd": None}}, {"rootfs": {}}])
def test_an_image_without_a_command_needs_one(image: dict[str, Any]) -> None:
    assert process(image, argv=("x",)).args == ("x",)
    with pytest.raises(UsageError, match="no command specified"):
        container(image)


@pytest.mark.parametrize("config", [{"Cmd": "sh"}, {"Env": {}}, {"User": 0}, {"Labels": {"a": 1}}, [], "x"])
def test_an_image_that_lies_is_refused_by_the_field(config: object) -> None:
    with pytest.raises(UsageError, match="image configuration: "):
        build({"config": config} if config else {"config": [1]}, Options(argv=("x",)))


def test_environment_is_dockers_then_the_images_then_the_users() -> None:
    assert process(IMAGE, env=("LANG=de", "X=a=b")).env == (
        "PATH=/bin",
        f"HOSTNAME={ID[:12]}",
        "LANG=de",
        "X=a=b",
        "HOME=/root",
    )
    assert "TERM=xterm" in process(IMAGE, tty=True).env
    assert f"PATH={defaults.PATH}" in process().env
    assert process(IMAGE, env=("LANG", "HOME=/x")).env == ("PATH=/bin", f"HOSTNAME={ID[:12]}", "HOME=/x")


def test_working_directory_is_made_absolute_and_the_users_must_be() -> None:
    assert process(IMAGE).cwd == "/app"
    assert process(IMAGE, cwd="/x/../y").cwd == "/y"
    with pytest.raises(UsageError, match="not an absolute path"):
        container(IMAGE, cwd="x")


def test_users_come_from_the_layers(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("web:x:33:34::/www:\n")
    config = build({"config": {"Cmd": ["x"], "User": "web"}}, Options(), layers=(tmp_path,))
    assert config.process is not None
    assert (config.process.user.uid, config.process.user.additional_gids) == (33, (34,))
    assert "HOME=/www" in config.process.env
    with pytest.raises(TareError, match="user 'web'"):
        build({"config": {"Cmd": ["x"], "User": "web"}}, Options())


def test_only_root_starts_with_capabilities() -> None:
    root, user = process().capabilities, process(user="5").capabilities
    assert root is not None
    assert user is not None
    assert set(root.effective) == set(root.permitted) == set(root.bounding) == set(capabilities.DEFAULT)
    assert set(user.bounding) == set(capabilities.DEFAULT)
    assert (user.effective, user.permitted, root.inheritable, root.ambient) == ((), (), (), ())


def test_a_granted_capability_opens_the_calls_it_stands_for() -> None:
    granted = container(cap_add=("SYS_ADMIN",)).linux.seccomp
    assert granted is not None
    assert granted != container().linux.seccomp
    assert "mount" in granted.syscalls[0].names


def test_all_capabilities_are_those_that_there_are_to_give() -> None:
    held = ("CAP_CHOWN", "CAP_BPF", "CAP_KILL")
    for options in ({"privileged": True}, {"cap_add": ("ALL",)}):
        sets = process(held_capabilities=held, last_capability=38, **options).capabilities
        assert sets is not None
        assert set(sets.bounding) == {"CAP_CHOWN", "CAP_KILL"}


def test_privileged_is_unconfined() -> None:
    config = container(privileged=True)
    assert config.linux.seccomp is None
    assert (config.linux.masked_paths, config.linux.readonly_paths) == ((), ())
    assert not any("ro" in mount.options for mount in config.mounts)


def test_namespaces_are_shared_joined_or_left_out() -> None:
    config = container(network="host", pid="/proc/5/ns/pid", ipc="host", uts="host", cgroupns="host")
    assert {namespace.type: namespace.path for namespace in config.linux.namespaces} == {
        "mount": None,
        "pid": "/proc/5/ns/pid",
    }
    assert config.hostname is None
    assert config.linux.sysctl == {}
    shm = next(mount for mount in config.mounts if mount.destination == "/dev/shm")
    assert (shm.type, shm.source) == ("bind", "/dev/shm")


def test_a_mount_replaces_the_systems_at_its_place() -> None:
    mine = MountPoint(destination="/dev/shm/", type="tmpfs", source="x", options=("size=1",))
    assert [mount for mount in container(mounts=(mine,)).mounts if "shm" in mount.destination] == [mine]
    whole = container(mounts=(MountPoint(destination="/dev", type="bind", source="/dev", options=("rbind",)),))
    assert [mount.destination for mount in whole.mounts if mount.destination.startswith("/dev")] == ["/dev"]
    sys = container(mounts=(MountPoint(destination="/sys", type="bind", source="/srv"),))
    assert [mount.destination for mount in sys.mounts if mount.destination.startswith("/sys")] == ["/sys"]


def test_outer_mounts_come_before_inner_ones() -> None:
    places = ("/z", "/a/b", "/a")
    mounts = tuple(MountPoint(destination=place, type="tmpfs") for place in places)
    assert [mount.destination for mount in container(mounts=mounts).mounts][-3:] == ["/a", "/z", "/a/b"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"privileged": True, "id_range": IdRange(host_id=1)}, "--privileged"),
        ({"pid": "/proc/7/ns/pid", "id_range": IdRange(host_id=1)}, "--pid"),
        ({"uts": "host", "hostname": "x"}, "--hostname"),
        ({"cap_add": ("FLY",)}, "capability 'FLY'"),
        ({"cap_add": ("bpf",), "last_capability": 37}, "--cap-add CAP_BPF: the kernel"),
        ({"cap_add": ("bpf",), "held_capabilities": ("CAP_KILL",)}, "--cap-add CAP_BPF: not this host's"),
        ({"mounts": (MountPoint(destination="/a", type="tmpfs"),) * 2}, "mount /a: two mounts"),
        ({"mounts": (MountPoint(destination="/a/..", type="tmpfs"),)}, "would hide the image"),
        ({"mounts": (MountPoint(destination="", type="tmpfs"),)}, r"mounts\[7\].destination: empty"),
        ({"shm_bytes": 0}, "--shm-size 0"),
        ({"env": ("=x",)}, "environment '=x'"),
        ({"hostname": "x" * 65}, "hostname: longer"),
        ({"sysctls": {"vm.swappiness": "1"}}, "linux.sysctl"),
        ({"network": "host", "sysctls": {"net.ipv4.ip_forward": "1"}}, "needs a namespace of type network"),
        ({"argv": ("a\0b",)}, r"process.args\[0\]: holds a NUL byte"),
    ],
)
def test_what_has_no_sense_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        container(**options)


def test_what_the_host_lacks_is_in_all_left_out_and_in_a_user_namespace_there() -> None:
    held = ("CAP_KILL", "CAP_CHOWN")
    every = container(cap_add=("all",), held_capabilities=held).process
    assert every is not None
    assert every.capabilities is not None
    assert set(every.capabilities.bounding) == set(held)
    own = container(cap_add=("bpf",), held_capabilities=held, id_range=IdRange(host_id=100000)).process
    assert own is not None
    assert own.capabilities is not None
    assert "CAP_BPF" in own.capabilities.bounding


words = st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), max_size=3)
modes = st.sampled_from(["private", "host", "/proc/1/ns/x"])


@given(
    st.builds(
        Options,
        argv=words.map(tuple),
        entrypoint=st.none() | words.map(tuple),
        env=words.map(tuple),
        user=st.none() | st.integers(0, 2**31 - 1).map(str),
        hostname=st.none() | st.text("abc", max_size=70),
        tty=st.booleans(),
        privileged=st.booleans(),
        read_only=st.booleans(),
        network=modes,
        pid=modes,
        ipc=modes,
        uts=modes,
        cgroupns=modes,
        id_range=st.none() | st.just(IdRange(host_id=100000)),
        shm_bytes=st.integers(0, 2**40),
        labels=st.dictionaries(st.text("ab", max_size=2), st.text("ab", max_size=2), max_size=2),
    )
)
def test_what_is_built_is_valid_and_comes_back(options: Options) -> None:
    try:
        config = build(IMAGE, options)
    except UsageError:
        return
    written = json.loads(json.dumps(decode.document(config)))
    assert decode.parse(written) == config
