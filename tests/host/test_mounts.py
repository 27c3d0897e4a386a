"""What a container sees of files on a real kernel: mounts, traps laid in images, masks, devices. Needs root."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.container.config import Device, MountPoint, Root
from runtime.container.plan import Place
from runtime.errors import TareError
from runtime.linux import syscalls
from tests.launches import Launches


def bind(source: Path, *words: str, at: str = "/data", **fields: Any) -> MountPoint:
    return MountPoint(destination=at, type="bind", source=str(source), options=("rbind", *words), **fields)


def tmpfs(*words: str, at: str = "/data") -> MountPoint:
    return MountPoint(destination=at, type="tmpfs", source="tmpfs", options=words)


def options(launches: Launches, mount: MountPoint, **more: Any) -> set[str]:
    """What /proc/self/mountinfo says of the topmost mount at its place."""
    script = f"grep ' {mount.destination} ' /proc/self/mountinfo | tail -n 1"
    return set(launches.sh(script, mounts=(mount,), **more).split()[5].split(","))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("hello\n")
    (tmp_path / "below").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("ro",), {"ro", "relatime"}),
        (("ro", "nosuid", "nodev", "noexec"), {"ro", "nosuid", "nodev", "noexec", "relatime"}),
        (("noatime",), {"rw", "noatime"}),
        (("nodiratime", "ro", "rw"), {"rw", "nodiratime", "relatime"}),
        (("rro", "rnodev"), {"ro", "nodev", "relatime"}),
    ],
)
def test_the_words_of_a_bind_are_its_mounts(
    launches: Launches, data: Path, words: tuple[str, ...], expected: set[str]
) -> None:
    assert options(launches, bind(data, *words)) == expected


def test_a_file_can_be_bound_and_missing_places_are_made(launches: Launches, data: Path) -> None:
    mounts = (bind(data / "file", "ro", at="/a/b/file"), bind(data, at="/c/d"))
    assert launches.sh("cat /a/b/file /c/d/file; echo x > /c/d/new", mounts=mounts).split() == ["hello", "hello"]
    assert (data / "new").exists()


def test_a_source_that_is_not_there_is_named(launches: Launches, data: Path) -> None:
    with pytest.raises(TareError, match="absent"):
        launches.sh("true", mounts=(bind(data / "absent"),))


@pytest.fixture
def submount(data: Path) -> Iterator[Path]:
    """A mount below `data`, in the host's namespace."""
    below = os.fsencode(data / "below")
    syscalls.mount(b"tmpfs", below, b"tmpfs", 0, None)
    yield data
    syscalls.umount2(below, syscalls.MNT_DETACH)


def test_read_only_reaches_below_only_on_demand(launches: Launches, submount: Path) -> None:
    script = "touch /data/below/x && echo yes || echo no"
    assert launches.sh(script, mounts=(bind(submount, "ro"),)).split()[-1] == "yes"
    assert launches.sh(script, mounts=(bind(submount, "rro"),)).split()[-1] == "no"


@pytest.mark.parametrize(("word", "tag"), [("rprivate", ""), ("rslave", "master:"), ("rshared", "shared:")])
def test_propagation_is_as_asked(launches: Launches, data: Path, word: str, tag: str) -> None:
    line = launches.sh("grep ' /data ' /proc/self/mountinfo", mounts=(bind(data, word),))
    fields = line.split(" - ")[0].split()[6:]
    if word == "rslave":  # nothing to follow where the host itself shares nothing
        assert "shared:" not in line
    else:
        assert (not fields) if not tag else any(field.startswith(tag) for field in fields)


def test_what_is_mounted_inside_stays_inside(launches: Launches) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    child = launches.start(launches.config("sleep", "300"))
    assert Path("/proc/self/mountinfo").read_text() == before
    assert "overlay" in Path(f"/proc/{child.pid}/mountinfo").read_text()


def test_a_tmpfs_has_its_options_and_on_demand_what_was_there(launches: Launches) -> None:
    assert launches.sh("stat -f -c %b*%S /data; stat -c %a /data", mounts=(tmpfs("size=1m", "mode=700"),)).split() == [
        "256*4096",
        "700",
    ]
    copied = launches.sh(
        "ls -A /etc | wc -l; stat -c %a:%U /etc/shadow; readlink /etc/mtab; stat -c %a /etc",
        mounts=(tmpfs("tmpcopyup", at="/etc"),),
    )
    plain = launches.sh("ls -A /etc | wc -l; stat -c %a:%U /etc/shadow; readlink /etc/mtab; stat -c %a /etc")
    assert copied == plain


# Traps


@pytest.fixture
def bundle(launches: Launches, tmp_path: Path) -> Path:
    """A root directory of somebody's own making, with enough of the image bound in to run a shell."""
    root = tmp_path / "rootfs"
    root.mkdir()
    for name in ("bin", "lib", "lib64", "usr", "proc", "sys", "dev"):
        source = launches.layers[0] / name
        if source.is_symlink():
            (root / name).symlink_to(source.readlink())
        else:
            (root / name).mkdir()
    return tmp_path


def trapped(launches: Launches, bundle: Path, script: str, *mounts: MountPoint, **changes: Any) -> str:
    config = launches.config("/bin/sh", "-c", script, mounts=(bind(launches.layers[0] / "usr", at="/usr"), *mounts))
    config = replace(config, root=Root(path="rootfs"), **changes)
    return launches.output(config, Place(bundle=bundle, die_with_launcher=True)).strip()


def test_a_bundles_root_is_used_as_it_is(launches: Launches, bundle: Path) -> None:
    assert trapped(launches, bundle, "ls /; echo x > /made").split()[0] == "bin"
    assert (bundle / "rootfs/made").exists()


@pytest.mark.parametrize("link", ["/outside", "../../../../../../../outside"])
def test_a_link_leads_no_mount_out_of_the_root(launches: Launches, bundle: Path, data: Path, link: str) -> None:
    (bundle / "rootfs/data").symlink_to(link)
    assert trapped(launches, bundle, "cat /outside/file", bind(data)) == "hello"
    assert not Path("/outside").exists()


def test_a_link_to_nowhere_is_followed_inside(launches: Launches, bundle: Path, data: Path) -> None:
    (bundle / "rootfs/etc").mkdir()
    (bundle / "rootfs/etc/resolv.conf").symlink_to("../run/systemd/stub.conf")
    said = trapped(launches, bundle, "cat /run/systemd/stub.conf", bind(data / "file", at="/etc/resolv.conf"))
    assert said == "hello"


@pytest.mark.parametrize("name", ["proc", "sys", "dev"])
def test_the_kernels_own_file_systems_are_not_led_astray(launches: Launches, bundle: Path, name: str) -> None:
    (bundle / "rootfs" / name).rmdir()
    (bundle / "rootfs" / name).symlink_to("usr")
    with pytest.raises(TareError, match=f"/{name}"):
        trapped(launches, bundle, "true")


def test_a_link_through_the_parent_of_a_directory_stays_inside(launches: Launches, bundle: Path, data: Path) -> None:
    """While mounts are made the host's tree lies over the root, and `..` would lead there."""
    (bundle / "rootfs/etc").mkdir()
    (bundle / "rootfs/etc/place").symlink_to("..")
    name = f"tare-{data.name}"
    trapped(launches, bundle, f"cat /{name}/file", bind(data, at=f"/etc/place/{name}"))
    assert not Path("/", name).exists()


@pytest.mark.parametrize("pid", ["host", "private"])
@pytest.mark.parametrize("there", [True, False], ids=["existing", "missing"])
@pytest.mark.parametrize("magic", ["/proc/1/root", "/proc/self/root", "/proc/self/cwd", "/proc/thread-self/cwd"])
def test_a_magic_link_is_not_followed(
    launches: Launches, bundle: Path, tmp_path_factory: pytest.TempPathFactory, magic: str, there: bool, pid: str
) -> None:
    """They lead to the host: its first process's root, and the working directory of the child that mounts.

    The kernel may refuse to say what is written there, and the launch fails; or it is `/`, which means the root's own.
    """
    source, outside = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("outside") / "trap"
    (source / "file").write_text("hello\n")
    if there:
        outside.mkdir()
    (bundle / "rootfs/data").symlink_to(f"{magic}{outside}")
    mounts = (bind(launches.layers[0] / "usr", at="/usr"), bind(source))
    base = launches.config("/bin/sh", "-c", f"cat {outside}/file", pid=pid, mounts=mounts)
    try:
        said = launches.output(replace(base, root=Root(path="rootfs")), Place(bundle=bundle))
    except TareError as error:
        assert "/data" in str(error)  # noqa: PT017 - either will do
    else:
        assert said == "hello\n"
        assert (bundle / f"rootfs{outside}").is_dir()
    assert outside.exists() == there


@pytest.mark.parametrize("link", ["../../../../../etc/trap", "/proc/1/root/etc/trap"])
def test_own_files_are_not_put_outside_by_a_link(launches: Launches, link: str) -> None:
    place = launches.place(files=(("/etc/hosts", "mine\n"),))
    assert place.rootfs is not None
    upper = place.rootfs.instance / "upper"
    (upper / "etc").mkdir()
    (upper / "etc/hosts").symlink_to(link)
    launches.output(launches.config("/bin/sh", "-c", "true"), place)
    assert not Path("/etc/trap").exists()


@pytest.mark.parametrize("descriptor", range(3, 40, 4))
def test_no_descriptor_leads_out_as_a_working_directory(launches: Launches, descriptor: int) -> None:
    config = launches.config("/bin/sh", "-c", "true")
    assert config.process is not None
    process = replace(config.process, cwd=f"/proc/self/fd/{descriptor}")
    with pytest.raises(TareError, match=r"No such file|Not a directory"):
        launches.output(replace(config, process=process))


# What is hidden and locked


def test_a_read_only_root_is_and_its_mounts_are_not(launches: Launches) -> None:
    script = "touch /x 2>/dev/null || echo locked; touch /data/x /dev/shm/x && echo free"
    assert launches.sh(script, read_only=True, mounts=(tmpfs(),)).split() == ["locked", "free"]


def test_any_path_can_be_masked_or_locked(launches: Launches) -> None:
    script = "cat /etc/passwd; ls -A /etc/apt; touch /usr/x 2>/dev/null || echo locked; cat /absent 2>/dev/null; id -u"
    said = launches.sh(script, masked_paths=("/etc/passwd", "/etc/apt", "/absent"), readonly_paths=("/usr", "/absent"))
    assert said.split() == ["locked", "0"]


def test_devices_have_their_numbers_modes_and_owners(launches: Launches) -> None:
    base = launches.config("/bin/sh", "-c", "stat -c %F:%t:%T:%a:%u:%g /dev/one /dev/deep/two; ls -la /dev/null")
    devices = (
        Device(type="c", path="/dev/one", major=1, minor=5, file_mode=0o640, uid=3, gid=4),
        Device(type="p", path="/dev/deep/two", file_mode=0o600),
    )
    said = launches.output(replace(base, linux=replace(base.linux, devices=devices))).splitlines()
    assert said[0] == "character special file:1:5:640:3:4"
    assert said[1].startswith("fifo:0:0:600")
    assert said[2].startswith("crw-rw-rw-")


def test_a_device_of_another_kind_in_the_images_place_is_refused(launches: Launches, bundle: Path) -> None:
    os.mknod(bundle / "rootfs/dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    base = launches.config("/bin/sh", "-c", "true", mounts=(bind(launches.layers[0] / "usr", at="/usr"),))
    bare = tuple(mount for mount in base.mounts if not mount.destination.startswith("/dev"))
    with pytest.raises(TareError, match="/dev/null"):
        launches.output(replace(base, root=Root(path="rootfs"), mounts=bare), Place(bundle=bundle))


def test_parameters_are_set_inside_only(launches: Launches) -> None:
    name = "net.ipv4.ip_forward"
    before = Path("/proc/sys/net/ipv4/ip_forward").read_text()
    assert launches.sh(f"cat /proc/sys/{name.replace('.', '/')}", sysctls={name: "1"}) == "1"
    assert Path("/proc/sys/net/ipv4/ip_forward").read_text() == before


def test_own_files_are_put_over_the_images(launches: Launches) -> None:
    place = launches.place(files=(("/etc/hostname", "mine\n"), ("/etc/absent/file", "new\n")))
    config = launches.config("/bin/sh", "-c", "cat /etc/hostname /etc/absent/file; ls /dev | grep -c ^0 || true")
    assert launches.output(config, place).split() == ["mine", "new", "0"]


def test_many_layers_are_mounted_all_the_same(launches: Launches, tmp_path: Path) -> None:
    layers = []
    for number in range(100):
        layer = tmp_path / f"{'x' * 60}{number:03}"
        (layer / "layers").mkdir(parents=True)
        (layer / "layers" / str(number)).touch()
        layers.append(layer)
    place = launches.place()
    assert place.rootfs is not None
    many = replace(place, rootfs=replace(place.rootfs, layers=(*place.rootfs.layers, *layers)))
    assert launches.output(launches.config("/bin/sh", "-c", "ls /layers | wc -l"), many).strip() == "100"


def test_a_shared_root_passes_on_what_is_mounted_in_a_shared_bind(launches: Launches, tmp_path: Path) -> None:
    """And only that: what the container's own root is made of does not reach the host."""
    place = os.fsencode(tmp_path)
    syscalls.mount(b"tmpfs", place, b"tmpfs", 0, None)
    try:
        syscalls.mount(None, place, None, syscalls.MS_SHARED, None)
        (tmp_path / "inner").mkdir()
        config = launches.config(
            "/bin/sh",
            "-c",
            "mount -t tmpfs none /data/inner && touch /data/inner/file",
            mounts=(bind(tmp_path, "rshared"),),
            rootfs_propagation="shared",
            privileged=True,
        )
        before = Path("/proc/self/mountinfo").read_text().count("\n")
        launches.output(config)
        assert (tmp_path / "inner/file").exists()
        assert Path("/proc/self/mountinfo").read_text().count("\n") == before + 1
    finally:
        for target in (place + b"/inner", place):
            with suppress(OSError):
                syscalls.umount2(target, syscalls.MNT_DETACH)


def test_a_shared_root_takes_no_mount_from_the_host(launches: Launches, tmp_path: Path) -> None:
    """As on a host where all is shared: what the container leaves, it leaves to itself."""
    outer, inner = os.fsencode(tmp_path), os.fsencode(tmp_path / "inner")
    syscalls.mount(b"none", outer, b"tmpfs", 0, None)
    try:
        syscalls.mount(None, outer, None, syscalls.MS_SHARED, None)
        (tmp_path / "inner").mkdir()
        syscalls.mount(b"none", inner, b"tmpfs", 0, None)
        (tmp_path / "inner/file").touch()
        launches.sh("true", rootfs_propagation="shared")
        assert (tmp_path / "inner/file").exists()
    finally:
        for target in (inner, outer):
            with suppress(OSError):
                syscalls.umount2(target, syscalls.MNT_DETACH)


@pytest.mark.parametrize(
    ("word", "tag"), [("private", ""), ("slave", ""), ("shared", "shared:"), ("unbindable", "unb")]
)
def test_the_roots_propagation_is_as_asked(launches: Launches, word: str, tag: str) -> None:
    line = launches.sh("grep ' / / ' /proc/self/mountinfo", rootfs_propagation=word).splitlines()[-1]
    extra = line.split(" - ")[0].split()[6:]
    assert any(item.startswith(tag) for item in extra) if tag else extra == []
