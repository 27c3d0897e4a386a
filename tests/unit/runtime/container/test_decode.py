"""Configurations read from JSON: what is refused and by which name, and that nothing else ever happens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.container import checks, decode
from runtime.container.config import Config, Process
from runtime.errors import UsageError

SMALLEST: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "root": {"path": "rootfs"},
    "linux": {"namespaces": [{"type": "mount"}]},
}
FULL: dict[str, Any] = {
    "ociVersion": "1.2.0-rc.1",
    "root": {"path": "/srv/root", "readonly": True},
    "hostname": "box",
    "domainname": "example",
    "process": {
        "args": ["sh", "-c", "true"],
        "cwd": "/tmp",
        "env": ["A=1", "B="],
        "terminal": True,
        "consoleSize": {"height": 24, "width": 80},
        "user": {"uid": 7, "gid": 8, "umask": 18, "additionalGids": [9]},
        "capabilities": {name: ["CAP_CHOWN"] for name in ("bounding", "effective", "permitted")},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 2**64 - 1}],
        "noNewPrivileges": True,
        "oomScoreAdj": 0,
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 3},
        "apparmorProfile": "p",
        "selinuxLabel": "l",
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
        {
            "destination": "/data",
            "source": "/srv",
            "options": ["rbind", "idmap"],
            "uidMappings": [{"containerID": 0, "hostID": 100, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 100, "size": 10}],
        },
    ],
    "hooks": {
        "createRuntime": [{"path": "/bin/a", "args": ["a"], "env": ["X=1"], "timeout": 5}],
        "poststop": [{"path": "/b"}],
    },
    "annotations": {"a.b": "c"},
    "linux": {
        "namespaces": [
            *({"type": kind} for kind in ("mount", "pid", "uts", "ipc", "user", "time", "cgroup")),
            {"type": "network", "path": "/proc/1/ns/net"},
        ],
        "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 1000}],
        "gidMappings": [
            {"containerID": 0, "hostID": 100000, "size": 1000},
            {"containerID": 1000, "hostID": 5, "size": 1},
        ],
        "timeOffsets": {"monotonic": {"secs": -3, "nanosecs": 5}},
        "devices": [
            {"type": "c", "path": "/dev/x", "major": 1, "minor": 3, "fileMode": 438, "uid": 1, "gid": 2},
            {"type": "p", "path": "/dev/pipe"},
        ],
        "cgroupsPath": "system.slice:x:y",
        "resources": {
            "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "c", "major": 1}],
            "memory": {"limit": 1 << 30, "swap": 2 << 30, "swappiness": 10, "disableOOMKiller": True, "kernelTCP": 5},
            "cpu": {"shares": 512, "quota": -1, "period": 100000, "cpus": "0-1,3", "mems": "0"},
            "pids": {"limit": 10},
            "blockIO": {
                "weight": 100,
                "weightDevice": [{"major": 8, "minor": 0, "weight": 500}],
                "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 1000}],
                "throttleWriteIOPSDevice": [{"major": 8, "minor": 0, "rate": 7}],
            },
            "hugepageLimits": [{"pageSize": "2MB", "limit": 0}],
            "network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3}},
            "unified": {"memory.high": "max"},
        },
        "rootfsPropagation": "rslave",
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "flags": ["SECCOMP_FILTER_FLAG_LOG"],
            "syscalls": [
                {
                    "names": ["clone"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 2**64 - 1, "op": "SCMP_CMP_MASKED_EQ", "valueTwo": 1}],
                }
            ],
        },
        "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "5"},
        "maskedPaths": ["/proc/kcore"],
        "readonlyPaths": ["/proc/sys"],
        "mountLabel": "m",
        "personality": {"domain": "LINUX32"},
    },
}


def changed(document: Mapping[str, Any], path: str, value: object) -> dict[str, Any]:
    """A copy of a document with one thing set; path words by dots, list places as numbers."""
    copy = json.loads(json.dumps(document))
    place: Any = copy
    *outer, last = [int(word) if word.isdigit() else word for word in path.split(".")]
    for word in outer:
        place = place.setdefault(word, {}) if isinstance(place, dict) else place[word]
    place[last] = value
    return copy  # type: ignore[no-any-return]


def faults(document: Mapping[str, Any]) -> str:
    with pytest.raises(UsageError) as caught:
        decode.parse(document)
    return caught.value.why


def test_every_field_comes_back_as_it_went_in() -> None:
    assert decode.document(decode.parse(FULL)) == FULL


def test_the_smallest_is_enough() -> None:
    config = decode.parse(SMALLEST)
    assert config.process is None
    assert decode.document(config) == SMALLEST


def test_unknown_fields_are_passed_over() -> None:
    assert decode.parse({**SMALLEST, "windows": {"x": 1}, "vm": 5}) == decode.parse(SMALLEST)


def test_null_and_empty_text_are_absent() -> None:
    config = decode.parse({**SMALLEST, "hostname": "", "process": None, "mounts": None, "annotations": None})
    assert config == decode.parse(SMALLEST)


def test_no_device_rules_are_not_an_empty_list_of_them() -> None:
    denied = decode.parse(changed(SMALLEST, "linux.resources", {"devices": []}))
    assert denied.linux.resources.devices == ()
    assert decode.document(denied)["linux"]["resources"] == {"devices": []}
    assert decode.parse(SMALLEST).linux.resources.devices is None


def test_minus_one_is_any_device() -> None:
    rule = {"allow": True, "type": "c", "major": -1, "minor": -1}
    config = decode.parse(changed(SMALLEST, "linux.resources", {"devices": [rule]}))
    assert config.linux.resources.devices is not None
    assert (config.linux.resources.devices[0].major, config.linux.resources.devices[0].minor) == (None, None)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ociVersion", "2.0.0", "ociVersion: '2.0.0' is not a version 1.x.y"),
        ("ociVersion", "1.0", "ociVersion"),
        ("ociVersion", None, "ociVersion: missing"),
        ("root", None, "root: missing"),
        ("root.path", "", "root.path: empty"),
        ("root.readonly", 1, "root.readonly: 1 is not true or false"),
        ("hostname", "x" * 65, "hostname: longer than 64 bytes"),
        ("hostname", "a\0b", "hostname: holds a NUL byte"),
        ("hostname", "\ud800", "hostname: holds half a character"),
        ("process.args", [], "process.args: empty"),
        ("process.args", [""], "process.args[0]: empty"),
        ("process.args", "sh", 'process.args: "sh" is not a list'),
        ("process.args", [True], "process.args[0]: true is not a string"),
        ("process.cwd", "tmp", "process.cwd: 'tmp' is not absolute"),
        ("process.env", ["A=1", "B"], "process.env[1]: 'B' is not NAME=VALUE"),
        ("process.env", ["=x"], "process.env[0]"),
        ("process.user.uid", True, "process.user.uid: true is not a whole number"),
        ("process.user.uid", 1.0, "process.user.uid: 1.0 is not a whole number"),
        ("process.user.uid", -1, "process.user.uid: -1 is not between 0 and 4294967294"),
        ("process.user.umask", 0o1000, "process.user.umask"),
        ("process.rlimits.0.type", "NOFILE", "process.rlimits[0].type: 'NOFILE' is not one of RLIMIT_AS"),
        ("process.rlimits.0.hard", 5, "process.rlimits[0].soft: 10 is above hard, 5"),
        (
            "process.rlimits",
            [{"type": "RLIMIT_CPU", "soft": 1, "hard": 1}] * 2,
            "process.rlimits[1].type: 'RLIMIT_CPU'",
        ),
        ("process.oomScoreAdj", -1001, "process.oomScoreAdj"),
        ("process.ioPriority.class", "BE", "process.ioPriority.class: 'BE' is not one of"),
        ("process.scheduler", {"policy": "SCHED_FIFO"}, "process.scheduler: this runtime does not do that"),
        ("mounts.0.destination", 7, "mounts[0].destination"),
        ("mounts.1.source", None, "mounts[1].source: missing"),
        ("mounts.0.options", ["ro", ""], "mounts[0].options[1]: empty"),
        ("mounts.1.gidMappings", None, "mounts[1]: uidMappings and gidMappings must come together"),
        ("hooks.poststop.0.path", "b", "hooks.poststop[0].path: 'b' is not absolute"),
        ("hooks.createRuntime.0.timeout", 0, "hooks.createRuntime[0].timeout"),
        ("annotations", {"": "x"}, "annotations: a key is empty"),
        ("annotations", {"x": 1}, 'annotations["x"]: 1 is not a string'),
        ("linux.namespaces.2.type", "foo", "linux.namespaces[2].type: 'foo' is not one of cgroup, ipc"),
        ("linux.namespaces.1.type", "mount", "linux.namespaces[1].type: 'mount' is there twice"),
        ("linux.namespaces.7.path", "proc", "linux.namespaces[7].path: 'proc' is not absolute"),
        ("linux.namespaces", [{"type": "uts"}], "linux.namespaces: a mount namespace is needed"),
        ("linux.namespaces", [{"type": "mount"}], "hostname: needs a uts namespace"),
        ("linux.namespaces", [{"type": "mount"}], "linux.uidMappings: needs a user namespace"),
        ("linux.namespaces", [{"type": "mount"}], "linux.timeOffsets: needs a new time namespace"),
        ("linux.namespaces", [{"type": "mount"}], "linux.sysctl['kernel.shmmax']: needs a namespace of type ipc"),
        ("linux.uidMappings", [], "linux.uidMappings: empty, but a user namespace is to be made"),
        ("linux.gidMappings.1.containerID", 999, "linux.gidMappings[1].containerID: overlaps gidMappings[0]"),
        ("linux.gidMappings.1.hostID", 100500, "linux.gidMappings[1].hostID: overlaps"),
        ("linux.gidMappings.1.size", 2**32 - 1, "linux.gidMappings[1].size: reaches beyond the last id"),
        ("linux.timeOffsets", {"realtime": {"secs": 1}}, "linux.timeOffsets: 'realtime' is not one of"),
        ("linux.timeOffsets.monotonic.nanosecs", 10**9, 'linux.timeOffsets["monotonic"].nanosecs'),
        ("linux.devices.0.type", "x", "linux.devices[0].type: 'x' is not one of b, c, p, u"),
        ("linux.devices.0.major", None, "linux.devices[0].major: missing"),
        ("linux.cgroupsPath", "/../x", "linux.cgroupsPath: '/../x' leads upwards"),
        ("linux.resources.memory.swap", 5, "linux.resources.memory.swap: 5 is below the limit"),
        ("linux.resources.memory.limit", None, "linux.resources.memory.swap: needs memory.limit"),
        ("linux.resources.cpu.cpus", "0-", "linux.resources.cpu.cpus: '0-' is not a list"),
        ("linux.resources.blockIO.weight", 9, "linux.resources.blockIO.weight: 9 is not between 10 and 1000"),
        ("linux.resources.blockIO.weight", 1001, "linux.resources.blockIO.weight: 1001 is not between 0 and 1000"),
        ("linux.resources.hugepageLimits.0.pageSize", "2mb", "linux.resources.hugepageLimits[0].pageSize"),
        ("linux.resources.devices.0.access", "rx", "linux.resources.devices[0].access: 'rx' is not of the letters rwm"),
        ("linux.resources.unified", {"../x": "1"}, "linux.resources.unified['../x']: not the name of a control file"),
        ("linux.rootfsPropagation", "none", "linux.rootfsPropagation: 'none' is not one of"),
        ("linux.seccomp.defaultAction", "ALLOW", "linux.seccomp.defaultAction: 'ALLOW' is not one of"),
        ("linux.seccomp.defaultAction", "SCMP_ACT_NOTIFY", "linux.seccomp.defaultErrnoRet: SCMP_ACT_NOTIFY takes no"),
        ("linux.seccomp.architectures.1", "x86", "linux.seccomp.architectures[1]: 'x86' is not one of"),
        ("linux.seccomp.flags.0", "LOG", "linux.seccomp.flags[0]: 'LOG' is not one of"),
        ("linux.seccomp.syscalls.0.names", [], "linux.seccomp.syscalls[0].names: empty"),
        ("linux.seccomp.syscalls.0.errnoRet", 1, "linux.seccomp.syscalls[0].errnoRet: SCMP_ACT_ALLOW takes no errno"),
        ("linux.seccomp.syscalls.0.args.0.op", "EQ", "linux.seccomp.syscalls[0].args[0].op: 'EQ' is not one of"),
        (
            "linux.seccomp.syscalls.0.args.0.index",
            6,
            "linux.seccomp.syscalls[0].args[0].index: 6 is not between 0 and 5",
        ),
        ("linux.sysctl", {"kernel.hostname": "x"}, "linux.sysctl['kernel.hostname']: is what hostname sets"),
        ("linux.sysctl", {"vm.swappiness": "1"}, "linux.sysctl['vm.swappiness']: belongs to no namespace"),
        ("linux.sysctl", {"net/../kernel/x": "1"}, "linux.sysctl['net/../kernel/x']: not the name of a kernel"),
        ("linux.maskedPaths", ["proc"], "linux.maskedPaths[0]: 'proc' is not absolute"),
        ("linux.personality.domain", "BSD", "linux.personality.domain: 'BSD' is not one of"),
        ("linux.intelRdt", {"closID": "x"}, "linux.intelRdt: this runtime does not do that"),
    ],
)
def test_a_bad_field_is_named(path: str, value: object, message: str) -> None:
    assert message in faults(changed(FULL, path, value))


@pytest.mark.parametrize("relative", ["mnt/x", "x", "./x", "../x"])
def test_a_relative_mount_destination_begins_at_the_root(relative: str) -> None:
    mounts = decode.parse(changed(FULL, "mounts.0.destination", relative)).mounts
    assert mounts[0].destination == f"/{relative}"
    assert all(mount.destination.startswith("/") for mount in mounts)


def test_every_bad_field_is_named_at_once() -> None:
    document = changed(FULL, "root.path", 5)
    document["process"]["cwd"] = "x"
    document["linux"]["namespaces"][1] = {"type": "foo"}
    document["linux"]["sysctl"]["vm.x"] = "1"
    document["mounts"][0] = "mount"
    why = faults(document)
    for name in ("root.path", "process.cwd", "linux.namespaces[1].type", "linux.sysctl['vm.x']", "mounts[0]"):
        assert f"{name}: " in why


def test_a_flood_of_faults_is_counted_not_printed() -> None:
    why = faults(changed(SMALLEST, "process", {"args": [5] * 10_000}))
    assert "and 9936 more" in why
    assert len(why) < 10_000


def test_unknown_capabilities_are_warned_of_not_refused() -> None:
    config = decode.parse(changed(FULL, "process.capabilities.bounding", ["CAP_CHOWN", "CAP_FUTURE"]))
    assert checks.warnings(config) == ("capability 'CAP_FUTURE' is unknown",)


def test_process_and_resources_stand_alone() -> None:
    assert decode.parse_process(FULL["process"]) == decode.parse(FULL).process
    assert decode.parse_resources(FULL["linux"]["resources"]) == decode.parse(FULL).linux.resources
    with pytest.raises(UsageError, match=r"process.json: args: empty; cwd: 'x' is not absolute"):
        decode.parse_process({"cwd": "x"})


def test_what_the_specification_requires_is_always_written() -> None:
    assert decode.document(Process(args=("a",))) == {"args": ["a"], "cwd": "/", "user": {"uid": 0, "gid": 0}}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.conf.eth0/1.rp_filter", "net/ipv4/conf/eth0.1/rp_filter"),
        ("net/ipv4/conf/eth0.1/x", None),
        ("x", None),
    ],
)
def test_sysctl_names_come_with_dots_or_slashes(name: str, path: str | None) -> None:
    assert checks.sysctl_path(name) == (path or name)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b'{"a": NaN}', "NaN is no number"),
        (b"\xff", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
        (b" " * (decode.LARGEST_BYTES + 1), "larger than 16 MiB"),
    ],
)
def test_a_file_that_is_no_document_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        decode.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"config.json: No such file"):
        decode.load(tmp_path / "config.json")


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def parsed_or_refused(document: object) -> Config | None:
    try:
        config = decode.parse(document)  # type: ignore[arg-type]
    except UsageError:
        return None
    assert decode.parse(decode.document(config)) == config
    return config


@given(anything)
def test_any_json_is_parsed_or_refused(document: object) -> None:
    parsed_or_refused(document)


@given(st.sampled_from(places(FULL)[1:]), anything)
def test_any_json_at_any_place_is_parsed_or_refused(path: tuple[str | int, ...], value: object) -> None:
    document = json.loads(json.dumps(FULL))
    place = document
    for word in path[:-1]:
        place = place[word]
    place[path[-1]] = value
    parsed_or_refused(document)
