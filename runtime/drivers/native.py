"""The `native` driver: the baseline, the image's own binaries on the host as if they were installed there.

A chroot and nothing more: no cgroup, no seccomp, all capabilities, the host's processes, network, /dev
and /sys. Its files are the image's directory itself (several layers are hard-linked into one), bound
read-only, on the file system it lies on, and a few plain writable directories beside it: an overlay
here would hide the overlay's own cost from every comparison with it. The one namespace is the mount
namespace, which takes nothing away and gives all mounts back by itself when the last process ends;
it is also what names the instance's processes, wherever they fork to.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic

from runtime.cgroups.files import pauses
from runtime.container.flat import flat
from runtime.container.instance import KILL_TIMEOUT_S, Holdings, LaunchedInstance
from runtime.container.launching import LauncherDriver, PreparedImage
from runtime.container.plan import Plan, Program, native_plan
from runtime.driver import Kind
from runtime.errors import TareError
from runtime.instance import Availability, Timeline, Usage
from runtime.linux import procfs
from runtime.spec import InstanceSpec, NetworkMode

SCRATCH = ("/tmp", "/var/tmp", "/run", "/root", "/home")  # noqa: S108 - inside the image
_MOUNTED_OVER = ("proc", "sys", "dev")


class NativeInstance(LaunchedInstance):
    """One chroot and its processes: everything in its mount namespace."""

    def __init__(self, spec: InstanceSpec, timeline: Timeline, holdings: Holdings, layers: Sequence[Path]) -> None:
        super().__init__(spec, timeline, holdings, layers)
        self._namespace = procfs.mount_namespace(self._child.pid)
        self._cpu_ns = 0

    def host_pids(self) -> tuple[int, ...]:
        """Every process in the instance's mount namespace."""
        return () if self._namespace is None else procfs.in_mount_namespace(self._namespace)

    def usage(self) -> Usage:
        """Summed over its processes; what an ended one used counts once its parent has waited for it."""
        pids = self.host_pids()
        read, written = procfs.io_bytes(pids)
        # Between a process's end and its parent's wait its time stands nowhere; a total never shrinks.
        self._cpu_ns = max(self._cpu_ns, procfs.cpu_ns(pids))
        return Usage(
            method="procfs",
            cpu_ns=self._cpu_ns,
            memory_bytes=procfs.rss_bytes(pids),
            pss_bytes=procfs.pss_bytes(pids),
            pids=len(pids),
            io_read_bytes=read,
            io_write_bytes=written,
        )

    def _freeze(self, frozen: bool) -> None:
        """By SIGSTOP and SIGCONT, there being no cgroup: stopped when a look finds every process stopped.

        A process that forks while the signals go out is caught by the next look.
        """
        number, stopped = (signal.SIGSTOP, "Tt") if frozen else (signal.SIGCONT, "")
        for _ in pauses(monotonic() + KILL_TIMEOUT_S):
            waiting = [pid for pid in self.host_pids() if not _in_state(pid, stopped, frozen)]
            if not waiting:
                return
            _signal_all(waiting, number)
        raise TareError(f"pause {self.id}", f"processes {waiting} do not react", "look at them with ps")

    def _end_processes(self) -> None:
        """Kill until a look finds none."""
        for _ in pauses(monotonic() + KILL_TIMEOUT_S):
            pids = self.host_pids()
            if not pids:
                return
            _signal_all(pids, signal.SIGKILL)
        raise TareError(f"removing {self.id}", f"processes {pids} do not end", "run: tare clean")


class NativeDriver(LauncherDriver):
    """Launches chroots."""

    name = "native"
    kind = Kind.NATIVE

    def probe(self) -> Availability:
        """Make and leave such a root, without a program."""
        if os.geteuid() != 0:
            return Availability(False, "a chroot needs root", "run it as root")
        try:
            reason = self.rehearse(_equip_rehearsal)
        except (TareError, OSError) as error:
            reason = str(error)
        if reason:
            return Availability(False, reason, "see: tare doctor")
        facts = {"kernel": platform.release(), "namespaces": "mount", "cgroups": "none", "root file system": "bind"}
        return Availability(True, facts=facts)

    def check(self, spec: InstanceSpec) -> None:
        """No limits can be enforced: they are ignored by design, being what the baseline is compared with."""
        if spec.mounts:
            raise TareError(f"mount {spec.mounts[0].target}", "the native baseline has none", "leave it out")
        if spec.network.mode not in (NetworkMode.NONE, NetworkMode.HOST):
            raise TareError(f"network {spec.network.mode}", "the native baseline has the host's", "use --network host")

    def prepare(self, spec: InstanceSpec) -> PreparedImage:
        """As every driver on the launcher; makes the one tree of a layered image."""
        prepared = super().prepare(spec)
        self._tree(prepared)
        return prepared

    def _tree(self, prepared: PreparedImage) -> Path:
        return flat(prepared.layers, self.host.root / "flat")

    def equip(self, prepared: PreparedImage, holdings: Holdings) -> Plan:
        """The mount point and the writable directories."""
        scratch = _make_scratch(holdings.directory, prepared.layers)
        return native_plan(
            self._tree(prepared), holdings.directory, prepared.program, scratch=scratch, streams=prepared.streams
        )

    def instance(self, prepared: PreparedImage, timeline: Timeline, holdings: Holdings) -> NativeInstance:
        """The handle."""
        return NativeInstance(prepared.spec, timeline, holdings, prepared.layers)


def _equip_rehearsal(holdings: Holdings) -> Plan:
    tree = holdings.directory / "tree"
    for name in (*_MOUNTED_OVER, "tmp"):
        (tree / name).mkdir(parents=True)
    scratch = _make_scratch(holdings.directory, [tree])
    return native_plan(tree, holdings.directory, Program(("true",)), scratch=scratch)


def _make_scratch(directory: Path, layers: Sequence[Path]) -> list[str]:
    """Make the mount point and, for each writable directory that the image has, a plain one of the same mode."""
    (directory / "root").mkdir(parents=True)
    made = []
    for target in SCRATCH:
        inside = next((path for layer in reversed(layers) if (path := layer / target[1:]).is_dir()), None)
        if inside is not None:
            plain = directory / "scratch" / target[1:]
            plain.mkdir(parents=True)
            shutil.copymode(inside, plain)
            made.append(target)
    return made


def _in_state(pid: int, stopped: str, frozen: bool) -> bool:
    state = procfs.state(pid)
    return state in (None, "Z", "X") or (state in stopped if frozen else state not in "Tt")


def _signal_all(pids: Sequence[int], number: int) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
