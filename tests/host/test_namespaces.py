"""Namespaces of a container on a real kernel: made, joined, mapped. Needs root."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from runtime.cgroups.detect import open_cgroup
from runtime.container.config import Config, IdMapping, MountPoint, Namespace, Rlimit, TimeOffset
from runtime.container.options import IdRange
from runtime.errors import TareError
from runtime.ledger import new_id
from tests.conftest import skip_or_fail
from tests.launches import Launches

USERS = IdRange(host_id=200000, size=65536)
KINDS = ("mnt", "uts", "ipc", "pid", "net", "cgroup")


def identity(pid: int | str, name: str) -> str:
    return str(Path(f"/proc/{pid}/ns/{name}").readlink())


@pytest.fixture(scope="module")
def sleeper(launches: Launches) -> tuple[Config, int]:
    config = launches.config("sleep", "300", hostname="sleeper")
    return config, launches.start(config).pid


@pytest.mark.parametrize("name", KINDS)
def test_a_container_has_its_own(sleeper: tuple[Config, int], name: str) -> None:
    assert identity(sleeper[1], name) != identity("self", name)


@pytest.mark.parametrize(("option", "name"), [("network", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts")])
def test_the_hosts_is_shared_on_demand(launches: Launches, option: str, name: str) -> None:
    assert launches.sh(f"readlink /proc/self/ns/{name}", **{option: "host"}) == identity("self", name)


@pytest.mark.parametrize(("option", "name"), [("network", "net"), ("pid", "pid"), ("ipc", "ipc"), ("uts", "uts")])
def test_anothers_is_joined_by_its_path(
    launches: Launches, sleeper: tuple[Config, int], option: str, name: str
) -> None:
    path = f"/proc/{sleeper[1]}/ns/{name}"
    assert launches.sh(f"readlink /proc/self/ns/{name}", **{option: path}) == identity(sleeper[1], name)
    mine = identity("self", name)
    assert identity(launches.start(launches.config("sleep", "300")).pid, name) not in (mine, identity(sleeper[1], name))


def test_a_namespace_that_is_not_there_is_named_and_the_launcher_stays_where_it_was(launches: Launches) -> None:
    with pytest.raises(TareError, match="/proc/absent"):
        launches.sh("true", network="/proc/absent")
    assert launches.sh("readlink /proc/self/ns/uts", uts="host") == identity("self", "uts")


def test_in_a_joined_pid_namespace_the_others_are_seen(launches: Launches, sleeper: tuple[Config, int]) -> None:
    assert "sleep" in launches.sh("cat /proc/1/comm", pid=f"/proc/{sleeper[1]}/ns/pid")


def test_the_clock_has_its_offset(launches: Launches) -> None:
    if not Path("/proc/self/timens_offsets").exists():
        skip_or_fail("no time namespaces")
    offsets = {"monotonic": TimeOffset(secs=1_000_000), "boottime": TimeOffset(secs=1_000_000)}
    uptime_s = float(launches.sh("cat /proc/uptime", time_offsets=offsets).split()[0])
    assert uptime_s > 1_000_000


def test_a_further_process_is_in_every_namespace_of_its_container(
    launches: Launches, sleeper: tuple[Config, int]
) -> None:
    config, pid = sleeper
    child = next(child for child in launches._children if child.pid == pid)
    names = " ".join(f"/proc/self/ns/{name}" for name in KINDS)
    seen = launches.exec(config, child, "/bin/sh", "-c", f"for name in {names}; do readlink $name; done").split()
    assert seen == [identity(pid, name) for name in KINDS]
    status = launches.exec(config, child, "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["CapEff"], fields["Seccomp"]) == ("00000000a80425fb", "2")
    assert launches.exec(config, child, "hostname") == "sleeper"


# User namespaces


def mapped(launches: Launches, script: str, **options: object) -> str:
    try:
        return launches.sh(script, id_range=USERS, **options)
    except TareError as error:
        if "cannot map owners" in str(error):
            skip_or_fail(str(error))
        raise


def test_root_inside_is_not_root_outside(launches: Launches) -> None:
    child = launches.start(launches.config("sleep", "300", id_range=USERS))
    status = Path(f"/proc/{child.pid}/status").read_text()
    assert f"Uid:\t{USERS.host_id}\t" in status
    assert Path(f"/proc/{child.pid}/uid_map").read_text().split() == ["0", str(USERS.host_id), str(USERS.size)]
    assert Path(f"/proc/{child.pid}/gid_map").read_text().split() == ["0", str(USERS.host_id), str(USERS.size)]
    assert identity(child.pid, "user") != identity("self", "user")


def test_it_sees_itself_and_the_image_as_roots(launches: Launches) -> None:
    assert mapped(launches, "id -u; stat -c %u:%g / /etc/passwd /bin/sh /dev /proc/self/ /dev/pts").split() == [
        "0",
        *["0:0"] * 6,
    ]


def test_what_it_writes_lies_on_disk_with_its_own_ids(launches: Launches) -> None:
    config = launches.config("/bin/sh", "-c", "echo x > /root/new; chown 7:8 /root/new; rm /etc/motd", id_range=USERS)
    place = launches.place()
    launches.output(config, place)
    assert place.rootfs is not None
    found = (place.rootfs.instance / "upper/root/new").stat()
    assert (found.st_uid, found.st_gid) == (7, 8)


def test_it_is_confined_like_any_other(launches: Launches) -> None:
    status = mapped(launches, "cat /proc/self/status", no_new_privileges=True)
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert (fields["CapEff"], fields["NoNewPrivs"], fields["Seccomp"]) == ("00000000a80425fb", "1", "2")


def test_devices_are_the_hosts_and_usable(launches: Launches) -> None:
    assert mapped(launches, "head -c 3 /dev/zero | wc -c; echo x > /dev/null; ls -l /dev/null").split()[0] == "3"


def test_its_parameters_are_its_own(launches: Launches) -> None:
    value = mapped(launches, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start")
    assert value == "0"
    assert Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text().strip() == "1024"


def test_a_bind_shows_the_hosts_owners_or_on_demand_shifted_ones(launches: Launches, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    tmp_path.chmod(0o700)

    def owners(*words: str) -> str:
        mount = MountPoint(destination="/data", type="bind", source=str(tmp_path), options=("rbind", *words))
        return mapped(launches, "stat -c %u /data", mounts=(mount,))

    assert owners() == "65534"
    assert owners("idmap") == "0"


def test_a_bind_may_have_maps_of_its_own_without_a_user_namespace(launches: Launches, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    ids = (IdMapping(container_id=0, host_id=4321, size=10),)
    mount = MountPoint(
        destination="/data", type="bind", source=str(tmp_path), options=("bind",), uid_mappings=ids, gid_mappings=ids
    )
    try:
        assert launches.sh("stat -c %u:%g /data", mounts=(mount,)) == "4321:4321"
    except TareError as error:
        if "cannot map owners" in str(error):
            skip_or_fail(str(error))
        raise


def test_a_file_system_that_cannot_shift_owners_is_named(launches: Launches) -> None:
    mount = MountPoint(destination="/data", type="bind", source="/proc", options=("bind", "idmap"))
    with pytest.raises(TareError, match="/proc: this kernel or its file system cannot map owners"):
        launches.sh("true", id_range=USERS, mounts=(mount,))


def test_limits_and_the_oom_score_are_set_for_it(launches: Launches) -> None:
    limits = (Rlimit(type="RLIMIT_NOFILE", soft=1000, hard=1001),)
    said = mapped(launches, "ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj", rlimits=limits, oom_score_adj=9)
    assert said.split() == ["1000", "1001", "9"]


def test_a_further_process_is_roots_there_too(launches: Launches) -> None:
    config = launches.config("sleep", "300", id_range=USERS)
    child = launches.start(config)
    assert launches.exec(config, child, "/bin/sh", "-c", "id -u; readlink /proc/self/ns/user").split() == [
        "0",
        identity(child.pid, "user"),
    ]


def test_files_put_over_the_images_are_roots_there(launches: Launches) -> None:
    config = launches.config("/bin/sh", "-c", "stat -c %u /etc/hosts; echo more >> /etc/hosts", id_range=USERS)
    assert launches.output(config, launches.place(files=(("/etc/hosts", "127.0.0.1 x\n"),))).split() == ["0"]


def test_it_enters_and_sees_its_control_group(launches: Launches) -> None:
    group = open_cgroup(new_id())
    group.create()
    try:
        place = launches.place(
            join_files=group.join_files(), cgroup=group.clone_into(), cgroup_mounts=group.mounts_inside()
        )
        script = "cat /proc/self/cgroup; ls /sys/fs/cgroup; mkdir /sys/fs/cgroup/x 2>/dev/null || echo locked"
        config = launches.config("/bin/sh", "-c", script, id_range=USERS)
        said = launches.output(config, place)
        assert group.id not in said
        assert said.endswith("locked\n")
        child = launches.start(
            launches.config("sleep", "300", id_range=USERS), replace(place, rootfs=launches.place().rootfs)
        )
        assert group.pids() == (child.pid,)
    finally:
        group.remove()


def test_a_user_namespace_is_joined_by_its_path(launches: Launches) -> None:
    first = launches.start(launches.config("sleep", "300", id_range=USERS))
    base = launches.config("/bin/sh", "-c", "id -u; readlink /proc/self/ns/user /proc/self/ns/net", id_range=USERS)
    joined = tuple(
        Namespace(type=item.type, path=f"/proc/{first.pid}/ns/user") if item.type == "user" else item
        for item in base.linux.namespaces
    )
    said = launches.output(replace(base, linux=replace(base.linux, namespaces=joined))).split()
    assert said[:2] == ["0", identity(first.pid, "user")]
    assert said[2] != identity(first.pid, "net")


def test_maps_the_kernel_refuses_are_named_and_nothing_remains(launches: Launches) -> None:
    base = launches.config("true", id_range=USERS)
    bad = (IdMapping(container_id=0, host_id=1, size=5), IdMapping(container_id=3, host_id=50, size=5))
    process = launches.client._process
    assert process is not None
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    before = children.read_text().split()
    with pytest.raises(TareError, match="uid_map"):
        launches.start(replace(base, linux=replace(base.linux, uid_mappings=bad)))
    assert not set(children.read_text().split()) - set(before)
