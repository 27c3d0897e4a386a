"""A state root of their own for tests of containers' lives, `tare` as a user calls it, and fixtures. No tests here."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from runtime.container import contact
from runtime.container.lifecycle import Containers
from runtime.driver import Host
from runtime.linux import procfs

ROOT = Path(__file__).resolve().parents[2]
IMAGE = "tare/debian:bookworm"
NONE = ("--network", "none")
FOREVER = ("sleep", "1000")
TICKING = ("sh", "-c", "while :; do echo tick; sleep 0.02; done")
TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str

    def good(self) -> str:
        """What it printed, stripped; it has not failed."""
        assert self.code == 0, self
        return self.out.strip()


@dataclass
class Tare:
    """`tare` on one state root."""

    root: Path
    variables: dict[str, str] = field(default_factory=dict)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def host(self) -> Host:
        return Host(self.root / "lib", self.root / "run")

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, **self.variables, "TARE_ROOT": str(self.root)}

    def argv(self, *words: str) -> list[str]:
        return [sys.executable, str(ROOT / "tare.py"), *words]

    def __call__(self, *words: str, data: bytes | None = None, stdin: int | None = None) -> Said:
        return self.call(self.argv(*words), data=data, stdin=stdin)

    def call(self, argv: list[str], data: bytes | None = None, stdin: int | None = None) -> Said:
        """Run `argv` with this state root."""
        done = subprocess.run(
            argv,
            input=data,
            stdin=(subprocess.DEVNULL if stdin is None else stdin) if data is None else None,
            capture_output=True,
            env=self.environment,
            timeout=TIMEOUT_S,
            cwd=self.root,
            check=False,
        )
        return Said(done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"))

    def begin(self, *words: str, **streams: Any) -> subprocess.Popen[bytes]:
        """Start a command; what still runs at the end of the test is killed."""
        wanted: dict[str, Any] = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        } | streams
        process = subprocess.Popen(self.argv(*words), env=self.environment, cwd=self.root, **wanted)
        self.started.append(process)
        return process

    def run(self, *words: str) -> Said:
        """A container in the foreground, without a network, gone at its end."""
        return self("run", "--rm", *NONE, *words)

    def up(self, *words: str) -> str:
        """A container in the background, without a network: its id."""
        return self("run", "-d", *NONE, *words).good()

    def state(self, name: str) -> dict[str, Any]:
        state: dict[str, Any] = json.loads(self("inspect", name).good())[0]["State"]
        return state

    def keeper(self) -> int:
        """The keeper's pid; 0 when there is none."""
        found = contact.connect(self.host.run)
        if found is None:
            return 0
        with found:
            return found.keeper_pid

    def residents(self) -> list[str]:
        """Whatever of containers is on the host, but for their directories."""
        groups = [str(path) for path in Path("/sys/fs/cgroup").glob("**/tare/*") if path.name in self._ids()]
        pages = [str(path) for path in self.host.run.glob("instances/*")]
        return groups + pages

    def _ids(self) -> set[str]:
        return {path.name.removeprefix("partial-") for path in (self.host.root / "containers").glob("*")}

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.communicate()
        containers = Containers(self.host)
        for record in containers.all():
            containers.remove(containers.find(record.id), force=True)
        containers.sweep()
        containers.ground.networks.retire()
        containers.close()


@contextmanager
def rooted(host: Host) -> Iterator[Tare]:
    """A fresh state root beside `host`'s, with its images."""
    directory = Path(tempfile.mkdtemp(prefix="life-", dir=host.root.parent))
    (directory / "lib").mkdir()
    (directory / "lib/images").symlink_to(host.root / "images")
    tare = Tare(directory)
    try:
        yield tare
    finally:
        tare.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def tare(bench_host: Host) -> Iterator[Tare]:
    with rooted(bench_host) as tare:
        yield tare


@pytest.fixture
def name(tare: Tare, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name for one container, which is removed after the test."""
    chosen = f"c{abs(hash(request.node.name)) % 10**9}"
    yield chosen
    tare("rm", "-f", chosen)


@contextmanager
def rooted_for_machines(host: Host) -> Iterator[Tare]:
    """The same for virtual machines, which are emulated; what libvirt knows of QEMU is shared with `host`."""
    root = Path(tempfile.mkdtemp(prefix="tv", dir="/var/tmp"))  # short: libvirt's sockets lie deep below it
    tare = Tare(root, {"TARE_ACCELERATOR": "tcg"})
    try:
        (root / "lib").mkdir()
        borrow(host, tare.host)
        yield tare
        for row in json.loads(tare("vm", "ls", "--json").good()):
            tare("vm", "rm", "-f", row["id"])
        await_no_keeper(tare.host)
        tare("clean")
    finally:
        tare.close()
        shutil.rmtree(root)


def borrow(host: Host, other: Host) -> None:
    """Let `other`, which is empty, have the images of `host` and what libvirt knows of its QEMU."""
    (other.root / "cache").mkdir(parents=True)
    (host.root / "cache/libvirt").mkdir(parents=True, exist_ok=True)
    for name in ("images", "cache/libvirt"):
        (other.root / name).symlink_to(host.root / name)


def keepers_of_machines(host: Host) -> list[int]:
    """The keepers of guests of this state root, and who is about to become one."""
    found = []
    for pid in procfs.pids():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if os.fsencode(host.run) in words and any(b"runtime.vm.keeper" in word for word in words):
            found.append(pid)
    return found


def await_no_keeper(host: Host) -> None:
    """They end by themselves, a little after their last guest."""
    while keepers_of_machines(host):
        time.sleep(0.05)


def killed(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, and reap."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def until(holds: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait for what no descriptor announces."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def conversation(tare: Tare, *words: str) -> tuple[subprocess.Popen[bytes], int]:
    """A command with a terminal, and the master's end of it."""
    master, slave = os.openpty()
    process = tare.begin(*words, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
    os.close(slave)
    return process, master


def heard(master: int, ends: bytes, timeout_s: float = 60) -> bytes:
    """What the terminal shows until it shows `ends`."""
    found, deadline = b"", time.monotonic() + timeout_s
    while ends not in found:
        left_s = deadline - time.monotonic()
        assert left_s > 0, found
        if select.select([master], [], [], left_s)[0]:
            try:
                found += os.read(master, 65536)
            except OSError:
                break
    assert ends in found, found
    return found
