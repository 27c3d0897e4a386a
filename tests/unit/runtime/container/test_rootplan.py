"""What a container sees of files, as steps. No root."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runtime.container import defaults
from runtime.container.config import Config, Device, IdMapping, MountPoint
from runtime.container.furnishing import Device as DeviceNode
from runtime.container.furnishing import Directory, Ensure, Link, Mask, ReadOnly, Unmount
from runtime.container.mounting import QUIET, Attach, Mount
from runtime.container.options import IdRange, Options
from runtime.container.outside import Tree
from runtime.container.rootplan import KnownPaths, RootPlan
from runtime.container.stepping import Step
from runtime.container.steps import Write
from runtime.errors import UsageError
from runtime.linux.syscalls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_RDONLY,
    MS_REC,
)

KNOWN = KnownPaths(
    files=frozenset({"/proc/keys"}),
    directories=frozenset({"/proc/acpi", "/proc/sys"}),
    all=frozenset({"/proc/keys", "/proc/acpi", "/proc/scsi", "/proc/sys", "/proc/bus"}),
)


def config(**options: Any) -> Config:
    return defaults.build({}, Options(argv=("/bin/true",), **options))


def plan(configuration: Config, **options: Any) -> RootPlan:
    return RootPlan(config=configuration, bundle="/b", known=KNOWN, **options)


def steps(configuration: Config, **options: Any) -> list[Step]:
    return list(plan(configuration, **options).steps())


def at(made: list[Step], target: str) -> Step:
    there = [step for step in made if place(step) == target.encode()]
    return next((step for step in there if not isinstance(step, Directory)), there[0])


def place(step: Step) -> object:
    return getattr(step, "target", None) or getattr(step, "path", None)


def mount(destination: str, *options: str, **fields: Any) -> MountPoint:
    return MountPoint(destination=destination, options=options, **fields)


def bound(mount_point: MountPoint, **options: Any) -> tuple[Attach, list[Tree]]:
    planned = plan(config(mounts=(mount_point,), **options))
    step = at(list(planned.steps()), mount_point.destination)
    assert isinstance(step, Attach)
    return step, planned.trees


def test_what_the_kernel_mounts_itself_must_be_in_its_place() -> None:
    made = steps(config())
    for target in ("/proc", "/sys", "/dev"):
        step = at(made, target)
        assert isinstance(step, Attach)
        assert step.strict


def test_below_the_kernels_own_no_image_is_feared() -> None:
    assert isinstance(at(steps(config()), "/dev/shm"), Mount)
    assert isinstance(at(steps(config(mounts=(mount("/data", type="tmpfs", source="x"),))), "/data"), Attach)


def test_a_bind_is_looked_up_on_the_host_and_its_options_are_the_mounts() -> None:
    step, trees = bound(mount("/data", "rbind", "ro", "nodev", "rprivate", type="bind", source="/srv/data"))
    assert (step.source, step.flags, step.filesystem) == (b"srv/data", MS_BIND | MS_REC, None)
    assert step.attributes == (MOUNT_ATTR_RDONLY | MOUNT_ATTR_NODEV, 0, 0, 0)
    assert step.propagation == (MS_PRIVATE | MS_REC,)
    assert trees == []


def test_a_relative_source_is_the_bundles() -> None:
    assert bound(mount("/data", type="bind", source="files"))[0].source == b"b/files"


def test_in_a_user_namespace_sources_come_as_trees() -> None:
    step, trees = bound(mount("/data", "rbind", type="bind", source="/srv"), id_range=IdRange(host_id=100000))
    assert step.tree == 0
    assert trees[0] == Tree(b"/srv", recursive=True)


def test_owners_are_shifted_on_demand_by_given_maps_or_the_containers() -> None:
    _, trees = bound(mount("/data", "idmap", type="bind", source="/srv"), id_range=IdRange(host_id=100000))
    assert (trees[0].mapped, trees[0].uid_map) == (True, b"")
    ids = (IdMapping(container_id=0, host_id=5, size=1),)
    _, trees = bound(mount("/data", type="bind", source="/srv", uid_mappings=ids, gid_mappings=ids))
    assert (trees[0].mapped, trees[0].uid_map, trees[0].gid_map) == (True, b"0 5 1\n", b"0 5 1\n")


def test_owners_cannot_be_shifted_to_nobody() -> None:
    with pytest.raises(UsageError, match=r"mounts\[\d+\].options"):
        bound(mount("/data", "idmap", type="bind", source="/srv"))


def test_devices_are_made_or_in_a_user_namespace_the_hosts_shown() -> None:
    extra = Device(type="b", path="/dev/disk", major=254, minor=1, file_mode=0o640, gid=6)
    base = config()
    made = steps(replace(base, linux=replace(base.linux, devices=(extra,))))
    assert at(made, "/dev/null") == DeviceNode(b"/dev/null", 0o20666, 1, 3)
    assert at(made, "/dev/disk") == DeviceNode(b"/dev/disk", 0o60640, 254, 1, 0, 6)
    shown = at(steps(config(id_range=IdRange(host_id=100000))), "/dev/null")
    assert (getattr(shown, "source", None), getattr(shown, "flags", None)) == (b"dev/null", MS_BIND)


def test_a_configuration_may_give_a_usual_device_its_own_way() -> None:
    base = config()
    own = Device(type="c", path="/dev/null", major=1, minor=3, file_mode=0o600)
    made = steps(replace(base, linux=replace(base.linux, devices=(own,))))
    assert [step.mode for step in made if isinstance(step, DeviceNode) and step.path == b"/dev/null"] == [0o20600]


def test_the_hosts_dev_gets_no_devices() -> None:
    made = steps(config(mounts=(mount("/dev", "rbind", type="bind", source="/dev"),)))
    assert not any(isinstance(step, DeviceNode | Link) for step in made)


def test_without_a_dev_of_its_own_the_images_is_used_if_it_is_one() -> None:
    base = config()
    made = steps(replace(base, mounts=tuple(item for item in base.mounts if not item.destination.startswith("/dev"))))
    assert at(made, "/dev") == Ensure(b"/dev")


def test_files_are_not_left_in_the_images_dev() -> None:
    base = config()
    bare = replace(base, mounts=())
    assert Unmount(b"/dev") in list(plan(bare).files((("/etc/hosts", "x"),)))
    assert Unmount(b"/dev") not in list(plan(base).files((("/etc/hosts", "x"),)))


def test_what_this_host_lacks_is_not_looked_for_and_what_it_may_have_is() -> None:
    base = config(
        masked_paths=("/proc/keys", "/proc/acpi", "/proc/scsi", "/secret"), readonly_paths=("/proc/bus", "/x")
    )
    made = steps(base)
    assert at(made, "/proc/keys") == Mount(b"/dev/null", b"/proc/keys", None, MS_BIND)
    assert at(made, "/secret") == Mask(b"/secret")
    assert at(made, "/x") == ReadOnly(b"/x", 0)
    assert not any(
        getattr(step, "path", getattr(step, "target", b"")) in (b"/proc/scsi", b"/proc/bus") for step in made
    )


def test_one_empty_directory_hides_all_of_the_kernels() -> None:
    made = steps(config(masked_paths=("/proc/acpi", "/proc/sys")))
    assert at(made, "/proc/acpi") == Mount(b"tmpfs", b"/proc/acpi", b"tmpfs", QUIET | MS_RDONLY, b"size=0k")
    assert at(made, "/proc/sys") == Mount(b"/proc/acpi", b"/proc/sys", None, MS_BIND)


@pytest.mark.parametrize("changes", ["user", "device", "dev"])
def test_files_are_hidden_behind_the_hosts_null_where_the_own_one_may_be_something_else(changes: str) -> None:
    base = config(id_range=IdRange(host_id=100000)) if changes == "user" else config()
    if changes == "device":
        own = Device(type="c", path="/dev//null", major=1, minor=5)
        base = replace(base, linux=replace(base.linux, devices=(own,)))
    if changes == "dev":
        base = replace(base, mounts=tuple(mount for mount in base.mounts if mount.destination != "/dev"))
    assert at(steps(base), "/proc/keys") == Mask(b"/proc/keys")


def test_without_a_proc_of_its_own_nothing_about_it_is_known() -> None:
    base = config(masked_paths=("/proc/scsi",))
    made = steps(replace(base, mounts=()))
    assert at(made, "/proc/scsi") == Mask(b"/proc/scsi")


def test_parameters_go_through_the_hosts_proc() -> None:
    made = steps(config(sysctls={"net.ipv4.conf.eth0/1.forwarding": "1"}))
    assert Write(b"proc/sys/net/ipv4/conf/eth0.1/forwarding", b"1") in made


def test_v1_hierarchies_are_shown_read_only() -> None:
    made = steps(config(), cgroup_mounts=(("cpu,cpuacct", "cpu,cpuacct"),))
    step = at(made, "/sys/fs/cgroup/cpu,cpuacct")
    assert isinstance(step, Mount)
    assert step.data == b"cpu,cpuacct"
    assert step.flags & MS_RDONLY


@pytest.mark.parametrize("mounts", [(("", ""),), (("cpu", "cpu"),)], ids=["v2", "v1"])
def test_no_link_of_an_image_leads_control_groups_away(mounts: tuple[tuple[str, str], ...]) -> None:
    base = config()
    assert not isinstance(at(steps(base, cgroup_mounts=mounts), "/sys/fs/cgroup"), Attach)
    without = replace(base, mounts=tuple(mount for mount in base.mounts if mount.destination != "/sys"))
    step = at(steps(without, cgroup_mounts=mounts), "/sys/fs/cgroup")
    assert isinstance(step, Attach)
    assert step.strict


def test_without_a_cgroup_namespace_v1_shows_the_containers_own_directories_locked_as_asked() -> None:
    own = (("/sys/fs/cgroup/cpu,cpuacct/tare/a", "cpu,cpuacct"),)
    made = steps(config(cgroupns="host"), cgroup_mounts=(("cpu,cpuacct", "cpu,cpuacct"),), cgroup_directories=own)
    inside = [step for step in made if place(step) == b"/sys/fs/cgroup/cpu,cpuacct" and isinstance(step, Mount)]
    assert [step.source for step in inside] == [b"sys/fs/cgroup/cpu,cpuacct/tare/a", None]
    assert inside[1].flags & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC) == (
        MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
    )


def test_without_a_cgroup_namespace_the_hosts_tree_is_shown() -> None:
    step = at(steps(config(cgroupns="host"), cgroup_mounts=(("", ""),)), "/sys/fs/cgroup")
    assert isinstance(step, Attach)
    assert (step.source, step.attributes) == (b"sys/fs/cgroup", (0, 0, MOUNT_ATTR_RDONLY, 0))


def test_a_group_that_is_nobody_inside_is_left_out_of_devpts() -> None:
    def data(size: int) -> bytes:
        step = at(steps(config(id_range=IdRange(host_id=100000, size=size))), "/dev/pts")
        assert isinstance(step, Mount)
        return step.data or b""

    assert b"gid=5" in data(6)
    assert b"gid" not in data(5)
