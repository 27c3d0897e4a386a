"""`tare oci` with bundles written by hand: the life cycle, every refusal, hooks, crashes, terminals, exec."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.cgroups.detect import detect
from runtime.driver import Host
from runtime.linux import syscalls
from tests.bundles import TIMEOUT_S, Change, OciRuntime, image_tree, write_bundle
from tests.conftest import skip_or_fail

pytestmark = pytest.mark.usefixtures("root_user")
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
Bundle = Callable[..., Path]


@pytest.fixture(scope="module")
def rootfs(bench_host: Host) -> Path:
    return image_tree(bench_host, "tare/debian:bookworm", bench_host.root / "test-trees")


@pytest.fixture
def tare(tmp_path: Path) -> Iterator[OciRuntime]:
    """The runtime; what it made is deleted, and must have left no control group."""
    runtime = OciRuntime(tmp_path / "state")
    yield runtime
    runtime.remove_all()
    assert not list((tmp_path / "state").glob("*"))
    assert not groups(*runtime.made)


@pytest.fixture
def bundle(tmp_path: Path, rootfs: Path) -> Bundle:
    def write(*args: str, change: Change | None = None, name: str = "bundle") -> Path:
        return write_bundle(tmp_path / name, rootfs, *args, change=change)

    return write


@pytest.fixture
def subreaper() -> Iterator[None]:
    """Be what containerd's shim is: the process that inherits a container when `create` has ended."""
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 1)
    yield
    syscalls.prctl(PR_SET_CHILD_SUBREAPER, 0)


def groups(*names: str) -> list[Path]:
    """The control groups of these containers, in whatever hierarchy."""
    found = detect()
    mounts = {*found.v1.values(), *([found.v2] if found.v2 else [])}
    return [path for mount in mounts for name in names for path in mount.glob(f"*/{name}")]


def name(tmp_path: Path) -> str:
    """An id that no other test has."""
    return f"test-{os.getpid()}-{tmp_path.name[-24:]}".replace("[", "-").replace("]", "-")


def namespace(pid: int | str, kind: str) -> str:
    """What names one of a process's namespaces."""
    return str(Path(f"/proc/{pid}/ns/{kind}").readlink())


def ended(pid: int) -> int:
    """Wait for a process that became our child: its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.usefixtures("subreaper")
def test_container_is_created_started_and_inherited_by_the_caller(
    tare: OciRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    where, container = bundle("sh", "-c", "echo ran; exit 7"), name(tmp_path)
    tare.create(container, where, "--pid-file", str(tmp_path / "pid"))
    state = tare.state(container)
    pid = int((tmp_path / "pid").read_text())
    assert (state["status"], state["pid"], state["bundle"]) == ("created", pid, str(where))
    assert (where / "output").read_text() == ""
    tare("start", container)
    assert ended(pid) == 7
    assert (where / "output").read_text() == "ran\n"
    assert tare.state(container)["status"] == "stopped"
    assert container in tare("list").stdout
    tare("delete", container)
    assert "does not exist" in tare("state", container, check=False).stderr


def test_a_container_gets_at_no_program_of_the_host(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    container, written = name(tmp_path), bundle("true")
    tare.create(container, written)
    program = Path(f"/proc/{tare.state(container)['pid']}/exe").readlink()
    assert str(program).startswith("/memfd:")


def test_running_container_refuses_what_the_specification_refuses(
    tare: OciRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    where, container = bundle("sleep", "600"), name(tmp_path)
    assert "not stopped" in refused(tare, "delete", created(tare, where, container))
    tare("start", container)
    assert tare.state(container)["status"] == "running"
    assert "already exists" in tare.create(container, where, check=False)
    assert "running" in refused(tare, "start", container)
    assert "not stopped: running" in refused(tare, "delete", container)
    assert "cannot resume" in refused(tare, "resume", container)
    assert tare.state(container)["status"] == "running"
    tare("kill", container, "KILL")
    await_stopped(tare, container)
    assert "container not running" in refused(tare, "kill", container)
    assert "stopped" in refused(tare, "start", container)
    assert "stopped" in refused(tare, "exec", container, "true")
    tare("delete", container)


def created(tare: OciRuntime, where: Path, container: str) -> str:
    tare.create(container, where)
    return container


def refused(tare: OciRuntime, *words: str) -> str:
    done = tare(*words, check=False)
    assert done.returncode != 0, words
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def await_stopped(tare: OciRuntime, container: str) -> None:
    """Until its process has ended (its parent, not we, reaps it)."""
    pid = tare.state(container)["pid"]
    if pid:
        with open_pidfd(pid) as pidfd:
            assert select.select([pidfd], [], [], TIMEOUT_S)[0]


class open_pidfd:  # noqa: N801 - used like the builtin
    def __init__(self, pid: int) -> None:
        self._pid = pid

    def __enter__(self) -> int:
        self._descriptor = os.pidfd_open(self._pid)
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


BAD: dict[str, tuple[Change, str]] = {
    "no args": (lambda config: config["process"].update(args=[]), "args"),
    "relative cwd": (lambda config: config["process"].update(cwd="x"), "process.cwd"),
    "wrong type": (lambda config: config.update(hostname=7), "hostname"),
    "no root": (lambda config: config["root"].update(path="absent"), "root.path"),
    "bad namespace": (lambda config: config["linux"]["namespaces"].append({"type": "what"}), "namespaces"),
    "no such group": (lambda config: config["linux"].update(cgroupsPath="../up"), "cgroupsPath"),
    "terminal": (lambda config: config["process"].update(terminal=True), "console socket"),
    "mount": (
        lambda config: config["mounts"].append({"destination": "/x", "type": "bind", "source": "/absent/source"}),
        "absent/source",
    ),
    "program": (lambda config: config["process"].update(args=["nope"]), 'exec: "nope": executable file not found'),
    "path": (lambda config: config["process"].update(args=["/nope"]), 'exec: "/nope": no such file or directory'),
    "no program": (
        lambda config: config["process"].update(args=["/etc/passwd"]),
        'exec: "/etc/passwd": permission denied',
    ),
    "namespace path": (
        lambda config: config["linux"]["namespaces"][1].update(path="/absent/ns"),
        "/absent/ns",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_cannot_be_created_is_named_and_leaves_nothing(
    fault: str, tare: OciRuntime, bundle: Bundle, tmp_path: Path
) -> None:
    change, words = BAD[fault]
    container = name(tmp_path)
    said = tare.create(container, bundle("true", change=change), check=False)
    assert words in said
    assert said.count("\n") == 1
    assert tare("list", "--quiet").stdout == ""
    assert not groups(container)


HOOK = """#!/bin/sh
printf '%s %s %s\\n' "$1" "$(readlink /proc/self/ns/mnt)" "$(cat)" >> "$2"
"""


def test_every_hook_runs_at_its_point_in_its_namespace(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    script, log = tmp_path / "hook", tmp_path / "shared/log"
    script.write_text(HOOK)
    script.chmod(0o755)
    log.parent.mkdir()

    def change(config: dict[str, Any]) -> None:
        inside = {"destination": "/tmp", "type": "bind", "source": str(tmp_path / "shared"), "options": ["rbind", "rw"]}
        config["mounts"].append(inside)
        (tmp_path / "shared/hook").write_text(HOOK)
        (tmp_path / "shared/hook").chmod(0o755)
        points = ("prestart", "createRuntime", "createContainer", "poststart", "poststop")
        env = ["PATH=/usr/bin:/bin"]
        config["hooks"] = {
            point: [{"path": str(script), "args": ["hook", point, str(log)], "env": env}] for point in points
        }
        config["hooks"]["startContainer"] = [
            {"path": "/tmp/hook", "args": ["hook", "startContainer", "/tmp/log"], "env": env}
        ]

    where, container = bundle("sleep", "600", change=change), name(tmp_path)
    tare.create(container, where)
    pid = tare.state(container)["pid"]
    own, theirs = namespace("self", "mnt"), namespace(pid, "mnt")
    said = [line.split(" ", 2) for line in log.read_text().splitlines()]
    assert [line[0] for line in said] == ["prestart", "createRuntime", "createContainer"]
    assert [line[1] == own for line in said] == [True, True, False]
    states = [json.loads(line[2]) for line in said]
    assert [(state["status"], state["id"]) for state in states] == [("creating", container)] * 3
    assert [state["pid"] for state in states[:2]] == [pid, pid]
    assert states[0]["bundle"] == str(where)
    tare("start", container)
    said = [line.split(" ", 2) for line in log.read_text().splitlines()][3:]
    assert [(line[0], line[1]) for line in said] == [("startContainer", theirs), ("poststart", own)]
    states = [json.loads(line[2]) for line in said]
    assert [(state["status"], state["pid"]) for state in states] == [("created", 1), ("running", pid)]
    tare("delete", "--force", container)
    last = log.read_text().splitlines()[-1].split(" ", 2)
    assert (last[0], last[1]) == ("poststop", own)
    assert json.loads(last[2])["status"] == "stopped"


@pytest.mark.parametrize("point", ["prestart", "createRuntime", "createContainer"])
def test_failing_hook_of_create_undoes_it(point: str, tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    poststop = tmp_path / "poststop"

    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {
            point: [{"path": "/bin/false"}],
            "poststop": [{"path": "/bin/sh", "args": ["sh", "-c", f"cat > {poststop}"], "env": ["PATH=/usr/bin:/bin"]}],
        }

    container = name(tmp_path)
    said = tare.create(container, bundle("true", change=change), check=False)
    assert f"{point} hook #0" in said
    assert json.loads(poststop.read_text())["id"] == container
    assert tare("list", "--quiet").stdout == ""


def test_failing_start_container_hook_fails_the_start(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    def change(config: dict[str, Any]) -> None:
        config["hooks"] = {"startContainer": [{"path": "/bin/false"}]}

    where, container = bundle("echo", "ran", change=change), name(tmp_path)
    tare.create(container, where)
    assert "startContainer hook #0" in refused(tare, "start", container)
    await_stopped(tare, container)
    assert (where / "output").read_text() == ""
    tare("delete", container)


def test_create_that_is_killed_half_way_is_deleted_by_force(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> None:
    fifo = tmp_path / "reached"
    os.mkfifo(fifo)

    def change(config: dict[str, Any]) -> None:
        words = ["sh", "-c", f"echo > {fifo}; exec sleep 600"]
        config["hooks"] = {"createRuntime": [{"path": "/bin/sh", "args": words, "env": ["PATH=/usr/bin:/bin"]}]}

    container = name(tmp_path)
    tare.made.add(container)
    command = tare.command("create", "--bundle", str(bundle("true", change=change)), container)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0) as create:
        fifo.read_text()
        assert tare.state(container)["status"] in ("creating", "created")
        os.killpg(create.pid, signal.SIGKILL)
    assert groups(container)
    tare("delete", "--force", container)
    assert tare("list", "--quiet").stdout == ""
    assert not groups(container)


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


@pytest.fixture
def sleeper(tare: OciRuntime, bundle: Bundle, tmp_path: Path) -> str:
    """A container that sleeps."""
    container = name(tmp_path)
    tare.create(container, bundle("sleep", "600"))
    tare("start", container)
    return container


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


def test_pause_resume_ps_update_and_events(tare: OciRuntime, sleeper: str) -> None:
    pid = tare.state(sleeper)["pid"]
    assert json.loads(tare("ps", "--format", "json", sleeper).stdout) == [pid]
    assert tare("ps", sleeper).stdout.splitlines()[1].split()[1] == str(pid)
    tare("pause", sleeper)
    assert tare.state(sleeper)["status"] == "paused"
    assert "paused" in refused(tare, "exec", sleeper, "true")
    tare("resume", sleeper)
    assert tare.state(sleeper)["status"] == "running"
    tare("update", "--memory", "64m", "--pids-limit", "17", sleeper)
    stats = json.loads(tare("events", "--stats", sleeper).stdout)
    assert stats["data"]["memory"]["usage"]["limit"] == 64 << 20
    assert stats["data"]["pids"] == {"current": 1, "limit": 17}
    assert stats["data"]["cpu"]["usage"]["total"] > 0
    tare("pause", sleeper)
    tare("kill", sleeper, "KILL")
    await_stopped(tare, sleeper)


def test_forced_delete_takes_a_paused_container(tare: OciRuntime, sleeper: str) -> None:
    tare("pause", sleeper)
    tare("delete", "--force", sleeper)
    assert not groups(sleeper)


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
