"""Docker's seccomp profiles, their conditions resolved for one container on one host."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from runtime.container import decode, profiles
from runtime.container.config import Seccomp
from runtime.container.profiles import Host
from runtime.errors import UsageError

HOST = Host(machine="x86_64", release="6.1.0-18-amd64")
PROFILE: dict[str, Any] = {
    "defaultAction": "SCMP_ACT_ERRNO",
    "defaultErrnoRet": 1,
    "archMap": [
        {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]},
        {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]},
    ],
    "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ALLOW", "comment": "always", "includes": {}, "excludes": {}},
        {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
        {"names": ["newer"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
        {"names": ["mount", "bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
        {"names": ["arch_prctl"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64", "x32"]}},
        {"names": ["arm_call"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "arm64"]}},
        {"names": ["not_s390"], "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390x"]}},
        {"name": "old_form", "action": "SCMP_ACT_ALLOW", "args": None},
    ],
}


def names(profile: Seccomp) -> list[str]:
    return [rule.names[0] for rule in profile.syscalls]


def test_conditions_are_those_of_the_container_and_the_host() -> None:
    plain = profiles.parse(PROFILE, ["CAP_CHOWN"], HOST)
    assert names(plain) == ["read", "ptrace", "clone3", "arch_prctl", "not_s390", "old_form"]
    assert plain.architectures == ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")
    assert names(profiles.parse(PROFILE, ["CAP_SYS_ADMIN"], HOST)) == [
        *("read", "ptrace", "mount", "arch_prctl", "not_s390", "old_form")
    ]
    arm = profiles.parse(PROFILE, [], Host(machine="aarch64", release="6.12"))
    assert names(arm) == ["read", "ptrace", "newer", "clone3", "arm_call", "not_s390", "old_form"]
    assert arm.architectures == ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")


def test_a_machine_that_the_profile_does_not_know_gets_its_own_architecture_alone() -> None:
    assert profiles.parse(PROFILE, [], Host(machine="riscv64", release="6.1")).architectures == ()


def test_the_specifications_own_profile_is_taken_as_it_is() -> None:
    document = {
        "defaultAction": "SCMP_ACT_KILL",
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {
                "names": ["read"],
                "action": "SCMP_ACT_ALLOW",
                "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}],
            }
        ],
    }
    assert profiles.parse(document, [], HOST) == decode.parse_seccomp(document)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaultAction": "NO"}, "defaultAction: 'NO' is not one of"),
        ({"defaultAction": None}, "defaultAction: missing"),
        ({"architectures": ["SCMP_ARCH_X86"]}, "architectures: there is an archMap too"),
        ({"syscalls": {}}, "syscalls: an object is not a list"),
        ({"syscalls": [{"action": "SCMP_ACT_ALLOW"}]}, r"syscalls\[0\].names: empty"),
        ({"syscalls": [{"names": ["a"], "action": "X"}]}, r"syscalls\[0\].action: 'X'"),
        (
            {"syscalls": [{"names": ["a"], "action": "X", "includes": {"arches": ["s390x"]}}]},
            r"syscalls\[0\].action: 'X'",
        ),
        (
            {"syscalls": [{"names": ["a"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "new"}}]},
            r"syscalls\[0\].includes.minKernel: 'new' is not a version",
        ),
        ({"syscalls": [{"names": ["a"], "name": "b", "action": "SCMP_ACT_ALLOW"}]}, r"syscalls\[0\].name: there are"),
    ],
)
def test_a_bad_profile_is_refused_by_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        profiles.parse(PROFILE | change, [], HOST)


def test_a_file_is_read_and_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(PROFILE))
    assert profiles.load(path, [], HOST) == profiles.parse(PROFILE, [], HOST)
    path.write_text("{")
    with pytest.raises(UsageError, match=r"mine\.json: not JSON"):
        profiles.load(path, [], HOST)
