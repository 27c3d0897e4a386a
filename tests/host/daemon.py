"""A libvirt daemon of the tests' own: files and sockets in a mount namespace, seen by nobody else. No tests here."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import skip_or_fail

_START_S = 60.0
_DAEMON = """\
unix_sock_dir = "{top}/sock"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_outputs = "2:file:{top}/daemon.log"
"""
# As distributions have it, but that no log daemon stands beside it and the host's groups stay as they are.
_QEMU = 'stdio_handler = "file"\ncgroup_controllers = []\n'
_START = """\
set -e
mount -t tmpfs tare-test /run
mount -t tmpfs tare-test /var/cache
mount -t tmpfs tare-test /var/log
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/lib" /var/lib/libvirt
exec libvirtd --config /etc/libvirt/libvirtd.conf --pid-file "$1/pid"
"""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One that answers. `uri` leads to it."""

    process: subprocess.Popen[bytes]
    top: Path

    @property
    def uri(self) -> str:
        return f"qemu:///system?socket={self.top}/sock/libvirt-sock"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def daemon() -> Iterator[Daemon]:
    """Start it; at the end it is gone, with all that it had."""
    if shutil.which("libvirtd") is None:
        skip_or_fail("no libvirtd on PATH")
    top = Path(tempfile.mkdtemp(prefix="td", dir="/var/tmp"))
    try:
        for name in ("etc", "lib", "sock"):
            (top / name).mkdir()
        (top / "etc/libvirtd.conf").write_text(_DAEMON.format(top=top))
        (top / "etc/qemu.conf").write_text(_QEMU)
        process = subprocess.Popen(["unshare", "--mount", "sh", "-c", _START, "sh", str(top)])
        try:
            deadline = time.monotonic() + _START_S
            while not (top / "sock/libvirt-sock").exists():
                assert process.poll() is None, (top / "daemon.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield Daemon(process, top)
        finally:
            process.terminate()
            try:
                process.wait(_START_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(top)
