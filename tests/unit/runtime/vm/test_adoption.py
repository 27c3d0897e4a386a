"""With a shell that detaches a process the way libvirt does: started by a child that ends at once."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from runtime.linux import procfs
from runtime.linux.pidfd import Pidfd
from runtime.vm.adoption import STARTED, adopting, ending, reap


def detach(directory: Path, script: str) -> int:
    """Start `script` orphaned, after it has written its pid where the emulator script does."""
    inner = f"echo $$ >'{directory / STARTED}'; echo $$; exec {script}"
    outer = ["setsid", "sh", "-c", 'sh -c "$0" & ', inner]
    with subprocess.Popen(outer, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        return int(process.stdout.readline())


def parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[1])


def gone_within(pid: int, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while procfs.state(pid) is not None and time.monotonic() < deadline:
        time.sleep(0.005)
    return procfs.state(pid) is None


def test_an_orphan_inside_becomes_ours_and_is_left_running(tmp_path: Path) -> None:
    with adopting(tmp_path, 600):
        pid = detach(tmp_path, "sleep 600 >/dev/null")
    assert parent(pid) == os.getpid()
    with Pidfd.of(pid) as process:
        reap(process)  # it lives
        assert procfs.state(pid) is not None
        process.signal(9)
        assert process.wait(10)
        reap(process)
        reap(process)
    assert procfs.state(pid) is None


def test_an_orphan_that_ends_inside_is_reaped_inside(tmp_path: Path) -> None:
    with adopting(tmp_path, 600):
        pid = detach(tmp_path, "true")
        assert gone_within(pid, 10)


def test_an_orphan_afterwards_is_not_ours(tmp_path: Path) -> None:
    with adopting(tmp_path, 600):
        pass
    (tmp_path / STARTED).unlink()
    pid = detach(tmp_path, "sleep 600 >/dev/null")
    try:
        assert parent(pid) != os.getpid()
    finally:
        os.kill(pid, 9)


def test_blocks_of_several_threads_may_overlap(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with adopting(tmp_path / "one", 600):
        with adopting(tmp_path / "two", 600):
            pass
        pid = detach(tmp_path / "one", "true")
        assert gone_within(pid, 10)


def test_an_error_inside_ends_the_block_at_once_when_nothing_was_started(tmp_path: Path) -> None:
    with pytest.raises(KeyError), adopting(tmp_path, 600):
        raise KeyError


def test_one_that_does_not_get_on_is_killed_and_reaped_inside(tmp_path: Path) -> None:
    with adopting(tmp_path, 0.05) as nurse:
        pid = detach(tmp_path, "sleep 600 >/dev/null")
        assert gone_within(pid, 60)
    assert nurse.gave_up


def test_how_a_child_ended_is_told_until_it_is_reaped(tmp_path: Path) -> None:
    with adopting(tmp_path, 600):
        pid = detach(tmp_path, "sleep 600 >/dev/null")
    with Pidfd.of(pid) as process:
        assert ending(process) == ""
        process.signal(9)
        assert process.wait(60)
        assert ending(process) == "QEMU was ended by SIGKILL"
        reap(process)
        assert ending(process) == ""
