"""Opens a run: from what the user asked for to an engine ready to go, with every objection raised first.

`tare bench` and the pytest front both come through here: `draft` decides what would be measured
without touching anything, `opened` checks the host, readies images and drivers, and begins (or
reopens) the journal. How the run then goes is `harness.runner`'s.
"""

from __future__ import annotations

import os
import secrets
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from harness import environment, journal, schedule, tune
from harness.assignment import Assignment, Observer
from harness.attempt import one_line, utc
from harness.guard import Guard
from harness.journal import Journal
from harness.profiles import Profile, find_profile
from harness.progress import duration
from harness.results import Cell, DriverEntry, Run, RunHeader
from harness.runner import Engine
from harness.schedule import Planned
from harness.selection import selector
from runtime import tuning
from runtime.driver import Driver, Host, Kind, Prepared, find_driver
from runtime.errors import TareError, UsageError
from runtime.images import recipe
from runtime.images.store import ImageStore
from runtime.instance import Availability
from runtime.spec import ImageRef, InstanceSpec
from workloads.base import Workload, all_workloads

IMAGE = ImageRef.parse("tare/debian:bookworm")
_SEEDS = 1 << 64
_DRAWN = 1 << 31  # a person may have to type it
_RUN_BYTES = 1 << 30  # what instances, their writable layers and a run's journal may need


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the user asked for; None and empty mean: not said."""

    profile: str | None = None
    drivers: tuple[str, ...] = ()
    select: str = ""
    out: Path | None = None
    seed: int | None = None
    resume: Path | None = None
    time_factor: float | None = None
    tune: bool = False
    identify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A run before anything was touched; `run` is what an earlier part left, when it is resumed."""

    profile: Profile
    seed: int
    drivers: Mapping[str, type[Driver]]
    workloads: Mapping[str, type[Workload]]
    planned: tuple[Planned, ...]
    select: str
    out: Path | None
    run: Run | None
    tune: bool
    identify: bool

    def units(self) -> dict[str, str]:
        """The unit of every metric, by name."""
        return {metric.name: metric.unit for workload in self.workloads.values() for metric in workload.metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A run ready to go: its directory, its header as journalled, its engine."""

    directory: Path
    header: RunHeader
    engine: Engine


def draft(options: Options) -> Draft:
    """Decide what to measure. Raises UsageError for unknown names, ResultsError for an unreadable journal."""
    run = Run.load(options.resume) if options.resume is not None else None
    if run is not None:
        _demand_unsaid(options)
    header = run.header if run is not None else None
    factor = header.settings.get("time_factor") if header else options.time_factor
    profile = find_profile(header.profile if header else options.profile or "quick")
    profile = profile if factor is None else profile.stretched(factor)
    names = tuple(entry.name for entry in header.drivers) if header else options.drivers or profile.drivers
    drivers = {name: find_driver(name) for name in dict.fromkeys(names)}
    workloads = all_workloads()
    wanted = selector(options.select) if header is None else set(header.cells).__contains__
    kinds = {name: driver.kind for name, driver in drivers.items()}
    planned = schedule.plan(profile, kinds, workloads, wanted)
    missing = sorted(set(header.cells) - {one.cell for one in planned}) if header is not None else []
    if missing:
        raise TareError(
            f"run {options.resume}", f"{missing[0]} is not known here", "resume it with the Tare it is from"
        )
    if not planned:
        raise UsageError("-k", f"no cell matches {options.select!r}", "see the names with: tare bench --list")
    seed = header.seed if header else secrets.randbelow(_DRAWN) if options.seed is None else options.seed
    if not 0 <= seed < _SEEDS:
        raise UsageError(f"--seed {seed}", "not a whole number from 0 to 2^64 - 1", "leave it out to have one drawn")
    return Draft(
        profile=profile,
        seed=seed,
        drivers=drivers,
        workloads=workloads,
        planned=planned,
        select=options.select,
        out=options.out,
        run=run,
        identify=options.identify,
        tune=options.tune or (header is not None and "tuned" in header.host),
    )


def _demand_unsaid(options: Options) -> None:
    for name in ("profile", "drivers", "select", "out", "seed", "time_factor", "identify"):
        if getattr(options, name) not in (None, (), "", False):
            flag = "-k" if name == "select" else f"--{name.replace('_', '-')}"
            raise UsageError(flag, "a resumed run keeps what it began with", "leave it out beside --resume")


@contextmanager
def opened(
    plan: Draft,
    host: Host,
    observer: Observer,
    *,
    keep: Callable[[Cell], bool] = lambda cell: True,
    directory: Path | None = None,
) -> Iterator[Opened]:
    """Ready everything that is not measured and yield the run; gives drivers and journal back at the end.

    `keep` narrows the cells further (pytest's own selection); `directory` overrides where a new run goes.
    Raises TareError, in one line and before anything is touched, for what can be seen to fail beforehand.
    """
    planned = tuple(one for one in plan.planned if keep(one.cell))
    kinds = {name: driver.kind for name, driver in plan.drivers.items()}
    directory = plan.run.directory if plan.run else directory or plan.out
    preflight(host, directory or Path("results"), resumed=plan.run is not None)
    with ExitStack() as stack:
        stack.enter_context(Guard())  # being ended while a driver prepares is no reason to leave anything behind
        tuned = _tuned(plan, host, observer, stack)
        captured = environment.capture() | tuned | ({"identity": environment.identity()} if plan.identify else {})
        fingerprint = environment.fingerprint(captured)
        if plan.run is not None:
            journal.check_same(plan.run, fingerprint=fingerprint, settings=plan.profile.settings())
        image = ready_image(host, observer, machine=Kind.VM in {kinds[one.cell.driver] for one in planned})
        drivers = {name: driver(host) for name, driver in plan.drivers.items()}
        for each in drivers.values():
            stack.callback(each.close)
        spec = InstanceSpec(image=IMAGE, limits=plan.profile.limits)
        prepared: dict[str, Prepared] = {}
        entries = tuple(_entry(each, spec, prepared, observer) for each in drivers.values())
        if not any(entry.usable for entry in entries):
            raise TareError("bench", "; ".join(f"{e.name}: {e.reason}" for e in entries), "see tare doctor")
        header = plan.run.header if plan.run else _header(plan, planned, entries, captured, fingerprint, image)
        directory = directory or default_directory(header.started_utc, fingerprint)
        if plan.run is not None:
            book, run = Journal.resume(directory)
        else:
            book, run = Journal.create(directory, header), None
        stack.enter_context(book)
        emulated = {entry.name for entry in entries if entry.facts.get("accelerator") == "tcg"}
        cells = {one.cell for one in planned}
        planned = schedule.plan(plan.profile, kinds, plan.workloads, cells.__contains__, emulated)
        assignment = Assignment(
            profile=plan.profile,
            seed=plan.seed,
            planned=planned,
            workloads=plan.workloads,
            drivers=drivers,
            unusable={entry.name: _why(entry) for entry in entries if not entry.usable},
            spec=spec,
            prepared=prepared,
            records=run.records if run else (),
            facts_of=frozenset(facts.driver for facts in run.facts) if run else frozenset(),
            logs=directory / "logs",
        )
        yield Opened(directory=directory, header=header, engine=Engine(assignment, book, observer))


def _tuned(plan: Draft, host: Host, observer: Observer, stack: ExitStack) -> dict[str, dict[str, str]]:
    """Put back what a killed run changed of the host; change it for this one where asked; what, for its header."""
    for line in (found := tuning.put_back(host.run)).done + found.left:
        observer.noted(f"put back after a killed run: {line}")
    if not plan.tune:
        return {}
    changes = stack.enter_context(tune.tuned(host.run))
    for name, change in changes.items():
        observer.noted(f"tuned for the run: {name}: {change}")
    return {"tuned": changes}


def preflight(host: Host, directory: Path, *, resumed: bool = False) -> None:
    """Refuse what cannot work: not root, a directory in use or not writable, too little disk. Touches nothing."""
    if os.geteuid() != 0:
        raise TareError(
            "bench", "not root, and instances need namespaces, mounts and cgroups", "run it in a root shell"
        )
    if not resumed and directory.is_dir() and directory.name != "results" and any(directory.iterdir()):
        raise TareError(f"directory {directory}", "is not empty", f"choose another --out, or --resume {directory}")
    for path, need in ((host.root, _RUN_BYTES), (directory, 64 << 20)):
        place = existing(path)
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise TareError(f"directory {path}", f"{place} is not a writable directory", "choose another place")
        free = shutil.disk_usage(place).free
        if free < need:
            raise TareError(
                f"directory {path}", f"only {free >> 20} MiB free, {need >> 20} MiB are needed", "free some space"
            )


def existing(path: Path) -> Path:
    """The nearest ancestor of `path`, or itself, that exists."""
    path = path.absolute()
    return next(each for each in (path, *path.parents) if each.exists())


def default_directory(started_utc: str, fingerprint: str) -> Path:
    """`results/<UTC time>-<host>`; the host goes by the head of its fingerprint, as its name is nobody's business."""
    stamp = started_utc[:19].replace("-", "").replace(":", "").replace("T", "t")
    return Path("results") / f"{stamp}z-{fingerprint[:8]}"


def _entry(driver: Driver, spec: InstanceSpec, prepared: dict[str, Prepared], observer: Observer) -> DriverEntry:
    """Probe and prepare a driver; the facts are as of afterwards, as preparing decides on the accelerator."""
    observer.running(f"preparing {driver.name}", 0.0)
    try:
        found = driver.probe()
        if found.usable:
            prepared[driver.name] = driver.prepare(spec)
            found = driver.probe()
    except Exception as error:  # noqa: BLE001 - a driver that cannot even say so is unusable, the run goes on
        found = Availability(usable=False, reason=f"it could not be prepared: {one_line(error)}")
    if not found.usable:
        observer.noted(
            f"{driver.name} cannot be measured here: {found.reason}" + (f" ({found.mend})" * bool(found.mend))
        )
    return DriverEntry(
        name=driver.name,
        kind=driver.kind,
        usable=found.usable,
        reason=found.reason,
        mend=found.mend,
        facts=dict(found.facts),
    )


def _why(entry: DriverEntry) -> str:
    return f"{entry.reason or 'unusable'}" + (f" ({entry.mend})" if entry.mend else "")


def _header(
    plan: Draft,
    planned: tuple[Planned, ...],
    entries: tuple[DriverEntry, ...],
    captured: dict[str, object],
    fingerprint: str,
    image: dict[str, str],
) -> RunHeader:
    used = {one.cell.workload for one in planned}
    metrics = [
        metric for name, workload in sorted(plan.workloads.items()) if name in used for metric in workload.metrics
    ]
    return RunHeader(
        run_id=secrets.token_hex(8),
        started_utc=utc(),
        profile=plan.profile.name,
        settings=plan.profile.settings(),
        seed=plan.seed,
        command=command(plan),
        drivers=entries,
        metrics=tuple(metrics),
        cells=tuple(one.cell for one in planned),
        host=captured,
        fingerprint=fingerprint,
        image=image,
    )


def summary(plan: Draft, run: Opened) -> str:
    """What is about to happen, in a line: how much, with which seed, how long, where to."""
    return (
        f"profile {plan.profile.name} ({plan.profile.about}): {len(run.header.cells)} cells, "
        f"{plan.profile.min_blocks} blocks or more, seed {plan.seed}, about {duration(run.engine.left_s())}; "
        f"results in {run.directory}"
    )


def command(plan: Draft) -> str:
    """What repeats the run in the same order."""
    words = ["tare", "bench", "--profile", plan.profile.name, "--drivers", ",".join(plan.drivers)]
    factor = plan.profile.time_factor
    stretch = [] if factor == 1.0 else ["--time-factor", f"{factor:g}"]
    select = ["-k", plan.select] if plan.select else []
    return shlex.join([*words, *select, *stretch, *["--tune"] * plan.tune, "--seed", str(plan.seed)])


def ready_image(host: Host, observer: Observer, *, machine: bool) -> dict[str, str]:
    """Build the bench's image, and the machine of it where a VM is measured, if absent; name → digest. Untimed."""
    store = ImageStore(host.root)
    image, whole = recipe.build(store, recipe.load("debian"), say=observer.noted)
    digests = {str(each.ref): each.digest for each in (image, whole)}
    return digests | {"machine": store.machine(image.ref, observer.noted).digest} if machine else digests
