"""A Docker engine of our own, where `dockerd` is installed and none runs: started, used, gone without a trace.

It has its own data, state, socket, control group and containerd namespace, no bridge and no packet rules, and knows
nothing of the host's configuration of Docker. Its mounts are in a mount namespace that ends with it. Processes that
share a state root share the engine; whoever started it owns it. Not what is asked of it: that is the driver's.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from runtime.container.leftovers import MARK, present, remove, standing
from runtime.driver import Host
from runtime.errors import TareError
from runtime.ledger import Entry, Ledger, Resource, make_directory, new_id, process_start
from runtime.linux import flock
from runtime.linux.pidfd import Pidfd

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
_POLL_S = 0.02  # a daemon tells nobody when it listens
_SOCKET_NAME_MAX = 107


class Engine:
    """At most one a state root. Construction touches nothing."""

    def __init__(self, host: Host, driver: str) -> None:
        self.directory = host.run / "docker"
        self.data = host.root / "docker"
        self.socket = self.directory / "docker.sock"
        self._lock = host.run / "docker.lock"
        self._ledger, self._driver = Ledger(host.run), driver
        self._entry: Entry | None = None
        self._noted: list[Resource] = []
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Have it answer: by joining the one there is, or by starting one. Raises TareError, leaving nothing."""
        deepest = self.directory / "exec/containerd/containerd-debug.sock"
        if len(os.fsencode(deepest)) > _SOCKET_NAME_MAX:
            raise TareError(
                f"engine below {self.directory}", "too long a path for sockets", "choose a shorter TARE_ROOT"
            )
        make_directory(self.directory.parent)
        with flock.held(self._lock):
            if not answers(self.socket):
                try:
                    self._start()
                except BaseException:
                    self.stop()
                    raise

    def _start(self) -> None:
        engine_id = new_id()
        self._entry = self._ledger.open(engine_id, self._driver)
        for kind, value in (("mark", engine_id), ("cgroup", engine_id), ("dir", str(self.directory))):
            self._note(kind, value)
        make_directory(self.directory)
        make_directory(self.data)
        settings = self.directory / "daemon.json"
        settings.write_text("{}")
        log = self.directory / "dockerd.log"
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command(engine_id, settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, MARK: engine_id},
                start_new_session=True,
            )
        self._note("pid", f"{self._process.pid}:{process_start(self._process.pid)}")
        deadline = time.monotonic() + START_TIMEOUT_S
        with Pidfd.of(self._process.pid) as daemon:
            while not answers(self.socket):
                if daemon.wait(_POLL_S):
                    raise TareError("dockerd", f"it ended at once: {_tail(log)}")
                if time.monotonic() > deadline:
                    raise TareError("dockerd", f"no answer after {START_TIMEOUT_S:g} s: {_tail(log)}")

    def _note(self, kind: str, value: str) -> None:
        assert self._entry is not None
        self._noted.append(Resource(kind, value))
        self._entry.note(kind, value)

    def _command(self, engine_id: str, settings: Path) -> list[str]:
        return [
            *("unshare", "--mount", "--propagation", "private", "dockerd", f"--config-file={settings}"),
            f"--data-root={self.data}",
            f"--exec-root={self.directory}/exec",
            f"--pidfile={self.directory}/dockerd.pid",
            f"--host=unix://{self.socket}",
            f"--cgroup-parent=/tare/{engine_id}",
            "--exec-opt=native.cgroupdriver=cgroupfs",
            f"--containerd-namespace={engine_id}",
            f"--containerd-plugins-namespace={engine_id}-plugins",
            *("--bridge=none", "--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false"),
            *("--storage-driver=overlay2", "--log-level=warn"),
        ]

    def stop(self) -> None:
        """End it, if it is ours, with all that it started. Raises TareError naming what is left."""
        entry, self._entry = self._entry, None
        if entry is None:
            return
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        remove(list(present(self._noted)))
        left = list(standing(self._noted))
        entry.close(gone=not left)
        if left:
            raise TareError("engine", f"left behind: {left[0].kind} {left[0].value}", "run: tare clean")

    def forget(self) -> list[str]:
        """Remove what it keeps from one run to the next, unless somebody's engine is at it; a line each."""
        if not self.data.exists() or answers(self.socket):
            return []
        shutil.rmtree(self.data)
        return [f"docker: images of our own engine, {self.data}"]


def answers(path: Path) -> bool:
    """Whether an engine answers at a socket."""
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.settimeout(5.0)
        probe.connect(os.fspath(path))
        probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        return b" 200 " in probe.recv(64)
    return False


def _tail(log: Path) -> str:
    return " ".join(log.read_text(errors="replace")[-400:].split())
