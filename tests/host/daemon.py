"""A libvirt daemon of the tests' own: files and sockets in a mount namespace, seen by nobody else. No tests here."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.linux.pidfd import Pidfd
from tests.conftest import skip_or_fail
from tests.host.life import ROOT

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
# A daemon takes a QEMU for alive until it has been reaped, and there are inits that take a minute for it.
_REAPER = """\
import os, subprocess, sys
from runtime.linux.syscalls import prctl
from runtime.vm.adoption import PR_SET_CHILD_SUBREAPER
prctl(PR_SET_CHILD_SUBREAPER, 1)
subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "sh", "-c", *sys.argv[1:]])
try:
    while True:
        os.wait()
except ChildProcessError:
    pass
"""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One that answers. `uri` leads to it."""

    top: Path

    @property
    def uri(self) -> str:
        return f"qemu:///system?socket={self.top}/sock/libvirt-sock"

    def kill(self) -> None:
        with Pidfd.of(int((self.top / "pid").read_text())) as process:
            process.signal(signal.SIGKILL)
            assert process.wait(_START_S)


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
        reaper = subprocess.Popen([sys.executable, "-c", _REAPER, _START, "sh", str(top)], cwd=ROOT)
        try:
            deadline = time.monotonic() + _START_S
            while not (top / "sock/libvirt-sock").exists():
                assert reaper.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            started = Daemon(top)
            with Pidfd.of(int((top / "pid").read_text())) as process:
                try:
                    yield started
                finally:
                    process.signal(signal.SIGTERM)
                    if not process.wait(_START_S):
                        process.signal(signal.SIGKILL)
                        process.wait(_START_S)
        finally:
            reaper.kill()
            reaper.wait()
    finally:
        shutil.rmtree(top)
