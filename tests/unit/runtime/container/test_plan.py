"""Plans: what a container, a further process in it, and the baseline are made of, and in which order. No root."""

from __future__ import annotations

import marshal
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from runtime.container import defaults
from runtime.container.becoming import (
    BecomeRoot,
    Confine,
    DieWithParent,
    Execute,
    Find,
    ResourceLimit,
    Terminal,
    Undumpable,
)
from runtime.container.config import Config, Hook, Hooks, IdMapping, MountPoint, Namespace, Rlimit, Root, TimeOffset
from runtime.container.furnishing import NewFile, ReadOnlyRoot
from runtime.container.mounting import Attach, AttachRoot, Cover, LeaveHost, Mount, Overlay, PivotRoot, PrivateParent
from runtime.container.options import IdRange, Options
from runtime.container.outside import Outside
from runtime.container.plan import (
    HostFacts,
    Part,
    Place,
    Plan,
    Program,
    Rootfs,
    Template,
    container_plan,
    exec_plan,
    native_plan,
)
from runtime.container.stepping import Step
from runtime.container.steps import (
    EnterTime,
    Hold,
    Hostname,
    JoinNamespaces,
    LoopbackUp,
    OpenHold,
    RunHook,
    Unshare,
    WaitForParent,
    Write,
    from_row,
)
from runtime.errors import TareError, UsageError
from runtime.ledger import process_start
from runtime.linux import capabilities
from runtime.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    MS_NODEV,
    MS_RDONLY,
    MS_SHARED,
)

FACTS = HostFacts(
    masked_files=("/proc/keys",),
    masked_directories=("/proc/acpi",),
    read_only=("/proc/sys",),
    last_capability=40,
)
ROOTFS = Rootfs((Path("/l/1"), Path("/l/2")), Path("/i/tare-0"))
PLACE = Place(rootfs=ROOTFS)
TRUE = Program(("/bin/true",))


def config(**options: Any) -> Config:
    return defaults.build({}, Options(argv=("/bin/true",), hostname="tare-0", **options))


def container(configuration: Config | None = None, seccomp: bytes | None = None, **place: Any) -> Plan:
    return container_plan(configuration or config(), replace(PLACE, **place), FACTS, seccomp=seccomp)


def changed(**linux: Any) -> Config:
    base = config()
    return replace(base, linux=replace(base.linux, **linux))


def position(plan: Plan, kind: type[Step], number: int = 0) -> int:
    return [at for at, step in enumerate(plan.steps) if isinstance(step, kind)][number]


def mounts(plan: Plan) -> dict[str, Mount | Attach]:
    return {step.target.decode(): step for step in plan.steps if isinstance(step, Mount | Attach)}


def found(plan: Plan, kind: type[Step]) -> bool:
    return any(isinstance(step, kind) for step in plan.steps)


def test_the_cgroup_comes_first_and_its_namespace_after_it() -> None:
    plan = container(join_files=(Path("/c/memory/tasks"), Path("/c/cpu/tasks")))
    assert plan.steps[:3] == (Write(b"/c/memory/tasks", b"0"), Write(b"/c/cpu/tasks", b"0"), Unshare(CLONE_NEWCGROUP))


def test_on_v2_it_is_born_in_its_cgroup() -> None:
    plan = container(cgroup=Path("/c/tare/tare-0"), cgroup_mounts=(("", ""),))
    assert plan.cgroup == "/c/tare/tare-0"
    assert not any(isinstance(step, Write) and step.text == b"0" for step in plan.steps[:3])
    assert mounts(plan)["/sys/fs/cgroup"].filesystem == b"cgroup2"


def test_topmost_layer_is_named_first() -> None:
    options = b"redirect_dir=off,lowerdir=/l/2:/l/1,upperdir=/i/tare-0/upper,workdir=/i/tare-0/work"
    assert mounts(container())["/i/tare-0/upper"] == Mount(b"overlay", b"/i/tare-0/upper", b"overlay", 0, options)


def test_too_many_layers_for_a_page_of_options_are_mounted_otherwise() -> None:
    layers = tuple(Path(f"/l/{'x' * 60}{number}") for number in range(100))
    plan = container(rootfs=Rootfs(layers, Path("/i/tare-0")))
    assert found(plan, Overlay)


def test_nothing_is_mounted_in_the_image_before_the_root_is_its_own() -> None:
    plan = container()
    before = [step for step in plan.steps[: position(plan, PivotRoot)] if isinstance(step, Mount | Attach)]
    assert [step.target for step in before] == [b"/", b"/i/tare-0/upper"]


def test_a_bundles_root_is_mounted_on_itself() -> None:
    plan = container(replace(config(), root=Root(path="rootfs")), rootfs=None, bundle=Path("/b"))
    before = [step for step in plan.steps[: position(plan, PivotRoot)] if isinstance(step, Mount)]
    assert (before[-1].source, before[-1].target) == (b"/b/rootfs", b"/b/rootfs")


def test_host_paths_are_only_used_while_the_host_is_there() -> None:
    plan = container(config(mounts=(MountPoint(destination="/data", type="bind", source="/srv"),)))
    leave = position(plan, LeaveHost)
    relative = [
        at
        for at, step in enumerate(plan.steps)
        if isinstance(step, Mount | Attach) and not step.filesystem and step.source and not step.source.startswith(b"/")
    ]
    assert relative
    assert all(position(plan, PivotRoot) < at < leave for at in relative)


def test_what_the_launcher_has_given_up_is_not_dropped_again() -> None:
    facts = replace(FACTS, given_up=capabilities.BEYOND_DEFAULT)
    plan = container_plan(config(cap_drop=("CHOWN",)), PLACE, facts, seccomp=None)
    confine = next(step for step in plan.steps if isinstance(step, Confine))
    assert confine.dropped == (capabilities.NUMBERS["CAP_CHOWN"],)


def test_a_capability_that_the_launcher_has_given_up_is_refused_by_name() -> None:
    facts = replace(FACTS, given_up=capabilities.BEYOND_DEFAULT)
    with pytest.raises(TareError, match="capability CAP_NET_ADMIN: whoever launches has given it up"):
        container_plan(config(cap_add=("NET_ADMIN",)), PLACE, facts, seccomp=None)


def test_a_user_namespace_has_its_own_bounds() -> None:
    facts = replace(FACTS, given_up=capabilities.BEYOND_DEFAULT)
    plan = container_plan(config(id_range=IdRange(host_id=100000)), PLACE, facts, seccomp=None)
    confine = next(step for step in plan.steps if isinstance(step, Confine))
    assert set(confine.dropped) == capabilities.BEYOND_DEFAULT


def test_proc_is_masked_with_a_null_device_and_sys_is_read_only() -> None:
    there = mounts(container())
    assert there["/proc/keys"].source == b"/dev/null"
    assert there["/proc/acpi"].flags & MS_RDONLY
    assert there["/sys"].flags & MS_RDONLY


def test_confinement_is_the_last_thing_before_the_program() -> None:
    plan = container(config(no_new_privileges=True), seccomp=b"\0" * 8, die_with_launcher=True)
    assert [type(step) for step in plan.steps[-3:]] == [Confine, DieWithParent, Execute]
    confine = plan.steps[-3]
    assert isinstance(confine, Confine)
    assert confine.no_new_privileges
    assert set(confine.dropped) == set(range(41)) - capabilities.numbers(capabilities.DEFAULT)
    assert 21 in confine.dropped  # CAP_SYS_ADMIN


def test_without_a_device_guard_no_device_can_be_made_or_opened() -> None:
    plan = container(devices_guarded=False)
    confine = next(step for step in plan.steps if isinstance(step, Confine))
    mknod = capabilities.NUMBERS["CAP_MKNOD"]
    assert mknod in confine.dropped
    assert confine.sets is not None
    assert not any(mask & 1 << mknod for mask in confine.sets)
    assert mounts(plan)["/i/tare-0/upper"].flags & MS_NODEV


def test_a_container_outlives_its_launcher_unless_it_is_to_die_with_it() -> None:
    assert not found(container(), DieWithParent)


def test_the_hosts_network_is_shared_only_on_demand() -> None:
    assert container().namespaces & CLONE_NEWNET
    shared = container(config(network="host"))
    assert not shared.namespaces & CLONE_NEWNET
    assert not found(shared, LoopbackUp)


def test_namespaces_are_joined_before_the_clone() -> None:
    plan = container(config(network="/proc/7/ns/net", pid="/proc/7/ns/pid"))
    assert [path for path, _ in plan.enter] == ["/proc/7/ns/net", "/proc/7/ns/pid"]
    assert not plan.namespaces & CLONE_NEWNET
    assert not found(plan, LoopbackUp)
    assert "be born in /proc/7/ns/net" in plan.describe()


@pytest.mark.parametrize(
    ("namespaces", "field"),
    [
        ((Namespace(type="pid"),), "linux.namespaces: a container needs a mount namespace"),
        ((Namespace(type="mount", path="/proc/7/ns/mnt"),), r"linux.namespaces\[0\].path"),
        ((Namespace(type="mount"), Namespace(type="moon")), r"linux.namespaces\[1\].type: 'moon'"),
    ],
)
def test_namespaces_that_cannot_be_are_refused_by_name(namespaces: tuple[Namespace, ...], field: str) -> None:
    with pytest.raises(UsageError, match=field):
        container(changed(namespaces=namespaces))


def test_clock_offsets_are_written_before_anybody_is_in_the_namespace() -> None:
    plan = container(config(time_offsets={"monotonic": TimeOffset(secs=5), "boottime": TimeOffset(secs=7, nanosecs=1)}))
    at = position(plan, Unshare)
    assert plan.steps[at] == Unshare(CLONE_NEWCGROUP | CLONE_NEWTIME)
    assert plan.steps[at + 1] == Write(b"/proc/self/timens_offsets", b"monotonic 5 0\nboottime 7 1\n")
    assert plan.steps[at + 2] == EnterTime()
    assert not plan.namespaces & CLONE_NEWTIME


def test_a_user_namespace_is_mapped_from_outside_and_its_overlay_comes_as_a_tree() -> None:
    limits = (Rlimit(type="RLIMIT_NOFILE", soft=5, hard=6),)
    plan = container(config(id_range=IdRange(host_id=100000), rlimits=limits, oom_score_adj=7))
    outside = plan.outside
    assert outside is not None
    assert (outside.uid_map, outside.oom_score_adj, outside.limits) == (b"0 100000 65536\n", 7, ((7, 5, 6),))
    assert outside.overlay is not None
    assert (outside.overlay.layers, outside.overlay.uid) == ((b"/l/2", b"/l/1"), 100000)
    assert plan.steps[position(plan, AttachRoot)] == AttachRoot(len(outside.trees), b"/i/tare-0/upper")
    assert position(plan, PivotRoot) + 1 == position(plan, BecomeRoot)
    assert not found(plan, ResourceLimit)
    assert plan.namespaces & CLONE_NEWUSER
    assert Outside.from_row(marshal.loads(marshal.dumps(outside.to_row()))) == outside


def test_who_joins_the_processes_of_another_container_is_not_to_be_looked_into() -> None:
    alone = config(id_range=IdRange(host_id=100000))
    pid = Namespace(type="pid", path="/proc/7/ns/pid")
    namespaces = (*(one for one in alone.linux.namespaces if one.type != "pid"), pid)
    joined = replace(alone, linux=replace(alone.linux, namespaces=namespaces))
    assert BecomeRoot() in container(alone).steps
    assert not found(container(alone), Undumpable)
    plan = container(joined)
    assert plan.steps[0] == Undumpable()
    assert BecomeRoot(dumpable=False) in plan.steps


def test_a_user_namespace_that_is_joined_is_not_mapped_again() -> None:
    base = config(id_range=IdRange(host_id=100000))
    joined = tuple(
        replace(item, path="/proc/7/ns/user") if item.type == "user" else item for item in base.linux.namespaces
    )
    plan = container(replace(base, linux=replace(base.linux, namespaces=joined)))
    assert plan.user == "/proc/7/ns/user"
    assert plan.outside is not None
    assert plan.outside.uid_map == b""
    assert not plan.namespaces & CLONE_NEWUSER


def test_a_user_namespace_without_a_root_is_refused() -> None:
    base = config(id_range=IdRange(host_id=100000))
    maps = (IdMapping(container_id=1, host_id=100000, size=5),)
    with pytest.raises(UsageError, match=r"linux\.uidMappings"):
        container(replace(base, linux=replace(base.linux, uid_mappings=maps)))


def test_a_held_container_finds_its_program_before_it_waits() -> None:
    plan = container(hold=Path("/run/fifo"), die_with_launcher=True)
    assert position(plan, OpenHold) < position(plan, PivotRoot)
    kinds = [type(step) for step in plan.steps[-5:]]
    assert kinds == [Find, Confine, DieWithParent, Hold, Execute]


def test_hooks_run_at_their_points() -> None:
    hooks = Hooks(create_container=(Hook(path="/c"),), start_container=(Hook(path="/s", args=("s", "x"), timeout=3),))
    plan = container(replace(config(), hooks=hooks), waits=True, hold=Path("/f"))
    first, second = (step for step in plan.steps if isinstance(step, RunHook))
    assert (first.argv, second.argv, second.timeout_s) == (("/c",), ("/s", "s", "x"), 3)
    assert first.root
    assert not second.root
    assert position(plan, WaitForParent) < position(plan, PivotRoot) < position(plan, RunHook) < position(plan, Hold)
    assert position(plan, Hold) < position(plan, RunHook, 1)


def test_a_root_that_shares_mounts_has_a_private_parent_and_is_no_slave() -> None:
    plan = container(changed(rootfs_propagation="shared"))
    assert found(plan, PrivateParent)
    assert [step.flags for step in plan.steps if isinstance(step, Mount) and step.target == b"/"] == [MS_SHARED]


def test_a_read_only_root_is_locked_when_all_is_made_in_it() -> None:
    plan = container(config(read_only=True, tty=True))
    at = position(plan, ReadOnlyRoot)
    assert position(plan, Terminal) < at < position(plan, LeaveHost)
    assert not any(isinstance(step, Mount | Attach) for step in plan.steps[at:])


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
    assert plan.flat().steps == plan.steps


def test_what_launches_share_travels_as_the_same_bytes() -> None:
    template = Template(config(), FACTS, seccomp=None)
    first, second = (template.at(PLACE, hostname=name) for name in ("a", "b"))
    shared = {id(part) for part in first.parts if isinstance(part, Part)}
    assert shared == {id(part) for part in second.parts if isinstance(part, Part)}
    assert sum(len(part.steps) for part in first.parts if isinstance(part, Part)) > len(first.steps) / 2
    assert [step.name for step in (*first.steps, *second.steps) if isinstance(step, Hostname)] == [b"a", b"b"]


def test_own_files_are_bound_over_the_images_and_hidden_by_dev() -> None:
    plan = container(files=(("/etc/hosts", "127.0.0.1 x"),))
    made = position(plan, NewFile)
    bind = plan.steps[made + 1]
    assert bind == Cover(b"/dev/0", b"/etc/hosts", (b"/etc",))
    assert [step.target for step in plan.steps[made:] if isinstance(step, Mount | Attach)].count(b"/dev") == 1


def test_a_label_nobody_sets_is_refused_by_name() -> None:
    base = config()
    assert base.process is not None
    with pytest.raises(UsageError, match=r"process\.apparmorProfile"):
        container(replace(base, process=replace(base.process, apparmor_profile="docker-default")))
    with pytest.raises(UsageError, match=r"linux\.mountLabel"):
        container(changed(mount_label="system_u:object_r:svirt_sandbox_file_t:s0"))
    with pytest.raises(UsageError, match="process: missing"):
        container(replace(base, process=None))


def test_a_further_process_joins_what_is_not_its_own_already_and_is_confined_alike() -> None:
    base = config()
    assert base.process is not None
    plan = exec_plan(base, base.process, os.getpid(), Place(join_files=(Path("/c/tasks"),)), FACTS, seccomp=b"\0" * 8)
    assert plan.steps[0] == Write(b"/c/tasks", b"0")
    assert plan.target == os.getpid()
    start = process_start(os.getpid())
    assert plan.steps[position(plan, JoinNamespaces)] == JoinNamespaces(0, os.getpid(), start or 0)
    assert plan.enter == ()
    launched = container(base, seccomp=b"\0" * 8)
    assert plan.steps[position(plan, Confine)] == launched.steps[position(launched, Confine)]
    assert isinstance(plan.steps[-1], Execute)


def test_a_container_that_has_ended_has_no_further_processes() -> None:
    base = config()
    assert base.process is not None
    with pytest.raises(TareError, match="does not run any more"):
        exec_plan(base, base.process, 2**22 + 1, PLACE, FACTS, seccomp=None)


def test_facts_are_what_the_host_has(tmp_path: Path) -> None:
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/acpi").mkdir()
    (tmp_path / "proc/keys").touch()
    (tmp_path / "proc/sys/kernel/cap_last_cap").write_text("40\n")
    (tmp_path / "proc/self").mkdir()
    (tmp_path / "proc/self/status").write_text("Name:\tx\nCapPrm:\t000001fffeffffff\nCapBnd:\t000001ffffffffff\n")
    facts = HostFacts.gather(tmp_path)
    assert facts == replace(FACTS, lacking=frozenset({24}))


def test_what_nobody_here_has_is_not_given() -> None:
    plan = container_plan(config(privileged=True), PLACE, replace(FACTS, lacking=frozenset({24})), seccomp=None)
    confine = next(step for step in plan.steps if isinstance(step, Confine))
    assert confine.dropped == (24,)
    assert confine.sets == (2**41 - 1 - 2**24,) * 2 + (0,)


def test_a_user_namespace_has_even_what_nobody_here_has() -> None:
    every = config(cap_add=("ALL",), id_range=IdRange(host_id=100000))
    plan = container_plan(every, PLACE, replace(FACTS, lacking=frozenset({24})), seccomp=None)
    assert next(step for step in plan.steps if isinstance(step, Confine)).dropped == ()
