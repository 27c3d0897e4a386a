"""Reading a recorded /proc, and the own process in the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from runtime.linux import procfs

TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Two processes in mount namespace 1, one in 2."""
    for pid, namespace, user in ((10, 1, 5), (11, 1, 7), (12, 2, 100)):
        process = tmp_path / str(pid)
        (process / "ns").mkdir(parents=True)
        (process / "ns/mnt").symlink_to(f"mnt:[{namespace}]")
        fields = " ".join(["S", *("0",) * 10, str(user), "1", "2", "3", "0", "0"])
        (process / "stat").write_text(f"{pid} (odd) name) {fields}\n")
        (process / "statm").write_text("100 3 2 1 0 1 0\n")
        (process / "io").write_text("rchar: 9\nread_bytes: 4096\nwrite_bytes: 512\ncancelled_write_bytes: 0\n")
        (process / "smaps_rollup").write_text("00-ff ---p 0 00:00 0 [rollup]\nRss: 9 kB\nPss: 3 kB\nPss_Anon: 1 kB\n")
        (process / "mountinfo").write_text(f"1 1 8:1 /var/instances/tare-{namespace}/upper / rw - ext4 x rw\n")
    (tmp_path / "self").mkdir()
    return tmp_path


def test_processes_are_found_by_their_mount_namespace(proc: Path) -> None:
    assert sorted(procfs.in_mount_namespace(1, proc)) == [10, 11]


def test_processes_are_found_by_what_they_have_mounted(proc: Path) -> None:
    assert procfs.with_mount_below(Path("/elsewhere/instances/tare-2"), proc) == (12,)
    assert procfs.with_mount_below(Path("/elsewhere/instances/tare"), proc) == ()


def test_a_mount_that_we_see_ourselves_tells_no_process_from_another(proc: Path) -> None:
    (proc / "self/mountinfo").write_text((proc / "12/mountinfo").read_text())
    assert procfs.with_mount_below(Path("/elsewhere/instances/tare-2"), proc) == ()


def test_figures_are_summed_and_the_dead_left_out(proc: Path) -> None:
    assert procfs.cpu_ns([10, 11, 99], proc) == (5 + 7 + 12) * 1_000_000_000 // TICKS
    assert procfs.pss_bytes([10, 11, 99], proc) == 6 << 10
    assert procfs.rss_bytes([10, 99], proc) == 3 * os.sysconf("SC_PAGE_SIZE")
    assert procfs.io_bytes([10, 11, 99], proc) == (8192, 1024)


def test_state_of_the_living_and_the_gone(proc: Path) -> None:
    assert (procfs.state(10, proc), procfs.state(99, proc), procfs.mount_namespace(99, proc)) == ("S", None, None)


def test_own_process_is_in_its_own_mount_namespace() -> None:
    namespace = procfs.mount_namespace(os.getpid())
    assert namespace is not None
    assert os.getpid() in procfs.in_mount_namespace(namespace)
