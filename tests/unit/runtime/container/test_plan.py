"""Plans: what a container and the baseline are made of, and in which order. No root."""

from __future__ import annotations

import marshal
from pathlib import Path

import pytest

from runtime.container.plan import (
    CAPABILITIES,
    Bind,
    HostFacts,
    Part,
    Plan,
    Program,
    Rootfs,
    image_plan,
    native_plan,
)
from runtime.container.steps import (
    Confine,
    DieWithParent,
    Execute,
    LeaveHost,
    LoopbackUp,
    Mount,
    NewFile,
    PivotRoot,
    Step,
    Unshare,
    Write,
    from_row,
)
from runtime.linux.syscalls import CLONE_NEWNET, CLONE_NEWNS, MS_NODEV, MS_RDONLY

FACTS = HostFacts(
    masked_files=("/proc/keys",),
    masked_directories=("/proc/acpi",),
    read_only=("/proc/sys",),
    last_capability=40,
)
ROOTFS = Rootfs((Path("/l/1"), Path("/l/2")), Path("/i/tare-0"))
TRUE = Program(("/bin/true",))


def container(**options: object) -> Plan:
    return image_plan(ROOTFS, TRUE, FACTS, hostname="tare-0", **options)  # type: ignore[arg-type]


def position(plan: Plan, kind: type[Step], number: int = 0) -> int:
    return [at for at, step in enumerate(plan.steps) if isinstance(step, kind)][number]


def mounts(plan: Plan) -> dict[str, Mount]:
    return {step.target.decode(): step for step in plan.steps if isinstance(step, Mount)}


def test_the_cgroup_comes_first_and_its_namespace_after_it() -> None:
    plan = container(join_files=[Path("/c/memory/tasks"), Path("/c/cpu/tasks")])
    assert plan.steps[:3] == (Write(b"/c/memory/tasks", b"0"), Write(b"/c/cpu/tasks", b"0"), Unshare(0x2000000))


def test_on_v2_it_is_born_in_its_cgroup() -> None:
    plan = container(cgroup=Path("/c/tare/tare-0"), cgroup_mounts=[("", "")])
    assert plan.cgroup == "/c/tare/tare-0"
    assert not any(isinstance(step, Write) for step in plan.steps)
    assert mounts(plan)["/sys/fs/cgroup"].filesystem == b"cgroup2"


def test_topmost_layer_is_named_first_and_odd_paths_are_escaped() -> None:
    overlay = ROOTFS.overlay()
    assert overlay.data == b"lowerdir=/l/2:/l/1,upperdir=/i/tare-0/upper,workdir=/i/tare-0/work"
    odd = Rootfs((Path("/a:b,c\\d"),), Path("/i")).overlay()
    assert odd.data is not None
    assert odd.data.startswith(b"lowerdir=/a\\:b\\,c\\\\d,")


def test_nothing_is_mounted_in_the_image_before_the_root_is_its_own() -> None:
    plan = container()
    before = [step for step in plan.steps[: position(plan, PivotRoot)] if isinstance(step, Mount)]
    assert [step.target for step in before] == [b"/", b"/i/tare-0/upper"]


def test_host_paths_are_only_used_while_the_host_is_there() -> None:
    plan = container(binds=[Bind(Path("/srv/data"), "/data", read_only=True)])
    leave = position(plan, LeaveHost)
    relative = [
        at
        for at, step in enumerate(plan.steps)
        if isinstance(step, Mount) and step.filesystem is None and step.source and not step.source.startswith(b"/")
    ]
    assert relative
    assert all(position(plan, PivotRoot) < at < leave for at in relative)
    assert mounts(plan)["/data"].flags & MS_RDONLY


def test_proc_is_masked_with_the_hosts_null_and_sys_is_read_only() -> None:
    found = mounts(container())
    assert found["/proc/keys"].source == b"dev/null"
    assert found["/proc/acpi"].flags & MS_RDONLY
    assert found["/sys"].flags & MS_RDONLY


def test_confinement_is_the_last_thing_before_the_program() -> None:
    plan = container(seccomp=b"\0" * 8)
    assert [type(step) for step in plan.steps[-3:]] == [Confine, DieWithParent, Execute]
    confine = plan.steps[-3]
    assert isinstance(confine, Confine)
    assert confine.no_new_privileges
    assert set(confine.dropped) == set(range(41)) - set(CAPABILITIES.values())
    assert 21 in confine.dropped  # CAP_SYS_ADMIN


def test_without_a_device_guard_no_device_can_be_made_or_opened() -> None:
    plan = container(devices_guarded=False)
    confine = next(step for step in plan.steps if isinstance(step, Confine))
    assert CAPABILITIES["CAP_MKNOD"] in confine.dropped
    assert not confine.kept & 1 << CAPABILITIES["CAP_MKNOD"]
    assert mounts(plan)["/i/tare-0/upper"].flags & MS_NODEV
    assert not mounts(container())["/i/tare-0/upper"].flags & MS_NODEV


def test_a_container_may_outlive_its_launcher() -> None:
    assert not any(isinstance(step, DieWithParent) for step in container(die_with_launcher=False).steps)


def test_the_hosts_network_is_shared_only_on_demand() -> None:
    assert container().namespaces & CLONE_NEWNET
    shared = container(own_network=False)
    assert not shared.namespaces & CLONE_NEWNET
    assert not any(isinstance(step, LoopbackUp) for step in shared.steps)


def test_v1_hierarchies_are_shown_read_only() -> None:
    found = mounts(container(cgroup_mounts=[("cpu,cpuacct", "cpu,cpuacct")]))
    assert found["/sys/fs/cgroup/cpu,cpuacct"].data == b"cpu,cpuacct"
    assert found["/sys/fs/cgroup/cpu,cpuacct"].flags & MS_RDONLY


def test_a_program_is_looked_for_along_the_path_of_its_environment() -> None:
    step = Program(("sh", "-c", "x"), (("PATH", "/a::/b"),)).step()
    assert step.paths == (b"/a/sh", b"./sh", b"/b/sh")
    assert dict(step.env)[b"HOME"] == b"/root"
    assert Program(("./sh",)).step().paths == (b"./sh",)


def test_native_binds_the_image_read_only_and_writes_to_plain_directories() -> None:
    plan = native_plan(Path("/l/1"), Path("/i/tare-0"), TRUE, scratch=["/tmp"])
    assert plan.namespaces == CLONE_NEWNS
    image, remount = [step for step in plan.steps if isinstance(step, Mount)][1:3]
    assert image.source == b"/l/1"
    assert remount.flags & MS_RDONLY
    assert mounts(plan)["/tmp"].source == b"i/tare-0/scratch/tmp"


def test_native_is_not_confined() -> None:
    plan = native_plan(Path("/l/1"), Path("/i/tare-0"), TRUE, scratch=[])
    assert not any(isinstance(step, Confine | Write | Unshare) for step in plan.steps)


def test_a_plan_prints_a_line_a_step_and_fits_one_message() -> None:
    plan = container(cgroup=Path("/c"))
    assert len(plan.describe().splitlines()) == 1 + len(plan.steps)
    token, namespaces, cgroup, streams, *_, parts = marshal.loads(plan.encode(7))
    assert (token, namespaces, cgroup, streams) == (7, plan.namespaces, "/c", ())
    rows = [row for part in parts for row in (marshal.loads(part) if isinstance(part, bytes) else part)]
    assert tuple(from_row(row) for row in rows) == plan.steps


def test_what_containers_share_travels_as_the_same_bytes() -> None:
    first, second = container(), image_plan(ROOTFS, TRUE, FACTS, hostname="tare-1")
    shared = {id(part) for part in first.parts if isinstance(part, Part)}
    assert shared == {id(part) for part in second.parts if isinstance(part, Part)}
    assert sum(len(part.steps) for part in first.parts if isinstance(part, Part)) > len(first.steps) / 2


def test_own_files_are_bound_over_the_images_and_hidden_by_dev() -> None:
    plan = container(files=[("/etc/hosts", "127.0.0.1 x")])
    made = position(plan, NewFile)
    bind = plan.steps[made + 1]
    assert isinstance(bind, Mount)
    assert (bind.source, bind.target, bind.file) == (b"/dev/0", b"/etc/hosts", True)
    assert [step.target for step in plan.steps[made:] if isinstance(step, Mount)].count(b"/dev") == 1


def test_facts_are_what_the_host_has(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/cap_last_cap").write_text("40\n")
    (tmp_path / "proc/acpi").mkdir()
    (tmp_path / "proc/keys").touch()
    facts = HostFacts.gather(tmp_path)
    assert facts == FACTS


@pytest.mark.parametrize("read_only", [False, True])
def test_a_read_only_bind_is_remounted(read_only: bool) -> None:
    steps = list(Bind(Path("/srv"), "/data", read_only).steps())
    assert len(steps) == 1 + read_only
