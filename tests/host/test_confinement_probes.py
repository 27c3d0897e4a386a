"""What a hostile container tries on the host that runs it, and is refused. Needs root."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runtime.container.options import IdRange
from runtime.container.spawning import Flat, outcome, spawn
from runtime.linux import syscalls
from tests.launches import Launches, Output

HOST_NULL = Path("/dev/null")


@pytest.mark.parametrize("options", [{}, {"id_range": IdRange(host_id=1 << 20)}], ids=["root", "userns"])
def test_what_hides_a_file_is_not_the_hosts_to_change(launches: Launches, options: dict[str, Any]) -> None:
    before = HOST_NULL.stat()
    script = "for f in /proc/keys /proc/timer_list /etc/os-release; do chmod 667 $f; chown 1:1 $f; touch -d @1 $f; done"
    masked = ("/proc/keys", "/proc/timer_list", "/etc/os-release")
    try:
        launches.sh(f"({script}) 2>/dev/null; true", masked_paths=masked, **options)
        after = HOST_NULL.stat()
    finally:
        HOST_NULL.chmod(before.st_mode & 0o7777)
        os.chown(HOST_NULL, before.st_uid, before.st_gid)
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


@dataclass
class _TellDumpable:
    """The first thing that a child does."""

    output: int

    def describe(self) -> str:
        return "tell"

    def execute(self) -> None:
        os.write(self.output, b"%d" % syscalls.prctl(syscalls.PR_GET_DUMPABLE))


def test_nobody_in_a_pid_namespace_looks_into_who_joins_it(launches: Launches) -> None:
    """Until it has the container's root it has the host's, and /proc/PID/root would lead a CAP_SYS_PTRACE there."""
    running = launches.start(launches.config("sleep", "300"))
    before = syscalls.prctl(syscalls.PR_GET_DUMPABLE)
    with Output() as output:
        steps = (_TellDumpable(1),)
        enter = ((f"/proc/{running.pid}/ns/pid", syscalls.CLONE_NEWPID),)
        spawned = spawn(Flat(steps, streams=((0, 1),), enter=enter), [output.descriptor])
        assert outcome(spawned).failure is None
        os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED)
        os.close(spawned.pidfd)
        assert output.text() == "0"
    assert syscalls.prctl(syscalls.PR_GET_DUMPABLE) == before
    running.kill(signal.SIGKILL)


@pytest.mark.parametrize("options", [{}, {"id_range": IdRange(host_id=1 << 20)}], ids=["root", "userns"])
def test_who_joins_a_pid_namespace_still_becomes_a_container(launches: Launches, options: dict[str, Any]) -> None:
    running = launches.start(launches.config("sleep", "300", **options))
    said = launches.sh("cat /proc/1/comm; ls /proc/self/fd | wc -l", pid=f"/proc/{running.pid}/ns/pid")
    assert said.split() == ["sleep", "4"]
    running.kill(signal.SIGKILL)
