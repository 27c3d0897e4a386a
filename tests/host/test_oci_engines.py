"""A real Docker engine and a real podman drive `tare oci` as they drive runc."""

from __future__ import annotations

import json
import os
import pty
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from runtime.linux import capabilities
from tests.bundles import TIMEOUT_S
from tests.conftest import skip_or_fail
from tests.engines import DockerEngine, docker_engine
from tests.host.oci import rootfs

__all__ = ["rootfs"]  # a fixture
pytestmark = pytest.mark.usefixtures("root_user")
IMAGE = "tare-test"
LIMITS = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")


@pytest.fixture(scope="module")
def short_directory() -> Iterator[Path]:
    """A short path: engines make sockets deep below it."""
    with tempfile.TemporaryDirectory(prefix="oci", dir="/var/tmp") as directory:
        yield Path(directory)


@pytest.fixture(scope="module")
def runtime(short_directory: Path) -> Path:
    """An executable of one name, as engines want it; it notes what it is called with."""
    path = short_directory / "tare-oci"
    log = short_directory / "calls"
    program = "from runtime.commands.ocimain import entry; entry()"
    path.write_text(f'#!/bin/sh\necho "$*" >> {log}\nexec {sys.executable} -c \'{program}\' "$@"\n')
    path.chmod(0o755)
    return path


@pytest.fixture(scope="module")
def engine(short_directory: Path, runtime: Path, rootfs: Path) -> Iterator[DockerEngine]:
    with docker_engine(short_directory / "d", {"tare": runtime}) as engine:
        engine.load_rootfs(rootfs, IMAGE)
        yield engine


class Podman:
    """podman's command line with state of its own."""

    def __init__(self, directory: Path, runtime: Path) -> None:
        self._words = [
            "podman",
            *("--root", f"{directory}/root", "--runroot", f"{directory}/run", "--tmpdir", f"{directory}/tmp"),
            *("--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", str(runtime)),
        ]

    def command(self, *words: str) -> list[str]:
        return [*self._words, *words]

    def __call__(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self.command(*words), capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120, check=False
        )
        if check and done.returncode != 0:
            raise AssertionError(f"podman {' '.join(words)}: exit {done.returncode}: {done.stderr or done.stdout}")
        return done


@pytest.fixture(scope="module")
def podman(short_directory: Path, runtime: Path, rootfs: Path) -> Iterator[Podman]:
    if shutil.which("podman") is None:
        skip_or_fail("podman is not installed")
    podman = Podman(short_directory / "p", runtime)
    with subprocess.Popen(["tar", "-C", rootfs, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run(podman.command("import", "-", IMAGE), stdin=tar.stdout, check=True, capture_output=True)
    yield podman
    podman("rm", "--all", "--force", "--time", "0", check=False)
    subprocess.run(["umount", short_directory / "p/root/overlay"], check=False, capture_output=True)  # its own


def on_terminal(command: Sequence[str], typed: bytes = b"") -> tuple[int, bytes]:
    """Run a command whose standard streams are a terminal: its exit code and what it showed."""
    pid, master = pty.fork()
    if pid == 0:
        os.execvp(command[0], list(command))
    os.write(master, typed)
    shown = b""
    while select.select([master], [], [], TIMEOUT_S)[0]:
        try:
            block = os.read(master, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    os.close(master)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_docker_runs_a_container(engine: DockerEngine) -> None:
    done = run(engine, "sh", "-c", "echo out; echo err >&2; cat /proc/1/comm; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\nsh\n", "err\n")


def run(engine: DockerEngine, *words: str, flags: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    return engine.docker("run", "--rm", "--network", "none", "--runtime", "tare", *flags, IMAGE, *words, check=False)


@pytest.mark.parametrize(
    ("program", "code", "words"),
    [("nope", 127, "executable file not found"), ("/nope", 127, "no such file"), ("/etc", 126, "permission denied")],
)
def test_docker_tells_what_cannot_be_executed(engine: DockerEngine, program: str, code: int, words: str) -> None:
    done = run(engine, program)
    assert done.returncode == code
    assert words in done.stderr


def test_docker_gives_a_terminal(engine: DockerEngine) -> None:
    words = ("run", "--rm", "-it", "--network", "none", "--runtime", "tare", IMAGE)
    code, shown = on_terminal(engine.command(*words, "sh", "-c", "tty; read word; echo got $word; exit 3"), b"word\n")
    assert code == 3
    assert b"/dev/pts/0" in shown
    assert b"got word" in shown


@pytest.fixture
def sleeper(engine: DockerEngine) -> Iterator[str]:
    """A container of the engine with limits that sleeps."""
    limits = ("--memory", "64m", "--cpus", "0.5", "--pids-limit", "30")
    words = ("run", "--detach", "--network", "none", "--runtime", "tare", *limits, IMAGE, "sleep", "600")
    container = engine.docker(*words).stdout.strip()
    yield container
    engine.docker("rm", "--force", container)


def test_docker_executes_in_a_container(engine: DockerEngine, sleeper: str) -> None:
    assert engine.docker("exec", "-e", "A=b", "-u", "1000", sleeper, "sh", "-c", "id -u; echo $A").stdout == "1000\nb\n"
    assert engine.docker("exec", sleeper, "sh", "-c", "exit 7", check=False).returncode == 7
    assert engine.docker("exec", sleeper, "nope", check=False).returncode in (126, 127)
    code, shown = on_terminal(engine.command("exec", "-it", sleeper, "tty"))
    assert (code, b"/dev/pts/" in shown) == (0, True)


def test_docker_pauses_updates_and_measures(engine: DockerEngine, sleeper: str) -> None:
    engine.docker("pause", sleeper)
    assert engine.docker("inspect", "-f", "{{.State.Status}}", sleeper).stdout.strip() == "paused"
    engine.docker("unpause", sleeper)
    engine.docker("update", "--memory", "80m", "--memory-swap", "80m", "--cpus", "0.7", sleeper)
    stats = json.loads(engine.docker("stats", "--no-stream", "--format", "{{json .}}", sleeper).stdout)
    assert "80MiB" in stats["MemUsage"]
    assert stats["PIDs"] == "1"
    assert "sleep 600" in engine.docker("top", sleeper).stdout


def test_docker_stops_starts_and_kills(engine: DockerEngine, sleeper: str) -> None:
    engine.docker("stop", "--time", "1", sleeper)
    assert engine.docker("inspect", "-f", "{{.State.ExitCode}}", sleeper).stdout.strip() == "137"
    engine.docker("start", sleeper)
    assert engine.docker("exec", sleeper, "true").returncode == 0
    engine.docker("kill", sleeper)
    assert engine.docker("wait", sleeper).stdout.strip() == "137"


def test_docker_sees_a_container_run_out_of_memory(engine: DockerEngine) -> None:
    words = ("run", "--detach", "--network", "none", "--runtime", "tare", "--memory", "16m", "--memory-swap", "16m")
    hog = "x=a; while :; do x=$x$x; done"
    container = engine.docker(*words, IMAGE, "sh", "-c", hog).stdout.strip()
    try:
        assert engine.docker("wait", container).stdout.strip() == "137"
        assert engine.docker("inspect", "-f", "{{.State.OOMKilled}}", container).stdout.strip() == "true"
    finally:
        engine.docker("rm", "--force", container)


def test_docker_privileged_read_only_volumes_and_users(engine: DockerEngine, tmp_path: Path) -> None:
    flags = (
        "--read-only",
        "--tmpfs",
        "/scratch",
        "-v",
        f"{tmp_path}:/data",
        "--user",
        "1000:1000",
        "--workdir",
        "/data",
    )
    tmp_path.chmod(0o777)
    script = "pwd; echo x > /data/file; echo y > /scratch/z; (echo z > /etc/z) 2>/dev/null || echo refused; umask"
    done = run(engine, "sh", "-c", script, flags=flags)
    assert done.stdout == "/data\nrefused\n0022\n", done.stderr
    assert (tmp_path / "file").stat().st_uid == 1000
    done = run(engine, "sh", "-c", "grep CapEff /proc/self/status; test -w /sys", flags=("--privileged",))
    assert done.returncode == 0, done.stderr
    held = int(done.stdout.split()[1], 16)
    # An old engine does not name the newest capabilities; this host may not have all of them itself.
    assert held & (1 << capabilities.NUMBERS["CAP_SYS_ADMIN"])
    assert held > sum(1 << capabilities.NUMBERS[name] for name in capabilities.DEFAULT)


def test_podman_runs_and_tells_what_cannot_be_executed(podman: Podman) -> None:
    words = ("run", "--rm", "--network", "none", *LIMITS, IMAGE)
    done = podman(*words, "sh", "-c", "echo out; exit 3", check=False)
    assert (done.returncode, done.stdout) == (3, "out\n"), done.stderr
    assert podman(*words, "nope", check=False).returncode == 127
    assert podman(*words, "/etc", check=False).returncode == 126
    code, shown = on_terminal(podman.command(*words[:2], "-it", *words[2:], "sh", "-c", "tty; exit 4"))
    assert (code, b"/dev/pts/0" in shown) == (4, True), shown


def test_podman_life_cycle(podman: Podman) -> None:
    container = podman(
        "run", "-d", "--network", "none", *LIMITS, "--memory", "64m", IMAGE, "sleep", "600"
    ).stdout.strip()
    try:
        assert podman("exec", "-u", "1000", container, "id", "-u").stdout == "1000\n"
        assert podman("exec", container, "sh", "-c", "exit 7", check=False).returncode == 7
        assert podman("exec", container, "nope", check=False).returncode == 127
        podman("pause", container)
        assert podman("inspect", "-f", "{{.State.Status}}", container).stdout.strip() == "paused"
        podman("unpause", container)
        assert "67.11MB" in podman("stats", "--no-stream", "--format", "{{.MemUsage}}", container).stdout
        assert "sleep" in podman("top", container, "args").stdout
        podman("stop", "--time", "1", container)
        assert podman("inspect", "-f", "{{.State.ExitCode}}", container).stdout.strip() == "137"
        podman("start", container)
    finally:
        podman("rm", "--force", "--time", "0", container)
