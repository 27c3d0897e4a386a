"""One virtual machine from request to removal: its files, control group, sockets, QEMU, and their end.

Limits bind the whole domain, by the same control groups as a container's. libvirt's own were tried
(`cgroup_controllers` with `global_quota`, shares, hard_limit): embedded on a v1 host it enforces CPU and
block I/O, but a memory limit fails where RLIMIT_MEMLOCK may not be raised; it knows neither pids, cpuacct
nor freezer; and it spreads QEMU over subgroups below a /machine that it leaves behind. On v2 with systemd
it hands the domain to machined. So QEMU is started through a few lines of sh that enter the group named
in the instance's run directory and then become QEMU: born inside, on v1 and v2, all threads and all memory.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.cgroups.cgroup import Cgroup
from runtime.cgroups.detect import open_cgroup
from runtime.channel import Channel
from runtime.command import run
from runtime.driver import Host
from runtime.errors import TareError
from runtime.identity import Identity
from runtime.instance import DiskPaths, ExecResult, Instance, LimitReading, Timeline, Usage
from runtime.ledger import Entry, Ledger, make_directory, new_id, process_start
from runtime.linux import procfs
from runtime.linux.pidfd import Pidfd
from runtime.network.ports import Port
from runtime.spec import Ready
from runtime.vm import nocloud, reflink, tuning
from runtime.vm.adoption import adopting, ending, reap, reaping
from runtime.vm.connection import Connection
from runtime.vm.console import Console
from runtime.vm.domain import DirectKernel, Domain, Firmware, domain_xml
from runtime.vm.events import BY_ITSELF, Watch
from runtime.vm.plan import JOINS, Plan, Quota, host_limits, overhead_bytes, require_host_memory
from runtime.vm.pouring import pouring
from runtime.vm.quota import VcpuQuota
from runtime.vm.room import room_for
from runtime.vm.saved import Saved
from runtime.vm.sockets import accepting, listening, peer_pid
from runtime.vm.wiring import Wiring
from runtime.vm.workload import Workload

_DIE_TIMEOUT_S = 10.0
_START_TIMEOUT_S = 120.0  # many may start at once
_END_TIMEOUT_S = 0.5  # from the end of its sockets to its own
_EVENT_TIMEOUT_S = 5.0  # from QEMU's end to libvirt's word about it
_MARKS = {"firmware": b"BdsDxe: ", "kernel": b"EFI stub: "}


class Guest(Instance):
    """A virtual machine. `Guest.launch()` makes one."""

    def __init__(self, plan: Plan, host: Host, connection: Connection, timeline: Timeline) -> None:
        self.id = new_id()
        self.timeline = timeline
        self.stop_timeout_s = plan.stop_timeout_s
        """How long `close` lets it power itself off before it is killed."""
        self._plan = plan
        self._wiring = Wiring(host, None, None)
        self._connection = connection
        self._files = host.root / "instances" / self.id
        self._sockets = host.run / "vm" / self.id
        self._limits = host_limits(plan.spec.limits, plan.quota)
        self._cgroup: Cgroup = open_cgroup(self.id, self._limits, io_path=host.root)
        self._vcpus: VcpuQuota | None = None
        if plan.quota is Quota.VCPUS and plan.spec.limits.cpus is not None:
            self._vcpus = VcpuQuota(self._cgroup, plan.spec.limits.cpus)
        self._entry: Entry = Ledger(host.run).open(self.id, plan.driver)
        self._domain: Any = None
        self._pid = 0
        self._process: Pidfd | None = None
        self._channel: Channel | None = None
        self._console: Console | None = None
        self._workload: Workload | None = None
        self._watch: Watch = connection.watch(self.id, self._lose)
        self._ending = ""
        self._paused = False
        self._closed = False

    @classmethod
    def launch(cls, plan: Plan, host: Host, connection: Connection) -> Guest:
        """Start a guest; returns when QEMU runs, and for a restored one when it knows who it is.

        When it fails, nothing is left.
        """
        timeline = Timeline()
        timeline.stamp("request")
        require_host_memory(plan.memory_bytes + overhead_bytes(plan.accelerator))
        with room_for(host):
            guest = cls(plan, host, connection, timeline)
            try:
                guest._make_files()
                guest._make_cgroup()
                guest._wiring = Wiring.open(guest._entry, host, plan.spec, guest.id)
                if plan.seed is not None:
                    nocloud.write(guest._seed, plan.seed, guest.id, guest._wiring.identity)
                guest._start()
                if plan.spec.argv:
                    guest._workload = Workload(guest.channel, plan.spec.argv, dict(plan.env))
            except BaseException:
                guest.stop_timeout_s = 0.0
                with suppress(TareError, OSError):
                    guest.close()
                raise
        return guest

    # --- coming up

    def _make_files(self) -> None:
        for directory in (self._files, self._sockets):
            self._entry.note("dir", str(directory))
            make_directory(directory)
        # Its cost belongs to the launch: whoever starts a VM from a shared base disk pays it.
        if self._plan.tuning.reflink:
            reflink.clone(self._plan.base, self._disk)
        else:
            base = ["-b", str(self._plan.base), "-F", self._plan.base_format]
            run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(self._disk)], timeout_s=60)
        if isinstance(self._plan.boot, Firmware):
            shutil.copyfile(self._plan.boot.variables, self._variables)
        self.timeline.stamp("disk")

    def _make_cgroup(self) -> None:
        for directory in self._cgroup.directories():
            self._entry.note("cgroup", str(directory))
        self._cgroup.create()
        self._cgroup.apply(self._limits)
        inside = self._cgroup.clone_into()
        joins = self._cgroup.join_files() if inside is None else (inside / "cgroup.procs",)
        if inside is not None and not self._connection.embedded:
            joins = ()  # a daemon puts QEMU's threads into groups of its own first; see `_start`
        (self._sockets / JOINS).write_text("".join(f"{path}\n" for path in joins))

    def _start(self) -> None:
        """Listen first: QEMU connects as it starts, so no byte of the guest's can come too early."""
        xml = domain_xml(self._describe())
        with listening(self._sockets / "agent") as agent, listening(self._sockets / "console") as console:
            self._entry.note("domain", self.id)
            if self._plan.saved is None:
                self._create(xml)
                self.timeline.stamp("spawned")
                ours = agent.accept()[0]
            else:
                ours = self._restore(xml, self._plan.saved, agent)
            self._pid = peer_pid(ours)
            self._process = Pidfd.of(self._pid)
            self._entry.note("pid", f"{self._pid}:{process_start(self._pid)}")
            marks = _MARKS if isinstance(self._plan.boot, Firmware) else {}
            self._console = Console(console.accept()[0], self.timeline, marks, self._watch.troubled)
            known = None if self._plan.nameless or self._plan.saved is not None else self._wiring.identity
            self._channel = Channel(ours, self.timeline, self._console.tail, identity=known)
        if self._plan.image is not None:
            self._plan.image.require_unchanged()  # so what QEMU has opened is what was verified
        if not self._connection.embedded:
            self._cgroup.add_pid(self._pid)
        if self._vcpus is not None:
            self._vcpus.bind(self._pid, self._plan.vcpus)
        if not self._connection.embedded:
            with self._connection.explained(f"virtual machine {self.id}"):
                self._domain.resume()
        if self._plan.saved is not None:
            self._channel.revive(self._new_identity())

    def _new_identity(self) -> Identity:
        """Who a restored guest is: the one it was saved from bore another name."""
        known = self._wiring.identity or Identity(hostname=self._plan.spec.hostname or self.id)
        return replace(known, machine_id=uuid.uuid4().hex)

    def _restore(self, xml: str, saved: Saved, agent: socket.socket) -> socket.socket:
        """Its call returns when all memory is in; QEMU connects long before, which another thread sees."""
        fifo = self._sockets / "state"
        with accepting(agent, lambda: self.timeline.stamp("spawned")) as came:
            with pouring(saved, xml, fifo):
                self._bring_up(lambda: self._connection.handle.restore(str(fifo)))
            with self._connection.explained(f"virtual machine {self.id}"):
                self._domain = self._connection.handle.lookupByName(self.id)
        return came[0]

    def save(self, state: Path, disk: Path) -> None:
        """End the guest with its memory in `state` and its disk as it was in `disk`; only `close` is left to do."""
        assert self._process is not None  # it has been launched
        with self._connection.explained(f"saving {self.id}"), reaping(self._process):
            self._domain.save(str(state))
        os.link(self._disk, disk)

    def _create(self, xml: str) -> None:
        """A daemon's libvirt moves QEMU's threads about while it starts; the guest then waits until all are inside."""
        flags = 0 if self._connection.embedded else self._connection.libvirt.VIR_DOMAIN_START_PAUSED
        self._domain = self._bring_up(lambda: self._connection.handle.createXML(xml, flags))

    def _bring_up(self, call: Callable[[], Any]) -> Any:
        what = f"virtual machine {self.id}"
        try:
            with (
                adopting(self._sockets, _START_TIMEOUT_S) as nurse,
                self._connection.explained(what, "see: tare doctor"),
            ):
                return call()
        except TareError as error:
            if nurse.gave_up:
                why = f"QEMU did not answer for {_START_TIMEOUT_S:g} s and was killed"
                raise TareError(what, why, "try again; see: tare doctor") from error
            raise

    def _describe(self) -> Domain:
        plan = self._plan
        boot = plan.boot
        if isinstance(boot, Firmware):
            boot = Firmware(boot.code, self._variables)
        return Domain(
            name=self.id,
            accelerator=plan.accelerator,
            emulator=plan.emulator,
            memory_bytes=plan.memory_bytes,
            vcpus=plan.vcpus,
            boot=boot,
            disk=self._disk,
            base=plan.base,
            cache=plan.cache,
            agent=self._sockets / "agent",
            console=self._sockets / "console",
            interface=self._wiring.interface,
            flat=isinstance(boot, DirectKernel),
            more_disks=plan.more_disks,
            translation_cache_mib=plan.translation_cache_mib,
            base_format=plan.base_format,
            lowest=plan.lowest,
            uuid=None if plan.saved is None else str(uuid.uuid4()),
            seed=self._seed if plan.seed is not None else None,
            tuning=plan.tuning,
            security_models=self._connection.security_models(),
        )

    @property
    def _seed(self) -> Path:
        return self._files / "seed.img"

    @property
    def _disk(self) -> Path:
        plan = self._plan
        return self._files / f"disk.{plan.base_format if plan.tuning.reflink else 'qcow2'}"

    @property
    def _variables(self) -> Path:
        return self._files / "variables.fd"

    # --- living

    def host_pids(self) -> tuple[int, ...]:
        """QEMU's process."""
        return (self._pid,) if self.alive() else ()

    def wait_ready(self, timeout_s: float) -> None:
        """Block until the guest agent's byte has come, or its own program runs. Errors carry the console's end."""
        if self._workload is not None:
            with self._talk():
                if not self._workload.wait_begun(timeout_s):
                    raise TareError("instance", f"its program has not begun after {timeout_s:g} s")
        elif self._plan.spec.ready is not Ready.SPAWNED:
            event = "ready" if self._plan.spec.ready is Ready.SERVICE else "userland"
            with self._talk() as channel:
                channel.wait(event, timeout_s)  # type: ignore[arg-type]

    def wait_userland(self, timeout_s: float) -> None:
        """Block until the guest's first user instruction, whatever its spec waits for."""
        with self._talk() as channel:
            channel.wait("userland", timeout_s)

    def exec(self, argv: Sequence[str], timeout_s: float) -> ExecResult:
        """Run `argv` inside, through the agent."""
        if self._workload is not None:
            raise TareError(f"exec in {self.id}", "it runs a program of its own, not the agent", "give no command")
        with self._talk() as channel:
            return channel.exec(argv, timeout_s, env=dict(self._plan.env))

    def wait_ended(self, timeout_s: float) -> int | None:
        """The exit code of the program that it was launched for (128 + signal), or None when that runs still."""
        if self._workload is None:
            raise TareError(f"virtual machine {self.id}", "it runs no program of its own", "give it a command")
        with self._talk():
            return self._workload.wait_ended(timeout_s)

    def output(self) -> bytes:
        """What that program has printed, the latest MiB of it."""
        return b"" if self._workload is None else self._workload.output()

    @property
    def channel(self) -> Channel:
        """The way to its agent, for commands that are not waited for in one piece."""
        if self._channel is None:
            raise TareError(f"virtual machine {self.id}", "it is closed")
        return self._channel

    @property
    def serial(self) -> Console:
        """Its console, to listen to and to type on."""
        assert self._console is not None, "a launched guest has one"
        return self._console

    @property
    def plan(self) -> Plan:
        """What it was launched from."""
        return self._plan

    def xml(self) -> str:
        """Its domain as libvirt has it."""
        with self._connection.explained(f"virtual machine {self.id}"):
            return str(self._domain.XMLDesc(0))

    def usage(self) -> Usage:
        """The control group's accounts of the whole QEMU process."""
        return replace(self._cgroup.usage(), pss_bytes=procfs.pss_bytes(self.host_pids()))

    def disk_paths(self) -> DiskPaths:
        """Shared: the base disk and what boots it. Exclusive: its own disk, the firmware's variables, a seed."""
        plan = self._plan
        if isinstance(plan.boot, Firmware):
            seeds = (self._seed,) if plan.seed is not None else ()
            return DiskPaths((plan.base, plan.boot.code), (self._disk, self._variables, *seeds))
        if plan.saved is not None:
            lowest = () if plan.lowest is None else (plan.lowest,)
            return DiskPaths((plan.base, *lowest, plan.saved.state), (self._disk,))
        return DiskPaths((plan.base, plan.boot.kernel, plan.boot.initrd), (self._disk,))

    def limit_readings(self) -> tuple[LimitReading, ...]:
        """Every limit as the control group of the whole domain, or of its vCPUs, holds it; then what it was given."""
        plan = self._plan
        vcpus = () if self._vcpus is None else self._vcpus.readings()
        given = tuning.readings(plan.tuning, self._pid, plan.memory_bytes)
        return (*self._cgroup.readings(self._limits), *vcpus, *given)

    def alive(self) -> bool:
        """Whether QEMU runs."""
        return self._process is not None and not self._process.wait(0)

    @property
    def trouble(self) -> str | None:
        """Why it stands still for ever though QEMU runs; None as long as it does not."""
        return self._watch.trouble

    def pause(self) -> None:
        """Stop all vCPUs; QEMU itself goes on."""
        with self._connection.explained(f"pause of {self.id}"):
            self._domain.suspend()
        self._paused = True

    def resume(self) -> None:
        """Let the vCPUs run again."""
        if self._paused:
            with self._connection.explained(f"resume of {self.id}"):
                self._domain.resume()
            self._paused = False

    @property
    def address(self) -> str | None:
        """Its address on the bridge; None without a network."""
        return self._wiring.address

    @property
    def ports(self) -> tuple[Port, ...]:
        """What of the host leads to it."""
        return self._wiring.ports

    def console(self) -> str:
        """What the guest has printed on its serial console, the latest MiB of it."""
        return "" if self._console is None else self._console.text()

    @contextmanager
    def _talk(self) -> Iterator[Channel]:
        """The channel; what goes wrong on it is told with what became of QEMU, if anything did."""
        if self._channel is None:
            raise TareError(f"virtual machine {self.id}", "it is closed")
        try:
            yield self._channel
        except TareError as error:
            fate = self._fate()
            if not fate:
                raise
            raise TareError(f"virtual machine {self.id}", f"{fate}; {error.why}", error.do) from error

    def mishap(self) -> str:
        """Why it is at its end otherwise than by itself; nothing where it is not."""
        fate = self._fate()
        return "" if self._watch.end == BY_ITSELF else fate

    def _fate(self) -> str:
        """Why QEMU does not run, or not on; nothing as long as it does."""
        if self._watch.trouble is not None:
            return self._watch.trouble
        # Its sockets close a little before a process has ended.
        if self._process is None or not self._process.wait(_END_TIMEOUT_S):
            return ""
        self._ending = self._ending or ending(self._process)
        reap(self._process)  # libvirt says nothing of a process that is there, be it dead
        self._watch.ended.wait(_EVENT_TIMEOUT_S)
        words = (self._watch.end, self._ending, self._connection.last_words(self.id))
        return ", ".join(word for word in words if word) or "QEMU is gone"

    def _lose(self, why: str) -> None:
        """Nothing more is to be expected of the guest: whoever waits for it is told so."""
        if self._channel is not None:
            self._channel.lose(why)

    # --- going

    def close(self) -> None:
        """Ask the guest to power off, kill it if it does not, and remove all that was made for it."""
        if self._closed:
            return
        self._closed = True
        self.timeline.stamp("closing")
        stands = self._paused or self._watch.trouble is not None
        asked = self._channel is not None and self.stop_timeout_s > 0 and self.alive() and not stands
        if self._channel is not None and asked:
            self._channel.stop()
        self._end_process(self.stop_timeout_s if asked else 0.0)
        for talk in (self._channel, self._console):
            if talk is not None:
                talk.close()
        with suppress(TareError):  # `_left` sees it
            self._wiring.close()
        self._cgroup.remove()
        for directory in (self._files, self._sockets):
            shutil.rmtree(directory, ignore_errors=True)
        left = self._left()
        self._connection.forget(self.id)
        if self._process is not None:
            self._process.close()
            self._process = None
        self._channel = None
        self._entry.close(gone=not left)
        if left:
            raise TareError(f"virtual machine {self.id}", f"still there: {', '.join(left)}", "run: tare clean")
        self.timeline.stamp("removed")
        if self._plan.image is not None and self._pid:
            self._plan.image.require_unchanged()  # else what this guest read was nobody's image

    def _end_process(self, patience_s: float) -> None:
        """Killing comes before libvirt's destroy, which would ask QEMU first and wait for it."""
        if self._process is not None:
            if not self._process.wait(patience_s):
                self._process.signal(signal.SIGKILL)
                self._cgroup.await_end(self._process.wait, _DIE_TIMEOUT_S)
            reap(self._process)
            self.timeline.stamp("stopped")
        if self._domain is not None:
            with suppress(self._connection.libvirt.libvirtError):  # it is gone, as it should be
                self._domain.destroy()
            self._domain = None

    def _is_listed(self) -> bool:
        """Whether libvirt has its domain still. A daemon that is gone has none: they end with their QEMU."""
        try:
            return self._connection.find(self.id) is not None
        except TareError:
            if self._connection.alive():
                raise
            return False

    def _left(self) -> list[str]:
        checks = (
            (self.alive(), f"process {self._pid}"),
            (self._is_listed(), f"domain {self.id}"),
            (self._cgroup.exists(), "its control group"),
            (self._files.exists(), str(self._files)),
            (self._sockets.exists(), str(self._sockets)),
        )
        return [what for there, what in checks if there] + self._wiring.left()
