"""Synthetic journals for tests: made-up figures of plausible size, marked as such in their header.

Nothing in them was measured. They exist so that the report can be tested with every kind of gap:
drivers absent or unusable, cells that failed, too few blocks, emulated or hardware VMs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from harness.results import JOURNAL, Cell, DriverEntry, Event, Facts, Line, Outcome, Record, RunHeader, to_json
from workloads.base import find_workload
from workloads.metric import Better, Metric, Phase, Sample

KINDS = {
    "native": "native",
    "container": "container",
    "docker": "container",
    "crun": "container",
    "microvm": "vm",
    "vm": "vm",
}
MIB, GIB = 1 << 20, 1 << 30

# metric: unit, better, hardware, {driver: typical value}; a driver not named has no figure.
METRICS: dict[str, tuple[str, Better, bool, dict[str, float]]] = {
    "startup.spawned": ("s", Better.LOWER, True, {"native": 0.0011, "container": 0.0032, "microvm": 0.38, "vm": 0.41}),
    "startup.userland": ("s", Better.LOWER, True, {"native": 0.0016, "container": 0.0041, "microvm": 1.9, "vm": 6.8}),
    "startup.ready": ("s", Better.LOWER, True, {"native": 0.0019, "container": 0.0046, "microvm": 2.1, "vm": 13.4}),
    "teardown.stopped": ("s", Better.LOWER, True, {"native": 0.001, "container": 0.002, "microvm": 0.2, "vm": 0.9}),
    "teardown.removed": ("s", Better.LOWER, True, {"native": 0.002, "container": 0.006, "microvm": 0.3, "vm": 1.0}),
    "footprint.image_allocated": (
        "B", Better.LOWER, False, {"native": 210 * MIB, "container": 210 * MIB, "microvm": 340 * MIB, "vm": 480 * MIB},
    ),
    "footprint.image_logical": (
        "B", Better.LOWER, False, {"native": 190 * MIB, "container": 190 * MIB, "microvm": 2 * GIB, "vm": 2 * GIB},
    ),
    "footprint.instance_allocated": (
        "B", Better.LOWER, False, {"native": 16384, "container": 40960, "microvm": 4 * MIB, "vm": 31 * MIB},
    ),
    "growth.marginal_allocated": (
        "B", Better.LOWER, False, {"native": 16384, "container": 40960, "microvm": 4 * MIB, "vm": 31 * MIB},
    ),
    "growth.written_64mib": (
        "B", Better.LOWER, False, {"native": 64 * MIB, "container": 64 * MIB, "microvm": 66 * MIB, "vm": 67 * MIB},
    ),
    "overhead.cpu_events": (
        "events/s", Better.HIGHER, True, {"native": 1180, "container": 1175, "microvm": 110, "vm": 102},
    ),
    "overhead.memory_bandwidth": (
        "MiB/s", Better.HIGHER, True, {"native": 8100, "container": 8060, "microvm": 640, "vm": 610},
    ),
    "overhead.disk_seqwrite_bandwidth": (
        "B/s", Better.HIGHER, True, {"native": 5.1e8, "container": 4.9e8, "microvm": 9e7, "vm": 8.2e7},
    ),
    "overhead.disk_randwrite_iops": (
        "operations/s", Better.HIGHER, True, {"native": 9100, "container": 8000, "microvm": 900, "vm": 850},
    ),
    "idle.cpu": ("CPU s/s", Better.LOWER, True, {"native": 2e-6, "container": 2e-6, "microvm": 0.011, "vm": 0.021}),
    "idle.memory_pss": (
        "B", Better.LOWER, False, {"native": 6e5, "container": 6.4e5, "microvm": 142 * MIB, "vm": 251 * MIB},
    ),
    "idle.memory_cgroup": ("B", Better.LOWER, False, {"container": 1.6e6, "microvm": 150 * MIB, "vm": 262 * MIB}),
}  # fmt: skip
WORKLOADS = {
    "startup": ("startup.",),
    "teardown": ("teardown.",),
    "footprint": ("footprint.",),
    "growth": ("growth.",),
    "overhead_cpu": ("overhead.cpu",),
    "overhead_memory": ("overhead.memory",),
    "overhead_disk": ("overhead.disk",),
    "idle": ("idle.",),
    "leakage": ("leakage.",),
    "density": ("density.",),
}
RAMP = (
    Metric("density.instances", "instances", Better.HIGHER, "instances running"),
    Metric("density.marginal_memory", "B", Better.LOWER, "slope of available memory"),
    Metric("density.available_memory", "B", Better.HIGHER, "host's available memory"),
    Metric("density.launch", "s", Better.LOWER, "one launch along the ramp"),
)
LEAKS = (
    Metric("leakage.rate", "events/s", Better.HIGHER, "victim's work per second", True),
    Metric("leakage.leak", "ratio", Better.LOWER, "work lost", True),
)
LEAK = {
    "native": (0.42, 0.11),
    "container": (0.02, 0.09),
    "docker": (0.02, 0.1),
    "microvm": (0.01, 0.02),
    "vm": (0.01, 0.02),
}


@dataclass(kw_only=True)
class Synthetic:
    """What the made-up run should look like; `write` puts its journal into a directory."""

    drivers: Sequence[str] = ("native", "container", "microvm", "vm")
    blocks: int = 10
    accelerator: str = "tcg"
    profile: str = "quick"
    unusable: Mapping[str, str] = field(default_factory=dict)
    failing: Mapping[tuple[str, str], str] = field(default_factory=dict)
    workloads: Sequence[str] = tuple(WORKLOADS)
    cap: int = 40
    limiter: str = "cap"
    twin: bool = True
    scale: Mapping[tuple[str, str], float] = field(default_factory=dict)
    unheld: Sequence[str] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    told: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    memory: Mapping[str, int] = field(default_factory=dict)
    seed: int = 7
    text: str = ""
    given: Mapping[tuple[str, str], Sequence[Sample]] = field(default_factory=dict)
    """Samples of cells (workload, driver) measured once, of metrics that the workloads of this repository define."""

    def write(self, directory: Path) -> Path:
        """Write journal.jsonl below `directory` and return `directory`."""
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / JOURNAL).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(to_json(line), ensure_ascii=False) + "\n" for line in self.lines())
        return directory

    def lines(self) -> Iterator[Line]:
        """Header, facts, records, events."""
        rng = random.Random(self.seed)
        yield self._header()
        yield Event(event="started", at_utc="2026-01-01T00:00:00Z")
        for driver in self.usable:
            facts = {"cpus": "1", "memory_total_kib": "262144", "kernel": "6.1.0", "clocksource": "tsc"}
            limits = (
                {
                    "name": "memory",
                    "asked": "268435456",
                    "read": str(self.memory.get(driver, 268435456)),
                    "source": "memory.max",
                    "holds": driver not in self.unheld,
                },
            )
            facts |= {"init": self.text or "agent", **self.told.get(driver, {})}
            yield Facts(driver=driver, facts=facts, limits=limits)
        for block in range(self.blocks):
            cells = [cell for cell in self.cells() if block == 0 or (cell.workload, cell.driver) not in self.given]
            rng.shuffle(cells)
            for position, cell in enumerate(cells):
                yield self._record(cell, block, position, rng)
        yield Event(event="finished", at_utc="2026-01-01T00:09:00Z", figures={"elapsed_s": 540.0, "harness_cpu_s": 9.0})

    @property
    def usable(self) -> list[str]:
        """Drivers that work in the made-up world."""
        return [driver for driver in self.drivers if driver not in self.unusable]

    def cells(self) -> Iterator[Cell]:
        """Every planned cell; native twice where there is a twin."""
        for workload in self.workloads:
            for driver in self.drivers:
                if (workload, driver) == ("density", "native"):
                    continue
                yield Cell(workload, driver, driver)
                if driver == "native" and self.twin:
                    yield Cell(workload, driver, "native~aa")
        for workload, driver in self.given:
            yield Cell(workload, driver, driver)

    def _header(self) -> RunHeader:
        metrics = [
            Metric(name, unit, better, "made up", hardware) for name, (unit, better, hardware, _) in METRICS.items()
        ]
        return RunHeader(
            run_id="synthetic",
            started_utc="2026-01-01T00:00:00Z",
            profile=self.profile,
            settings=dict(self.settings),
            seed=self.seed,
            command=f"tare bench --profile {self.profile} --seed {self.seed}",
            drivers=tuple(self._driver(name) for name in self.drivers),
            metrics=(*metrics, *RAMP, *LEAKS, *(m for name, _ in self.given for m in find_workload(name).metrics)),
            cells=tuple(self.cells()),
            host={
                "synthetic": {"note": "made-up figures: nothing in this run was measured"},
                "cpu": {"model": self.text or "Synthetic CPU", "logical": 2, "smt": False},
                "memory": {"total_bytes": 24 * GIB},
                "kernel": {"release": "6.1.0"},
                "cgroup": {"mode": "hybrid", "v1": ["cpu", "memory"]},
                "clock": {"monotonic_step_ns": 50},
                "tare": {"version": "0", "python": "CPython"},
            },
            fingerprint="0" * 64,
            image={"tare/debian:bookworm": "sha256:" + "0" * 64},
        )

    def _driver(self, name: str) -> DriverEntry:
        facts = {"accelerator": self.accelerator} if KINDS[name] == "vm" else {}
        return DriverEntry(
            name=name,
            kind=KINDS[name],
            usable=name not in self.unusable,
            reason=self.unusable.get(name, ""),
            mend="install it" if name in self.unusable else "",
            facts=facts,
        )

    def _record(self, cell: Cell, block: int, position: int, rng: random.Random) -> Record:
        reason, outcome = self.failing.get((cell.workload, cell.driver), ""), Outcome.OK
        if cell.driver in self.unusable:
            reason, outcome = self.unusable[cell.driver], Outcome.SKIPPED
        elif reason:
            outcome = Outcome.FAILED
        samples = tuple(self._samples(cell, rng)) if outcome is Outcome.OK else ()
        start_ns = 10**12 + block * 10**11 + position * 10**9
        timeline = self._timeline(samples, start_ns) if cell.workload in ("startup", "teardown") else ()
        return Record(
            cell=cell,
            block=block,
            position=position,
            started_utc="2026-01-01T00:00:00Z",
            started_ns=start_ns,
            elapsed_ns=10**9,
            outcome=outcome,
            reason=reason,
            samples=samples,
            timeline=timeline,
            host_state={"steal": 0.0, "busy": 0.5},
        )

    def _samples(self, cell: Cell, rng: random.Random) -> Iterator[Sample]:
        if (cell.workload, cell.driver) in self.given:
            yield from self.given[cell.workload, cell.driver]
        elif cell.workload == "density":
            yield from self._ramp(cell.driver, rng)
        elif cell.workload == "leakage":
            yield from self._leaks(cell.driver, rng)
        else:
            for name, (_, _, _, typical) in METRICS.items():
                if name.startswith(WORKLOADS[cell.workload]):
                    value = typical.get("container" if cell.driver == "docker" else cell.driver)
                    if value is not None:
                        noise = 1.0 if name.startswith(("footprint", "growth")) else rng.gauss(1, 0.012)
                        yield Sample(name, value * noise * self.scale.get((name, cell.driver), 1.0))
        if cell.workload == "startup":
            yield Sample("startup.ready", 99.0, Phase.WARMUP)

    def _ramp(self, driver: str, rng: random.Random) -> Iterator[Sample]:
        slope, launch = (1.1 * MIB, 0.005) if KINDS[driver] == "container" else (145 * MIB, 2.3)
        yield Sample("density.instances", self.cap, labels={"limiter": self.limiter})
        yield Sample("density.marginal_memory", slope * rng.gauss(1, 0.02))
        for n in range(0, self.cap + 1, max(1, self.cap // 20)):
            yield Sample("density.available_memory", 20 * GIB - n * slope * rng.gauss(1, 0.01), labels={"n": str(n)})
            yield Sample("density.launch", launch * rng.gauss(1.1, 0.05), labels={"n": str(n)})

    def _leaks(self, driver: str, rng: random.Random) -> Iterator[Sample]:
        for name, leak in zip(("placebo", "cpu", "fsync"), (0.0, *LEAK[driver]), strict=True):
            lost = (leak + rng.gauss(0, 0.006)) * self.scale.get(("leakage.leak", driver), 1.0)
            yield Sample("leakage.rate", 1000 * (1 - lost), labels={"condition": name})
            yield Sample("leakage.leak", lost, labels={"antagonist": name})
        yield Sample("leakage.rate", 1000.0, labels={"condition": "entitled"})

    def _timeline(self, samples: Sequence[Sample], start_ns: int) -> tuple[tuple[str, int], ...]:
        at = {s.metric.partition(".")[2]: start_ns + int(s.value * 1e9) for s in samples if s.phase is Phase.MEASURE}
        return (("request", start_ns), *sorted(at.items(), key=lambda item: item[1]))
