"""Real engines for tests and benchmarks, each private to its test: a Docker engine and a registry on loopback.

Nothing of the host's own Docker is touched: own data root, socket and pid file, no bridge, no rules. Ended by pid.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.linux.pidfd import Pidfd
from tests.conftest import skip_or_fail
from tests.ports import free_port

START_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class DockerEngine:
    """A running engine; `docker(...)` is its command line."""

    directory: Path

    @property
    def socket(self) -> Path:
        return self.directory / "docker.sock"

    def command(self, *words: str) -> list[str]:
        """The argv of `docker WORDS…` against this engine."""
        return ["docker", "--host", f"unix://{self.socket}", *words]

    def docker(self, *words: str, timeout_s: float = 120, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `docker WORDS…`; a failure shows what it printed."""
        done = subprocess.run(
            self.command(*words),
            check=False,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"docker {' '.join(words)}: exit {done.returncode}: {done.stderr or done.stdout}")
        return done

    def load_rootfs(self, rootfs: Path, name: str) -> None:
        """Make the directory `rootfs` an image of the engine."""
        with subprocess.Popen(["tar", "-C", rootfs, "-c", "."], stdout=subprocess.PIPE) as tar:
            subprocess.run(self.command("import", "-", name), stdin=tar.stdout, check=True, capture_output=True)


def _need(*programs: str) -> None:
    for program in programs:
        if shutil.which(program) is None:
            skip_or_fail(f"{program} is not installed")


@contextmanager
def docker_engine(directory: Path, runtimes: Mapping[str, Path] | None = None) -> Iterator[DockerEngine]:
    """A `dockerd` that keeps everything below `directory` (short: it holds sockets) and knows `runtimes` by name."""
    _need("docker", "dockerd")
    engine = DockerEngine(directory)
    extra = [f"--add-runtime={name}={path}" for name, path in (runtimes or {}).items()]
    command = [
        "dockerd",
        f"--data-root={directory}/data",
        f"--exec-root={directory}/exec",
        f"--pidfile={directory}/dockerd.pid",
        f"--host=unix://{engine.socket}",
        "--iptables=false",
        "--ip6tables=false",
        "--bridge=none",
        "--ip-forward=false",
        *extra,
    ]
    with _daemon(command, directory / "dockerd.log") as process:
        _await(lambda: _answers(engine.socket), process, directory / "dockerd.log")
        try:
            yield engine
        finally:
            left = engine.docker("ps", "--all", "--quiet", check=False).stdout.split()
            if left:
                engine.docker("rm", "--force", *left, check=False)


@contextmanager
def registry(directory: Path, extra: Sequence[str] = ()) -> Iterator[str]:
    """A `docker-registry` on a free port of loopback, its data below `directory`; yields `127.0.0.1:PORT`.

    `extra` are further lines of its configuration.
    """
    _need("docker-registry")
    port = free_port()
    directory.mkdir(parents=True, exist_ok=True)
    configuration = directory / "registry.yml"
    lines = [
        "version: 0.1",
        "log: {level: warn}",
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}",
        f"http: {{addr: '127.0.0.1:{port}'}}",
        *extra,
    ]
    configuration.write_text("\n".join(lines) + "\n")
    with _daemon(["docker-registry", "serve", str(configuration)], directory / "registry.log") as process:
        _await(lambda: _listens(port), process, directory / "registry.log")
        yield f"127.0.0.1:{port}"


@contextmanager
def _daemon(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _await(ready: object, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until `ready()`; a daemon tells nobody when it listens, so it is asked every 20 ms."""
    assert callable(ready)
    deadline = time.monotonic() + START_TIMEOUT_S
    with Pidfd.of(process.pid) as daemon:
        while not ready():
            if daemon.wait(0.02) or time.monotonic() > deadline:
                raise AssertionError(f"{process.args!r} does not answer: {log.read_text()[-2000:]}")


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(os.fspath(path))
        probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        return b"200" in probe.recv(64)
    return False


def _listens(port: int) -> bool:
    with socket.socket() as probe, suppress(OSError):
        probe.connect(("127.0.0.1", port))
        return True
    return False
