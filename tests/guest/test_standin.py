"""The container driver on a real kernel with cgroup v2 alone: our own tests, run inside the stand-in.

Boots once (half a minute under emulation). Each test here runs one file there and passes if all of it does.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.driver import Host
from runtime.drivers.libvirt import VmDriver
from runtime.errors import TareError
from tests.conftest import skip_or_fail
from tests.guest.standin import StandIn, booted

# Those that are many run in part, what control groups or a kernel's age can change: emulation is slow.
FILES = {
    "cgroup v2": ("tests/guest/inside.py",),
    "the driver's contract": ("tests/conformance/test_drivers.py", "-k", "container"),
    "groups and limits": ("tests/host/test_cgroups.py", "tests/host/test_limits.py"),
    "confinement": ("tests/host/test_container.py",),
    "namespaces, mounts, processes": tuple(
        f"tests/host/test_{name}.py" for name in ("namespaces", "mounts", "process")
    ),
    "files": ("tests/host/test_files.py", "tests/host/test_kept.py"),
    "the specification's fields": ("tests/host/test_oci_config.py",),
    "the OCI command line": (
        "tests/host/test_oci.py",
        *("-k", "created_started or killed_half_way or exec or pause or paused or inside or cgroup"),
    ),
    "networks": ("tests/host/test_network.py", "-k", "outside or lo_eth0 or joins or thirty or iptables-nft"),
    "lives": (
        "tests/host/test_life.py",
        *("-k", "paused or memory or stats or top or exit_codes or ids or keeper_killed or twenty or bridge"),
    ),
}
# What cannot hold there, and why; `inside.py` says what holds on v2 instead of what holds on v1.
NOT_HERE = (
    "tests/host/test_cgroups.py::test_a_frozen_process_does_not_run_until_thawed",  # a fatal signal ends it frozen
    "tests/host/test_limits.py::test_weights_divide_a_disk_that_obeys_them",  # an emulated reader cannot keep it busy
)


@pytest.fixture(scope="module")
def standin(bench_host: Host) -> Iterator[StandIn]:
    if not (found := VmDriver(bench_host).probe()).usable:
        skip_or_fail(f"no virtual machines: {found.reason}")
    with tempfile.TemporaryDirectory(prefix="standin-", dir=bench_host.root.parent) as scratch:
        try:
            with booted(bench_host, Path(scratch)) as machine:
                yield machine
        except TareError as error:
            pytest.fail(str(error))


def test_it_has_cgroup_v2_and_nothing_else(standin: StandIn) -> None:
    mounts = standin.run("cat", "/proc/self/mountinfo").check().stdout.decode()
    kinds = {line.partition(" - ")[2].split()[0] for line in mounts.splitlines()}
    assert "cgroup2" in kinds
    assert "cgroup" not in kinds
    offered = standin.run("cat", "/sys/fs/cgroup/cgroup.controllers").check().stdout.decode().split()
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(offered)


def test_it_virtualises_in_hardware_as_far_as_the_guest_can_tell(standin: StandIn) -> None:
    """So that what needs KVM can be tried where the host has none of use."""
    standin.run("modprobe", "kvm_amd").check()
    assert standin.run("test", "-c", "/dev/kvm").exit_code == 0


@pytest.mark.parametrize("what", FILES)
def test_all_pass_inside(standin: StandIn, what: str) -> None:
    result = standin.pytest(*FILES[what], *(f"--deselect={name}" for name in NOT_HERE))
    print((result.stdout + result.stderr).decode())  # noqa: T201 - shown by pytest when it fails
    assert result.exit_code == 0
