"""What containers are made of, on real instances: the direction of every effect, and the host as it was before."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runtime.driver import Driver, Host, find_driver
from runtime.spec import Limits
from tests.conftest import skip_or_fail
from tests.host.drivers import container, native, usable
from tests.host.test_workloads_real import measure, value
from workloads.metric import Sample

__all__ = ["container", "native"]  # fixtures
SEVEN = ("mount", "uts", "ipc", "pid", "net", "user", "cgroup")


@pytest.fixture(scope="module")
def microvm(bench_host: Host) -> Iterator[Driver]:
    with usable(find_driver("microvm")(bench_host)) as driver:
        yield driver


@pytest.fixture(autouse=True)
def host_as_before(bench_host: Host) -> Iterator[None]:
    """No mount, queue, registry or scratch directory stays."""
    before = traces(bench_host)
    yield
    assert traces(bench_host) == before


def traces(host: Host) -> tuple[object, ...]:
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(host.run) in line]
    queues = Path("/proc/sysvipc/msg").read_text()
    scratch = sorted((host.root / "scratch").glob("*"))
    found = subprocess.run(["pgrep", "-fc", "docker-registry serve .*/scratch/"], capture_output=True, check=False)
    return mounts, queues, scratch, found.stdout


def apart(samples: list[Sample], direction: str) -> set[str]:
    return {
        sample.labels["namespace"] for sample in samples if sample.labels["direction"] == direction and sample.value
    }


def test_a_container_is_apart_in_all_kinds_but_the_users_and_the_clock(container: Driver) -> None:
    samples = measure(container, "namespaces")
    assert apart(samples, "inward") == set(SEVEN) - {"user"}
    assert apart(samples, "outward") == set(SEVEN) - {"user", "pid"}  # the host sees a container's processes


def test_native_is_apart_in_its_mounts_alone(native: Driver) -> None:
    samples = measure(native, "namespaces")
    assert apart(samples, "inward") == {"mount"}
    assert apart(samples, "outward") == {"mount"}


def test_a_machine_is_apart_in_everything(microvm: Driver) -> None:
    samples = measure(microvm, "namespaces")
    assert apart(samples, "inward") == apart(samples, "outward") == {*SEVEN, "time"}


def registry_or_skip() -> None:
    if shutil.which("docker-registry") is None:
        skip_or_fail("docker-registry is not installed")


def test_a_layer_carries_little_more_than_its_file(container: Driver) -> None:
    registry_or_skip()
    samples = measure(container, "delivery")
    assert 1 << 20 <= value(samples, "delivery.bytes", way="layer") < 1.1 * (1 << 20)
    assert 1 << 20 <= value(samples, "delivery.stored", way="layer") < 1.2 * (1 << 20)


def test_a_whole_disk_carries_the_system_and_its_changes_do_not(microvm: Driver) -> None:
    registry_or_skip()
    samples = measure(microvm, "delivery")
    whole, changed = (value(samples, "delivery.bytes", way=way) for way in ("whole disk", "changed clusters"))
    assert 1 << 20 <= changed < whole / 10


def test_what_a_container_does_to_its_image_stays_its_own(container: Driver) -> None:
    samples = measure(container, "layers")
    assert [(sample.value, sample.labels["outcome"]) for sample in samples] == [(1.0, "written removed")] * 2


def test_the_baselines_image_cannot_be_changed(native: Driver) -> None:
    samples = measure(native, "layers")
    assert [(sample.value, sample.labels["outcome"]) for sample in samples] == [(1.0, "refused")] * 2


def test_shares_follow_weights_and_nothing_runs_while_frozen(container: Driver) -> None:
    samples = measure(container, "controls", seconds=1)
    assert -0.15 < value(samples, "controls.share_error") < 0.15
    assert 0.9 < value(samples, "controls.accounted") < 1.1
    # What ran at the freeze may be counted a moment after it.
    assert value(samples, "controls.thawed_cpu") > 10 * value(samples, "controls.frozen_cpu")


def test_direct_writes_stay_near_their_limit(container: Driver) -> None:
    samples = measure(container, "enforcement_io", seconds=1)
    assert value(samples, "enforcement.io_overrun") < 1.3


def test_processes_beyond_the_limit_are_refused(container: Driver) -> None:
    limits = Limits(memory_bytes=256 << 20, pids=64)
    assert value(measure(container, "enforcement", limits, seconds=1), "enforcement.pids_bite") == 1


def test_guards_keep_what_hogs_take_from_the_unguarded(container: Driver) -> None:
    advantages = []
    for _ in range(4):  # strangers on the host take from the guarded too, and from the victim while it is alone
        samples = measure(container, "protection", seconds=1)
        kept = {guard: value(samples, "protection.kept", guard=guard) for guard in ("none", "weight", "cpuset")}
        advantages.append(min(kept["weight"], kept["cpuset"]) - kept["none"])
        if advantages[-1] > 0.03:
            return
    pytest.fail(f"no guard kept anything: {advantages}")


BEACON = """
import sys, time
from pathlib import Path
from workloads.isolation.namespaces import Signal, outside_beacon
with outside_beacon(Path(sys.argv[1]), Signal("tare-0123456789abcdef", 1 << 21, 300_000)):
    print("ready", flush=True)
    time.sleep(60)
"""
REGISTRY = """
import sys, time
from pathlib import Path
from workloads.tools.registry import serving
with serving(Path(sys.argv[1])) as registry:
    print(registry._port, flush=True)
    time.sleep(60)
"""


def killed(program: str, directory: Path) -> str:
    """What `program` says before it is killed."""
    with subprocess.Popen([sys.executable, "-c", program, str(directory)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        said = process.stdout.readline().decode().strip()
        process.kill()
    return said


def gone(there: Callable[[], bool]) -> bool:
    ends = time.monotonic() + 20
    while there() and time.monotonic() < ends:
        time.sleep(0.05)
    return not there()


def test_stimuli_on_the_host_end_with_whoever_is_killed(root_user: None, tmp_path: Path) -> None:
    assert killed(BEACON, tmp_path) == "ready"
    assert gone(lambda: any(tmp_path.iterdir()))
    assert gone(lambda: str(tmp_path) in Path("/proc/self/mountinfo").read_text())
    assert str(1 << 21) not in Path("/proc/sysvipc/msg").read_text().split()


def test_a_registry_ends_with_whoever_is_killed(tmp_path: Path) -> None:
    registry_or_skip()
    port = int(killed(REGISTRY, tmp_path))

    def listens() -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    assert gone(listens)
