"""The runtime on a real kernel with cgroup v2 alone and KVM: our own tests, run inside the stand-in.

Boots once (half a minute to a minute under emulation). Each test here runs some files there; all of them must pass.
"""

from __future__ import annotations

import time

import pytest

from tests.guest.standin import StandIn

# What control groups or a kernel's age can change. A command of ours takes seconds under emulation, and so does pytest:
# of tests that call many commands, those that a host without v2 cannot stand for, and few calls of pytest.
FILES = {
    "cgroup v2, groups and limits": (
        "tests/guest/inside.py",
        *(f"tests/host/test_{name}.py" for name in ("cgroups", "limits", "limits_devices", "limits_update")),
    ),
    "the driver's contract": ("tests/conformance/test_drivers.py", "-k", "container"),
    "confinement, namespaces, mounts, processes, the specification's fields": tuple(
        f"tests/host/test_{name}.py" for name in ("container", "namespaces", "mounts", "process", "oci_config")
    ),
    "the OCI command line": (
        *("tests/host/test_oci.py", "tests/host/test_oci_process.py"),
        *("-k", "created_started or exec_joins or pause_resume or forced_delete or inside_looks"),
    ),
    "networks": (
        *("tests/host/test_network.py", "tests/host/test_network_bridges.py"),
        *("-k", "gateway_and or lo_eth0 or joins or outside_from or killed or nft"),
    ),
    "files": (
        *("tests/host/test_files.py", "tests/host/test_kept.py"),
        *("-k", "test_files.py or (auto and (belong or fresh))"),
    ),
    "lives": (
        *("tests/host/test_life_commands.py", "tests/host/test_life_crashes.py"),
        *("-k", "memory_that or stats or keeper_killed"),
    ),
    "KVM": ("tests/guest/inside_kvm.py", "-s"),
    "KVM through firmware": ("tests/guest/inside_firmware.py",),
    "a guest's contract on KVM": (
        "tests/conformance/test_drivers.py",
        *("-k", "[microvm] and (probe or phases or output or killed or clos or pausing)"),
    ),
}
# What cannot hold there, and why; `inside.py` says what holds on v2 instead of what holds on v1.
NOT_HERE = (
    "tests/host/test_cgroups.py::test_a_frozen_process_does_not_run_until_thawed",  # a fatal signal ends it frozen
    # An emulated reader cannot keep it busy.
    "tests/host/test_limits_devices.py::test_weights_divide_a_disk_that_obeys_them",
)


def test_it_has_cgroup_v2_and_nothing_else(standin: StandIn) -> None:
    mounts = standin.run("cat", "/proc/self/mountinfo").check().stdout.decode()
    kinds = {line.partition(" - ")[2].split()[0] for line in mounts.splitlines()}
    assert "cgroup2" in kinds
    assert "cgroup" not in kinds
    offered = standin.run("cat", "/sys/fs/cgroup/cgroup.controllers").check().stdout.decode().split()
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(offered)


def test_it_virtualises_in_hardware_as_far_as_the_guest_can_tell(standin: StandIn) -> None:
    """So that what needs KVM can be tried where the host has none of use."""
    assert standin.run("test", "-c", "/dev/kvm").exit_code == 0


@pytest.mark.parametrize("what", FILES)
def test_all_pass_inside(standin: StandIn, what: str, capsys: pytest.CaptureFixture[str]) -> None:
    begun = time.monotonic()
    result = standin.pytest(*FILES[what], *(f"--deselect={name}" for name in NOT_HERE))
    said = (result.stdout + result.stderr).decode(errors="replace")
    with capsys.disabled():
        last = (said.strip().splitlines() or ["nothing said"])[-1].strip("= ")
        print(f"\n{what}: {last}; {time.monotonic() - begun:.0f} s here", flush=True)  # noqa: T201 - progress
    assert result.exit_code == 0, said
