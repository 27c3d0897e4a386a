"""`tare oci` with bundles written by hand: terminals, `run` and `exec`, and what a program inside sees."""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.detect import detect
from tests.bundles import TIMEOUT_S, OciRuntime
from tests.conftest import skip_or_fail
from tests.host.oci import Bundle, bundle, ended, name, namespace, refused, rootfs, sleeper, subreaper, tare

__all__ = ["bundle", "rootfs", "sleeper", "subreaper", "tare"]  # fixtures
pytestmark = pytest.mark.usefixtures("root_user")


@pytest.mark.usefixtures("subreaper")
def test_terminal_is_sent_over_the_console_socket(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    where = bundle(
        "sh",
        "-c",
        "tty; stty size; read word; echo got $word; exit 4",
        change=lambda config: config["process"].update(terminal=True, consoleSize={"height": 33, "width": 111}),
    )
    container = name(tmp_path)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        tare.create(container, where, "--console-socket", str(tmp_path / "s"), "--pid-file", str(tmp_path / "pid"))
        connection, _ = server.accept()
        with connection:
            message, (master, *_), _, _ = socket.recv_fds(connection, 4096, 1)
    assert message == b"/dev/ptmx"
    tare("start", container)
    said = read_until(master, b"111\r\n")
    assert said.startswith(b"/dev/pts/0\r\n33 111")
    os.write(master, b"word\n")
    assert b"got word" in read_until(master, b"got word")
    assert ended(int((tmp_path / "pid").read_text())) == 4
    os.close(master)


def read_until(master: int, wanted: bytes) -> bytes:
    said = b""
    while wanted not in said:
        assert select.select([master], [], [], TIMEOUT_S)[0], said
        said += os.read(master, 4096)
    return said


def test_run_stays_and_ends_as_the_program_ends(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    container = name(tmp_path)
    done = tare("run", "--bundle", str(bundle("sh", "-c", "echo out; echo err >&2; exit 9")), container, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (9, "out\n", "err\n")
    assert tare("list", "--quiet").stdout == ""


def test_run_passes_signals_on(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    where = bundle("sh", "-c", "trap 'echo term; exit 5' TERM; echo ready; while :; do sleep 1; done")
    container = name(tmp_path)
    tare.made.add(container)
    command = tare.command("run", "--bundle", str(where), container)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.terminate()
        assert process.stdout.read() == "term\n"
        assert process.wait(TIMEOUT_S) == 5


def test_exec_joins_the_container_and_ends_as_its_program(tare: OciRuntime, sleeper: str) -> None:
    pid = tare.state(sleeper)["pid"]
    kinds = ("mnt", "uts", "ipc", "pid", "net", "cgroup")
    script = f"for kind in {' '.join(kinds)}; do readlink /proc/self/ns/$kind; done; exit 6"
    done = tare("exec", sleeper, "sh", "-c", script, check=False)
    assert done.returncode == 6
    assert done.stdout.split() == [namespace(pid, kind) for kind in kinds]
    inside = tare("exec", sleeper, "cat", "/proc/self/status").stdout
    assert confinement(inside) == confinement(Path(f"/proc/{pid}/status").read_text())
    flags = ("--env", "A=b", "--cwd", "/usr", "--user", "1000:1000")
    assert tare("exec", *flags, sleeper, "sh", "-c", "pwd; id -u; echo $A").stdout == "/usr\n1000\nb\n"
    assert 'exec: "nope": executable file not found' in refused(tare, "exec", sleeper, "nope")
    assert tare("exec", sleeper, "sh", "-c", "kill -9 $$", check=False).returncode == 137


def confinement(status: str) -> list[str]:
    """What of a process's /proc/…/status is about privileges."""
    return [line for line in status.splitlines() if line.startswith(("Cap", "NoNewPrivs", "Seccomp"))]


def test_an_executed_program_is_in_every_group_of_its_container(tare: OciRuntime, sleeper: str) -> None:
    tare("update", "--cpuset-cpus", "0", sleeper)
    done = tare("exec", sleeper, "sh", "-c", "cat /proc/1/cgroup; echo; cat /proc/self/cgroup")
    container, program = done.stdout.split("\n\n")
    assert program.split() == container.split()


@pytest.mark.usefixtures("subreaper")
def test_detached_exec_writes_its_pid_and_belongs_to_the_caller(tare: OciRuntime, sleeper: str, tmp_path: Path) -> None:
    process = {"args": ["sh", "-c", "exit 3"], "cwd": "/", "env": ["PATH=/bin:/usr/bin"], "user": {"uid": 0, "gid": 0}}
    (tmp_path / "process.json").write_text(json.dumps(process))
    tare("exec", "--process", str(tmp_path / "process.json"), "--detach", "--pid-file", str(tmp_path / "pid2"), sleeper)
    assert ended(int((tmp_path / "pid2").read_text())) == 3


def test_preserved_descriptors_reach_the_program(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    where, container = bundle("sh", "-c", "echo word >&3; ls /proc/self/fd"), name(tmp_path)
    tare.made.add(container)
    read, write = os.pipe()
    third = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.execv(sys.argv[2], sys.argv[2:])"
    command = tare.command("run", "--bundle", str(where), "--preserve-fds", "1", container)
    done = subprocess.run(
        [sys.executable, "-c", third, str(write), *command],
        pass_fds=(write,),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    os.close(write)
    assert os.read(read, 100) == b"word\n"
    os.close(read)
    assert "3" in done.stdout.split()


def test_spec_writes_a_bundle_that_runs(tare: OciRuntime, rootfs: Path, tmp_path: Path) -> None:
    tare("spec", "--bundle", str(tmp_path))
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["root"]["path"] = str(rootfs)
    config["process"].update(terminal=False, args=["hostname"])
    path.write_text(json.dumps(config))
    assert tare("run", "--bundle", str(tmp_path), name(tmp_path)).stdout == "tare\n"


INSIDE = """
grep -E '^(Cap|NoNewPrivs|Seccomp|Uid|Gid|Groups|Sig|Umask)' /proc/self/status
cat /proc/self/limits /proc/self/oom_score_adj
env | sort
hostname; pwd; umask; ls /dev; ls -l /dev | cut -c 1-10
cut -d ' ' -f 5 /proc/self/mountinfo | grep -v /sys/fs/cgroup/ | sort
cat /proc/keys /proc/timer_list | wc -c
"""


def test_inside_looks_as_under_runc(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    """Differences that are meant: runc also joins hierarchies that limit nothing, and masks with its own null."""
    if shutil.which("runc") is None:
        skip_or_fail("runc is not installed")

    def change(config: dict[str, Any]) -> None:
        config["process"]["oomScoreAdj"] = 100
        config["process"]["rlimits"].append({"type": "RLIMIT_CORE", "soft": 0, "hard": 7})
        config["process"]["user"] = {"uid": 5, "gid": 6, "additionalGids": [7, 8], "umask": 0o027}
        config["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": []}
        config["linux"]["seccomp"]["syscalls"].append({"names": ["acct"], "action": "SCMP_ACT_ERRNO"})
        config["hostname"] = "inside"

    where, container = bundle("sh", "-c", INSIDE, change=change), name(tmp_path)
    ours = tare("run", "--bundle", str(where), container).stdout
    theirs = OciRuntime(tmp_path / "runc", ("runc",))("run", "--bundle", str(where), container).stdout
    assert ours.splitlines() == theirs.splitlines()


def test_without_a_cgroup_namespace_it_sees_its_own_group_alone(
    tare: OciRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    if detect().v2_controllers >= {"memory"}:
        pytest.skip("v2 shows what /proc/self/cgroup names")

    def change(config: dict[str, Any]) -> None:
        config["linux"]["namespaces"] = [item for item in config["linux"]["namespaces"] if item["type"] != "cgroup"]
        config["linux"]["resources"]["memory"] = {"limit": 32 << 20}

    where = bundle("cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes", change=change)
    assert tare("run", "--bundle", str(where), name(tmp_path)).stdout == f"{32 << 20}\n"


def test_a_relative_mount_destination_is_taken_from_the_root(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["mounts"].append({"destination": "mnt", "type": "tmpfs", "source": "tmpfs"})

    where = bundle("sh", "-c", "stat -f -c %T /mnt", change=change)
    assert tare("run", "--bundle", str(where), name(tmp_path)).stdout == "tmpfs\n"
