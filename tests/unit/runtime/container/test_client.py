"""The launcher as a real process, given plans that need no privileges."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from runtime.container.client import Child, LauncherClient
from runtime.container.plan import Plan, Program
from runtime.container.stepping import Step
from runtime.container.steps import Write
from runtime.errors import TareError


@pytest.fixture
def launcher() -> Iterator[LauncherClient]:
    client = LauncherClient()
    yield client
    client.close()


def shell(script: str, *before: Step, streams: tuple[tuple[int, int], ...] = ()) -> Plan:
    return Plan(namespaces=0, parts=(*before, Program(("/bin/sh", "-c", script)).step()), streams=streams)


def ended(child: Child) -> int | None:
    assert child.wait(20)
    child.close()
    return child.exit_code


def test_exit_codes_and_signals_come_back(launcher: LauncherClient) -> None:
    assert ended(launcher.launch(shell("exit 3"), [])) == 3
    assert ended(launcher.launch(shell("kill -9 $$"), [])) == 128 + signal.SIGKILL


def test_a_plan_without_a_program_ends_with_zero(launcher: LauncherClient, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    child = launcher.launch(Plan(0, (Write(os.fsencode(tmp_path / "file"), b"done"),)), [])
    assert ended(child) == 0
    assert (tmp_path / "file").read_bytes() == b"done"


def test_a_failing_step_is_named_with_its_error(launcher: LauncherClient) -> None:
    with pytest.raises(TareError, match=r"launch: write 'x' to /absent/file: .*No such file"):
        launcher.launch(shell("true", Write(b"/absent/file", b"x")), [])


@pytest.mark.parametrize(("path", "code"), [("/absent", 127), ("/etc/passwd", 126), ("/etc/passwd/x", 127)])
def test_a_program_that_cannot_run_has_its_exit_code(launcher: LauncherClient, path: str, code: int) -> None:
    with pytest.raises(TareError, match=f"command '{path}'") as caught:
        launcher.launch(Plan(0, (Program((path,)).step(),)), [])
    assert caught.value.exit_code == code


def test_descriptors_arrive_where_they_belong_and_no_others(launcher: LauncherClient) -> None:
    read, written = os.pipe()
    child = launcher.launch(shell("ls /proc/self/fd; echo three >&3", streams=((0, 1), (0, 3))), [written])
    os.close(written)
    assert ended(child) == 0
    with os.fdopen(read) as output:
        # ls itself opens /proc/self/fd as its next free descriptor
        assert output.read().split() == ["0", "1", "2", "3", "4", "three"]


@pytest.fixture
def background() -> Iterator[None]:
    """As who is started by a shell's `&` or nohup, with a signal blocked as well."""
    ignored = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGQUIT, signal.SIGHUP)}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR2,))
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    for number, handler in ignored.items():
        signal.signal(number, handler)


def test_signals_have_their_defaults_and_the_session_is_its_own(background: None, launcher: LauncherClient) -> None:
    read, written = os.pipe()
    script = "grep -E 'Sig(Ign|Blk)' /proc/self/status; ps -o sid= -p $$ | tr -d ' '; echo $$"
    child = launcher.launch(shell(script, streams=((0, 1),)), [written])
    os.close(written)
    assert ended(child) == 0
    with os.fdopen(read) as output:
        words = output.read().split()
    assert words[1] == words[3] == "0" * 16
    assert words[4] == words[5]


def test_environment_is_what_was_asked_for_and_nothing_else(
    launcher: LauncherClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    read, written = os.pipe()
    plan = Plan(0, (Program(("/usr/bin/env",), (("A", "b"),)).step(),), ((0, 1),))
    assert ended(launcher.launch(plan, [written])) == 0
    os.close(written)
    with os.fdopen(read) as output:
        assert sorted(line.partition("=")[0] for line in output) == ["A", "HOME", "PATH"]


def test_children_are_told_apart(launcher: LauncherClient) -> None:
    codes: dict[int, int | None] = {}

    def one(code: int) -> None:
        codes[code] = ended(launcher.launch(shell(f"exit {code}"), []))

    threads = [threading.Thread(target=one, args=(code,)) for code in range(1, 21)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == {code: code for code in range(1, 21)}


def test_times_are_in_order(launcher: LauncherClient) -> None:
    child = launcher.launch(shell("true"), [])
    assert ended(child) == 0
    assert child.stopped_ns is not None
    assert child.spawned_ns <= child.executed_ns <= child.stopped_ns


def test_a_child_can_be_killed_and_is_not_alive_then(launcher: LauncherClient) -> None:
    child = launcher.launch(shell("sleep 60"), [])
    assert child.alive()
    assert not child.wait(0)
    child.kill(signal.SIGKILL)
    assert ended(child) == 137
    assert not child.alive()
    child.kill(signal.SIGKILL)


def test_a_message_beyond_the_socket_is_refused(launcher: LauncherClient) -> None:
    with pytest.raises(TareError, match="takes no plan"):
        launcher.launch(shell("#" * (8 << 20)), [])
    assert ended(launcher.launch(shell("exit 4"), [])) == 4


def test_a_dead_launcher_is_reported_and_replaced(launcher: LauncherClient) -> None:
    child = launcher.launch(shell("sleep 60"), [])
    process = launcher._process
    assert process is not None
    process.kill()
    process.wait()
    assert child.wait(20)
    child.kill(signal.SIGKILL)
    os.kill(child.pid, signal.SIGKILL)
    child.close()
    assert ended(launcher.launch(shell("exit 5"), [])) == 5


def test_a_launcher_that_cannot_start_says_so() -> None:
    client = LauncherClient(python="/bin/false")
    with pytest.raises(TareError, match="launcher"):
        client.launch(shell("true"), [])
    client.close()


def test_closing_ends_the_process_and_may_be_repeated() -> None:
    client = LauncherClient()
    client.start()
    process = client._process
    assert process is not None
    client.close()
    assert process.returncode == 0
    client.close()


def test_the_launcher_imports_no_fat() -> None:
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import runtime.container.launcher
print(*sorted(sys.modules))
"""
    read, written = os.pipe()
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-I", "-S", "-c", script, str(Path(__file__).parents[4])],
        {},
        file_actions=[(os.POSIX_SPAWN_DUP2, written, 1)],
    )
    os.close(written)
    os.waitpid(pid, 0)
    with os.fdopen(read) as output:
        modules = set(output.read().split())
    assert "runtime.container.child" in modules
    assert not modules & {"pandas", "click", "pyroute2", "subprocess", "threading", "json", "pathlib", "logging"}
    # Half a megabyte each, of which every child gets the page tables, and at its end gives them back.
    assert not modules & {"typing", "socket", "enum", "re", "collections", "functools", "contextlib", "dataclasses"}


def test_launchers_own_cpu_time_is_known_and_grows() -> None:
    client = LauncherClient()
    assert client.cpu_s() == 0
    try:
        client.start()
        seen = client.cpu_s()
        deadline = time.monotonic() + 10
        while (now := client.cpu_s()) == seen == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert now > 0
    finally:
        client.close()
    assert client.cpu_s() == 0


def test_the_launchers_program_is_a_copy_that_nobody_can_change(launcher: LauncherClient) -> None:
    launcher.start()
    process = launcher._process
    assert process is not None
    assert ended(launcher.launch(shell("exit 0"), [])) == 0
    program = os.open(f"/proc/{process.pid}/exe", os.O_RDONLY)
    try:
        assert fcntl.fcntl(program, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE
    finally:
        os.close(program)


def test_descriptors_that_stand_in_each_others_place_arrive_all_the_same() -> None:
    """In a process that keeps its own low: `spawn` without the launcher."""
    script = """
import os, sys
sys.path.insert(0, sys.argv[1])
from runtime.container.plan import Plan, Program
from runtime.container.spawning import get_ready, outcome, spawn
get_ready()
ends = [os.memfd_create(name) for name in "abc"]
plan = Plan(0, (Program(("/bin/sh", "-c", "echo a >&4; echo b >&3; echo c >&6; ls /proc/self/fd >&6")).step(),),
            ((0, ends[1]), (1, ends[0]), (2, 6)))
assert [target for _, target in plan.streams[:2]] == [4, 3], ends
spawned = spawn(plan.flat(), ends)
said = outcome(spawned)
assert said.failure is None, said
assert os.waitid(os.P_PIDFD, spawned.pidfd, os.WEXITED).si_status == 0
print([os.pread(end, 99, 0).decode().split() for end in ends])
"""
    command = [sys.executable, "-I", "-S", "-c", script, str(Path(__file__).parents[4])]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.stdout.strip() == "[['a'], ['b'], ['c', '0', '1', '2', '3', '4', '5', '6']]", done.stderr
