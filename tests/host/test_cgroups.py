"""Control groups on the host's own hierarchies: every limit is kept, usage is counted, nothing stays. Needs root."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import detect, io_device, open_cgroup
from runtime.errors import TareError
from runtime.ledger import new_id
from runtime.spec import Limits
from tests.conftest import skip_or_fail

LIMITS = Limits(
    cpus=0.5, cpu_weight=200, cpuset="0", memory_bytes=64 << 20, memory_low_bytes=32 << 20, swap_bytes=0, pids=20
)


@pytest.fixture
def group(root_user: None) -> Iterator[Cgroup]:
    try:
        group = open_cgroup(new_id(), LIMITS, io_path=Path("/var/tmp"))
        group.create()
    except (TareError, OSError) as error:
        skip_or_fail(f"no usable cgroups: {error}")
    yield group
    group.remove()


@pytest.fixture
def sleeper(group: Cgroup) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "60"]) as process:
        group.add_pid(process.pid)
        yield process
        process.kill()


@pytest.mark.parametrize(
    "name", [field.name for field in dataclasses.fields(Limits) if getattr(LIMITS, field.name) is not None]
)
def test_a_limit_is_kept_or_refused_by_name(group: Cgroup, name: str) -> None:
    wanted = {"memory_bytes": LIMITS.memory_bytes} if name == "swap_bytes" else {}
    limits = Limits(**{**wanted, name: getattr(LIMITS, name)})
    try:
        group.apply(limits)
    except TareError as error:
        refusal = str(error)
    else:
        refusal = ""
    assert name in refusal or not [reading for reading in group.readings(limits) if not reading.holds]


def test_io_limits_name_the_disk(group: Cgroup) -> None:
    if io_device(Path("/var/tmp")) is None:
        pytest.skip("/var/tmp lies on no disk")
    limits = Limits(io_read_bps=1 << 20, io_write_bps=2 << 20)
    group.apply(limits)
    assert [reading for reading in group.readings(limits) if not reading.holds] == []


def test_a_process_is_counted_where_it_joined(group: Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    assert group.pids() == (sleeper.pid,)
    usage = group.usage()
    assert usage.pids == 1
    assert usage.memory_bytes is not None
    assert usage.cpu_ns is not None


def test_a_frozen_process_does_not_run_until_thawed(group: Cgroup) -> None:
    with subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) as process:
        group.add_pid(process.pid)
        try:
            group.freeze()
            before, begun_ns = group.usage().cpu_ns or 0, time.monotonic_ns()
            process.send_signal(signal.SIGTERM)
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.3)
            used, wall_ns = (group.usage().cpu_ns or 0) - before, time.monotonic_ns() - begun_ns
            assert used < 0.05 * wall_ns  # what ran at the freeze may be counted a moment after it
            group.thaw()
            assert process.wait(10) == -signal.SIGTERM
        finally:
            process.kill()


def test_removing_kills_even_the_frozen(group: Cgroup, sleeper: subprocess.Popen[bytes]) -> None:
    group.freeze()
    group.kill()
    assert sleeper.wait(10) == -signal.SIGKILL
    group.remove()
    assert not group.exists()


def test_removing_twice_is_no_error(group: Cgroup) -> None:
    group.remove()
    group.remove()
    assert not group.exists()
    assert group.pids() == ()


def test_this_host_is_recognised(root_user: None) -> None:
    found = detect()
    assert found.mode in ("v1", "v2", "hybrid")
    assert all(path.is_dir() for path in found.v1.values())
