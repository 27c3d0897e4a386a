"""A driver and its instances that live in memory: deterministic timelines, usage and tool output, failures on request.

For tests of workloads and of the harness. Nothing is launched; only small files are written below the
host's roots, so that disk footprints have something to walk.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from runtime.driver import Driver, Host, Kind, Prepared
from runtime.errors import TareError
from runtime.instance import Availability, DiskPaths, ExecResult, Instance, LimitReading, Timeline, Usage
from runtime.spec import ImageRef, InstanceSpec, NetworkMode

# Seconds from the request to spawned, userland, ready; then from closing to stopped, removed.
PHASES = {
    Kind.NATIVE: (0.001, 0.002, 0.004, 0.001, 0.002),
    Kind.CONTAINER: (0.002, 0.004, 0.006, 0.002, 0.005),
    Kind.VM: (0.4, 3.0, 8.0, 0.5, 0.7),
}
SPEC = InstanceSpec(image=ImageRef("tare/debian", tag="bookworm"))


@dataclass
class Behaviour:
    """How a fake behaves; a test may change it while instances live.

    `fail_launch` answers with the error of the launch of that ordinal (from 0), or None. An exec whose
    words hold `fail_exec` exits 1, `hang_exec` runs into its time-out, and `die_exec` kills the instance.
    `reply` answers commands before the built-in answers do. `leak` is the share of its rate a victim
    loses while any neighbour's stress-ng runs, `idle_leak` beside one that is idle but not frozen.
    `jitter` is the relative spread of timelines and rates. With `lies` every launch and every readiness says
    success, and nothing runs.
    """

    usable: bool = True
    reason: str = "told to be unusable"
    mend: str = "tell it otherwise"
    facts: dict[str, str] = field(default_factory=dict)
    fail_launch: Callable[[int], Exception | None] = lambda ordinal: None
    fail_exec: str | None = None
    hang_exec: str | None = None
    die_exec: str | None = None
    reply: Callable[[FakeInstance, Sequence[str]], ExecResult | None] = lambda instance, argv: None
    leave_on_close: bool = False
    slowness: float = 1.0
    jitter: float = 0.0
    seed: int = 0
    leak: float = 0.0
    idle_leak: float = 0.0
    limits_hold: bool = True
    limits_bite: bool = True
    guest_clock: float = 1.0
    launch_s: float = 0.0
    exec_s: float = 0.0
    lies: bool = False


class FakeInstance(Instance):
    """An instance that is its own record: `commands` run so far, `closed`, `running` antagonists."""

    def __init__(self, driver: FakeDriver, spec: InstanceSpec, ordinal: int) -> None:
        self.driver, self.spec, self.ordinal = driver, spec, ordinal
        self.id = f"tare-{ordinal:012x}"
        self.commands: list[tuple[str, ...]] = []
        self.closed = self.paused = False
        self.running = 0
        self._shown = ""
        self._beacon_lit = threading.Event()
        self._dead = threading.Event()
        self._interrupt = threading.Event()
        self._cpu_ns = 10_000_000
        self._rng = random.Random(f"{driver.behaviour.seed}/{driver.name}/{ordinal}")
        self.directory = driver.host.run / "instances" / self.id
        self.directory.mkdir(parents=True)
        (self.directory / "own").write_bytes(b"x" * 4096)
        self.timeline = Timeline()
        spawned, userland, ready = (self._wobble(seconds) for seconds in PHASES[driver.kind][:3])
        request_ns = time.monotonic_ns() - round(max(spawned, userland, ready) * 1e9)
        for name, seconds in (("request", 0.0), ("spawned", spawned), ("userland", userland), ("ready", ready)):
            self.timeline.stamp(name, request_ns + round(seconds * 1e9))

    def _wobble(self, value: float) -> float:
        behaviour = self.driver.behaviour
        return value * behaviour.slowness * math.exp(self._rng.gauss(0, 1) * behaviour.jitter)

    def host_pids(self) -> tuple[int, ...]:
        return () if self._dead.is_set() else (4_000_000 + self.ordinal,)

    def wait_ready(self, timeout_s: float) -> None:
        if not self.driver.behaviour.lies:
            self._demand_alive()

    def exec(self, argv: Sequence[str], timeout_s: float) -> ExecResult:
        self._demand_alive()
        behaviour, text = self.driver.behaviour, " ".join(argv)
        self.commands.append(tuple(argv))
        if behaviour.exec_s:
            self._dead.wait(behaviour.exec_s)
        if behaviour.hang_exec is not None and behaviour.hang_exec in text:
            self._dead.wait(min(timeout_s, 0.05))
            raise TareError(f"command {text!r}", f"not done after {timeout_s:g} s")
        if behaviour.die_exec is not None and behaviour.die_exec in text:
            self.kill()
        self._demand_alive()
        if behaviour.fail_exec is not None and behaviour.fail_exec in text:
            return ExecResult(tuple(argv), 1, b"", b"told to fail", 1_000_000)
        return behaviour.reply(self, argv) or self._answer(tuple(argv), text, timeout_s)

    def _answer(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        if text == "nproc":
            return ExecResult(argv, 0, b"2\n", b"", 1_000_000)
        if "--version" in text or ("--memory-total-size=" in text and _number(text, "--memory-total-size") <= 64):
            return ExecResult(argv, 0, b"fake 1.0\n", b"", 5_000_000)
        for word, answer in (
            ('[ -s "$1" ]', self._mounted),
            ("msgget", self._beacon),
            ("fork;", self._fork),
            ("$user + $system", self._count),
            ("/proc/self/ns/", self._look),
            ("kill -INT", self._kill_antagonist),
            ("stress-ng", self._stress),
            ("sysbench cpu", self._sysbench_cpu),
            ("sysbench memory", self._sysbench_memory),
            ("fio ", self._fio),
            ("gauge ", self._gauge),
            ("iperf3 --client", self._iperf3),
            ("oom_score_adj", self._allocate),
            ("of=/var/tmp", self._write_file),
            ("find /usr/lib", self._largest),
            ('of="$0" bs=1 seek', self._copy_up),
        ):
            if word in text:
                return answer(argv, text, timeout_s)
        return ExecResult(argv, 0, b"", b"", 1_000_000)

    def _fork(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        limit = self.spec.limits.pids if self.driver.behaviour.limits_bite else None
        granted = min(int(argv[-1]), int(argv[-1]) if limit is None else limit - 2)
        return ExecResult(argv, 0, f"{granted}\n".encode(), b"", 1_000_000)

    def _count(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        before = self._cpu_ns
        done = self._sysbench_cpu(argv, text, timeout_s)
        return replace(done, stdout=done.stdout + f"own {(self._cpu_ns - before) / 1e9:.2f}\n".encode())

    def _beacon(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        self._shown = argv[-5]  # the nonce
        self._beacon_lit.set()
        return ExecResult(argv, 0, b"", b"", 1_000_000)

    def _mounted(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        self._beacon_lit.wait(5)
        return ExecResult(argv, 0, b"mounted 0\n", b"", 1_000_000)

    def _look(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        """Its own namespaces: it sees what it shows itself, and nothing of the host's."""
        own = self._shown == "".join(argv[4:6])
        return ExecResult(argv, 0, look(self.id, own), b"", 1_000_000)

    def _timed(self, argv: tuple[str, ...], seconds: float, stdout: str, threads: float = 1.0) -> ExecResult:
        """A finished tool that took `seconds` and used as many CPUs as its threads and limit allow."""
        limit = self.spec.limits.cpus if self.driver.behaviour.limits_bite else None
        cpus = min(threads, limit or threads)
        self._cpu_ns += round(cpus * seconds * 1e9)
        elapsed_ns = round((seconds * self.driver.behaviour.guest_clock + 0.005) * 1e9)
        return ExecResult(argv, 0, stdout.encode(), b"", elapsed_ns)

    def _rate(self, rate: float) -> float:
        behaviour = self.driver.behaviour
        others = [other for other in self.driver.instances if other is not self and not other.paused]
        lost = behaviour.leak if any(other.running for other in others) else behaviour.idle_leak if others else 0.0
        return rate / self._wobble(1.0) * (1 - lost)

    def _sysbench_cpu(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        seconds, threads = _number(text, "--time"), _number(text, "--threads", 1)
        events = round(self._rate(1000.0) * seconds * threads)
        stdout = (
            "sysbench 1.0.20 (using system LuaJIT 2.1.0-beta3)\n\nCPU speed:\n"
            f"    events per second: {events / seconds:8.2f}\n\nGeneral statistics:\n"
            f"    total time:                          {seconds:.4f}s\n"
            f"    total number of events:              {events}\n"
        )
        return self._timed(argv, seconds, stdout, threads)

    def _sysbench_memory(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        seconds, block_mib = _number(text, "--time"), _number(text, "--memory-block-size")
        blocks = round(self._rate(8000.0) * seconds / block_mib)
        mib = blocks * block_mib
        stdout = (
            f"Total operations: {blocks} ({blocks / seconds:8.2f} per second)\n\n"
            f"{mib:.2f} MiB transferred ({mib / seconds:.2f} MiB/sec)\n\nGeneral statistics:\n"
            f"    total time:                          {seconds:.4f}s\n"
            f"    total number of events:              {blocks}\n"
        )
        return self._timed(argv, seconds, stdout)

    def _fio(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        seconds = _number(text, "--runtime", 500) / 1000
        size = 4096 if "--bs=4k" in text else 1 << 20
        ios = round(self._rate(20_000 if size == 4096 else 500) * seconds)
        done = {"io_bytes": ios * size, "total_ios": ios, "runtime": round(seconds * 1000)}
        idle = {"io_bytes": 0, "total_ios": 0, "runtime": 0}
        ways = {"read": done, "write": idle} if re.search("--rw=(rand)?read", text) else {"read": idle, "write": done}
        job = {"jobname": "tare", "error": 0, **ways}
        return self._timed(argv, seconds, json.dumps({"fio version": "fio-3.33", "jobs": [job]}))

    def _gauge(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        word = argv[1]
        if word == "nothing":
            return ExecResult(argv, 0, b"", b"", 1_000_000)
        if word in ("place", "serve"):
            address = ["192.0.2.1"] if self._on_host else [f"10.87.0.{self.ordinal + 2}"]
            place = {"addresses": address, "gateway": "192.0.2.254" if self._on_host else "10.87.0.1"}
            return ExecResult(argv, 0, json.dumps(place).encode(), b"", 1_000_000)
        seconds = float(argv[2]) or 0.001
        work = {"work": round(self._rate(1e6) * seconds), "elapsed_s": seconds}
        return self._timed(argv, seconds, json.dumps(work))

    def _iperf3(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        seconds = _number(text, "--time")
        sums = {"bytes": round(self._rate(1e9) * seconds), "seconds": seconds}
        return self._timed(argv, seconds, json.dumps({"end": {"sum_sent": sums, "sum_received": sums}}))

    @property
    def _on_host(self) -> bool:
        return self.driver.kind is Kind.NATIVE or self.spec.network.mode is NetworkMode.HOST

    def _stress(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        """Burn until interrupted, killed or out of time, as the real one does."""
        self.running += 1
        self._interrupt.wait(min(timeout_s, _number(text, "--timeout", 60)))
        self._interrupt.clear()
        self.running -= 1
        self._demand_alive()
        stressor = "hdd" if "--hdd" in text else "cpu"
        line = f"stress-ng: metrc: [9] {stressor:<13} 4200      2.00      1.99      0.01      2100.00        2100.00\n"
        return ExecResult(argv, 0, b"", line.encode(), 2_000_000_000)

    def _kill_antagonist(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        self._interrupt.set()
        return ExecResult(argv, 0, b"", b"", 1_000_000)

    def _allocate(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        limit, wanted = self.spec.limits.memory_bytes, _number(text, "bs")
        beyond = limit is not None and wanted > limit and self.driver.behaviour.limits_bite
        return ExecResult(argv, 137 if beyond else 0, b"", b"Killed" if beyond else b"", 1_000_000)

    def _write_file(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        name = text.split("of=/var/tmp/")[1].split(maxsplit=1)[0]
        with (self.directory / name).open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, round(_number(text, "count") * (1 << 20)))
        return ExecResult(argv, 0, b"", b"", 1_000_000)

    def _largest(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        return ExecResult(argv, 0, b"2097152 /usr/lib/large.so\n", b"", 1_000_000)

    def _copy_up(self, argv: tuple[str, ...], text: str, timeout_s: float) -> ExecResult:
        with (self.directory / "copied").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 2097152)
        return ExecResult(argv, 0, b"", b"", 1_000_000)

    def usage(self) -> Usage:
        self._demand_alive()
        self._cpu_ns += 1_000_000
        if self.driver.kind is Kind.NATIVE:
            return Usage(method="procfs", cpu_ns=self._cpu_ns, pss_bytes=1 << 20, pids=1)
        return Usage(method="cgroup v1", cpu_ns=self._cpu_ns, memory_bytes=3 << 20, pss_bytes=1 << 20, pids=1)

    def disk_paths(self) -> DiskPaths:
        return DiskPaths(shared=(self.driver.host.root / "image",), exclusive=(self.directory,))

    def limit_readings(self) -> tuple[LimitReading, ...]:
        if self.driver.kind is Kind.NATIVE:
            return ()
        holds, limits = self.driver.behaviour.limits_hold, self.spec.limits
        asked = {"cpus": limits.cpus, "memory_bytes": limits.memory_bytes, "pids": limits.pids}
        return tuple(
            LimitReading(name=name, asked=str(value), read=str(value) if holds else "max", source="fake", holds=holds)
            for name, value in asked.items()
            if value is not None
        )

    def alive(self) -> bool:
        return not self._dead.is_set()

    def pause(self) -> None:
        self._demand_alive()
        self.paused = True

    def resume(self) -> None:
        self._demand_alive()
        self.paused = False

    def kill(self) -> None:
        """Die as if killed from outside: everything running inside ends, every later call raises."""
        self._dead.set()
        self._interrupt.set()

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.kill()
        stopped, removed = (self._wobble(seconds) for seconds in PHASES[self.driver.kind][3:])
        closing_ns = self.timeline.stamp("closing")
        self.timeline.stamp("stopped", closing_ns + round(stopped * 1e9))
        self.timeline.stamp("removed", closing_ns + round(max(stopped, removed) * 1e9))
        if self.driver.behaviour.leave_on_close:
            raise TareError(f"instance {self.id}", "told to leave something behind", "run tare clean")
        for path in self.directory.iterdir():
            path.unlink()
        self.directory.rmdir()

    def _demand_alive(self) -> None:
        if self._dead.is_set():
            raise TareError(f"instance {self.id}", "it is gone")


class FakeDriver(Driver):
    """A driver of fakes. Not registered: pass it around, or see `register`."""

    def __init__(
        self, host: Host, *, name: str = "fake", kind: Kind = Kind.CONTAINER, behaviour: Behaviour | None = None
    ) -> None:
        super().__init__(host)
        self.name = name  # type: ignore[misc] # configurable per object here, fixed per class in real drivers
        self.kind = kind  # type: ignore[misc] # likewise
        self.behaviour = behaviour or Behaviour()
        self.instances: list[FakeInstance] = []
        self.closed = False
        self._lock = threading.Lock()

    def probe(self) -> Availability:
        behaviour = self.behaviour
        if not behaviour.usable:
            return Availability(usable=False, reason=behaviour.reason, mend=behaviour.mend, facts=dict(behaviour.facts))
        return Availability(usable=True, facts=dict(behaviour.facts))

    def prepare(self, spec: InstanceSpec) -> Prepared:
        image = self.host.root / "image"
        image.mkdir(parents=True, exist_ok=True)
        (image / "layer").write_bytes(b"i" * 65536)
        return Prepared(spec)

    def launch(self, prepared: Prepared) -> FakeInstance:
        with self._lock:
            ordinal = len(self.instances)
            error = self.behaviour.fail_launch(ordinal)
            if error is not None:
                raise error
            instance = FakeInstance(self, prepared.spec, ordinal)
            self.instances.append(instance)
        try:
            time.sleep(self.behaviour.launch_s)
        except BaseException:  # a launch that fails leaves nothing half-made
            instance.close()
            raise
        if self.behaviour.lies:
            instance.kill()
        return instance

    @property
    def ways(self) -> tuple[str, ...]:  # type: ignore[override] # as with name and kind
        return {Kind.CONTAINER: ("layer",), Kind.VM: ("whole disk", "changed clusters")}.get(self.kind, ())

    def pack(self, instance: Instance, way: str, parcel: Path) -> None:
        assert isinstance(instance, FakeInstance)
        assert instance.paused
        whole = [instance.directory, self.host.root / "image"] if way == "whole disk" else [instance.directory]
        parcel.write_bytes(b"".join(path.read_bytes() for each in whole for path in sorted(each.iterdir())))

    def unpack(self, way: str, parcel: Path, target: Path) -> None:
        parcel.rename(target)

    def leftovers(self) -> list[str]:
        return [f"dir {each.directory}" for each in self.instances if each.closed and each.directory.exists()]

    def sweep(self) -> list[str]:
        found = self.leftovers()
        for each in self.instances:
            if each.closed and each.directory.exists():
                for path in each.directory.iterdir():
                    path.unlink()
                each.directory.rmdir()
        return found

    def open_instances(self) -> list[FakeInstance]:
        """Those nobody closed."""
        return [each for each in self.instances if not each.closed]

    def close(self) -> None:
        self.closed = True


def register(
    monkeypatch: pytest.MonkeyPatch, name: str, kind: Kind = Kind.CONTAINER, behaviour: Behaviour | None = None
) -> type[FakeDriver]:
    """Make a fake known to `runtime.driver.find_driver` as `name`, for one test; each construction gets a copy."""
    chosen = behaviour or Behaviour()

    def construct(self: FakeDriver, host: Host) -> None:
        FakeDriver.__init__(self, host, name=name, kind=kind, behaviour=replace(chosen))

    monkeypatch.setitem(Driver._registry, name, FakeDriver)  # undone after the test, whatever the next line registers
    return type(f"Fake_{name}", (FakeDriver,), {"name": name, "kind": kind, "__init__": construct})


def fake_host(directory: Path) -> Host:
    """A host whose roots lie below `directory`."""
    return Host(root=directory / "lib", run=directory / "run")


def look(name: str, own: bool) -> bytes:
    """What a look for stimuli prints on the side called `name`; `own` says whether the stimuli are made there."""
    seen = {kind: int(own and kind != "mount") for kind in ("pid", "net", "mount", "ipc", "user")}
    links = [f"link-{kind} {kind}:[{name}]" for kind in ("mnt", "uts", "ipc", "pid", "net", "user", "cgroup", "time")]
    lines = [*(f"{kind} {value}" for kind, value in seen.items()), f"boot {name}", f"name {name}", *links, "path /"]
    return "\n".join([*lines, f"line 1 0 0:1 / / rw - {name}"]).encode()


def _number(text: str, name: str, default: float | None = None) -> float:
    """The number after `name=` or `name ` in a command line."""
    match = re.search(rf"(?:^|\s){re.escape(name)}[= ](\d+(?:\.\d+)?)", text)
    if match is None:
        if default is None:
            raise AssertionError(f"no {name} in {text!r}")
        return default
    return float(match[1])
