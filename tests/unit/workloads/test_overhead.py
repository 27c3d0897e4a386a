"""The overhead set: rates as total work over total time, and what makes them void."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.errors import TareError
from runtime.spec import Limits
from tests.fakes import Behaviour
from tests.unit.workloads.visits import one, visit
from workloads.base import Invalid, Workload
from workloads.overhead_cpu import OverheadCpu
from workloads.overhead_disk import OverheadDisk
from workloads.overhead_kernel import OverheadKernel
from workloads.overhead_memory import OverheadMemory

ALL = [OverheadCpu, OverheadMemory, OverheadKernel, OverheadDisk]


def test_rates_are_what_the_tools_did_over_their_time(tmp_path: Path) -> None:
    context, _ = visit(tmp_path, seconds=2, size_mib=8)
    cpu, memory = list(OverheadCpu().measure(context)), list(OverheadMemory().measure(context))
    assert one(cpu, "overhead.cpu_events").value == 1000
    assert one(cpu, "overhead.cpu_float").value == 1e6
    assert one(memory, "overhead.memory_bandwidth").value == 8000
    assert one(memory, "overhead.memory_latency").value == 1e-6
    assert {sample.value for sample in OverheadKernel().measure(context)} == {1e6}
    disk = list(OverheadDisk().measure(context))
    assert one(disk, "overhead.disk_randwrite_iops").value == 20_000
    assert one(disk, "overhead.disk_seqwrite_bandwidth").value == 500 << 20
    assert one(disk, "overhead.disk_seqread_bandwidth").value == 500 << 20
    assert one(disk, "overhead.disk_randread_iops").value == one(disk, "overhead.disk_fsync_iops").value == 20_000


@pytest.mark.parametrize("workload", ALL)
@pytest.mark.parametrize("pace", [0.5, 2.0])
def test_guest_clock_off_the_hosts_pace_is_invalid(workload: type[Workload], pace: float, tmp_path: Path) -> None:
    context, _ = visit(tmp_path, Behaviour(guest_clock=pace), seconds=1)
    with pytest.raises(Invalid, match="clock"):
        list(workload().measure(context))


@pytest.mark.parametrize(
    ("workload", "command"),
    [
        (OverheadCpu, "sysbench cpu"),
        (OverheadCpu, "gauge float"),
        (OverheadMemory, "gauge triad"),
        (OverheadMemory, "gauge chase"),
        (OverheadKernel, "gauge spawn"),
        (OverheadMemory, "sysbench memory"),
        (OverheadDisk, "--rw=randwrite"),
        (OverheadDisk, "--name=layout"),
    ],
)
def test_tool_that_fails_or_hangs_is_an_error(workload: type[Workload], command: str, tmp_path: Path) -> None:
    context, driver = visit(tmp_path, seconds=1)
    driver.behaviour.fail_exec = command
    with pytest.raises(TareError, match="told to fail"):
        list(workload().measure(context))
    driver.behaviour.fail_exec, driver.behaviour.hang_exec = None, command
    with pytest.raises(TareError, match="not done after"):
        list(workload().measure(context))


def test_memory_block_is_an_eighth_of_a_small_limit(tmp_path: Path) -> None:
    for limit, block in ((128 << 20, "16"), (1 << 30, "64"), (None, "64")):
        context, _ = visit(tmp_path / block / str(limit), limits=Limits(memory_bytes=limit), seconds=1)
        assert one(list(OverheadMemory().measure(context)), "overhead.memory_bandwidth").labels == {"block_mib": block}


def test_disk_file_is_laid_out_before_and_removed_after_even_a_failure(tmp_path: Path) -> None:
    context, driver = visit(tmp_path, Behaviour(fail_exec="randwrite"), size_mib=8)
    with pytest.raises(TareError):
        list(OverheadDisk().measure(context))
    commands = driver.instances[0].commands
    assert "--name=layout" in commands[1]
    assert commands[-1] == ("rm", "-f", "/var/tmp/tare-fio")
