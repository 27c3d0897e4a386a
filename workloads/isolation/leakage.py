"""Leakage: how much of what its limits entitle it to an instance loses to a neighbour under limits of its own."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from runtime.errors import TareError
from runtime.instance import ExecResult, Instance
from workloads.base import Context, Invalid, Stage, Workload
from workloads.honesty import GRACE_S, demand_one_clock, run_timed, start_cost_s
from workloads.metric import Better, Metric, Phase, Sample
from workloads.tools import stress_ng, sysbench

RATE = Metric("leakage.rate", "events/s", Better.HIGHER, "the victim's work per second", True)
LEAK = Metric("leakage.leak", "ratio", Better.LOWER, "1 − rate beside the neighbour ÷ rate alone; signed", True)
SLOWDOWN = Metric("leakage.slowdown", "ratio", Better.LOWER, "1 − rate beside it ÷ rate beside the placebo", True)
PRESSURE = Metric("leakage.antagonist_rate", "bogo-ops/s", Better.HIGHER, "what the antagonist got done", True)
ENTITLED, PLACEBO = "entitled", "placebo"
WRITERS, FILE_MIB = 2, 16
DIRECTORY = "/var/tmp"  # noqa: S108 - inside the antagonist's instance, on its own writable root

# `$0` is the file for the pid, `$1` a nice value for the session; what follows is the antagonist, which keeps the
# shell's pid. The kernel's autogroup weighs a whole session outside any cgroup like one task: the nice value gives
# the processes the weight they would have apart. In a container, which may not and need not, it does nothing.
START = '{ echo "$1" > /proc/$$/autogroup; } 2>/dev/null; shift; echo $$ > "$0" && exec "$@"'
NICE_STEP = 1.25  # the weight of a nice level against the next
# Until the antagonist has a child at work, or has ended. Runs before the timed window, until the first sighting.
AWAIT = """
until [ -s "$0" ]; do sleep 0.02; done
pid=$(cat "$0")
until grep -qs "^PPid:[[:space:]]*$pid$" /proc/[0-9]*/status; do
  kill -0 "$pid" || exit 1
  sleep 0.05
done
"""
STOP = 'kill -INT "$(cat "$0")"; rm -f "$0"'


class Leakage(Workload):
    """sysbench cpu, one thread, in its own instance, while the instance beside it is in one of four conditions.

    `entitled`: frozen, so that the victim has exactly its caps to itself; `placebo`: idle; `cpu`: twice as many
    computing processes as the host has CPUs; `fsync`: writers of 16 MiB files that flush every write. One fresh
    pair a cell; a warm-up second, then the conditions in seeded random order, `seconds` each (default 1). Both
    instances carry the spec's limits: CPUs shared under quotas that fit. On `native` nothing is limited: the
    control that shows the antagonists work. Leakage is against `entitled` (its zero means: got what its limits
    promise), slowdown against `placebo`; the placebo's own leak is the false-positive rate.
    """

    name = "leakage"
    stage = Stage.OWN
    metrics = (RATE, LEAK, SLOWDOWN, PRESSURE)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield raw rates, then the derived ratios. Raises TareError when victim or antagonist fails or dies."""
        seconds = context.param("seconds", 1)
        hogs = int(context.param("hogs", 2 * (os.cpu_count() or 1)))
        conditions: list[tuple[str, tuple[str, ...] | None]] = [(ENTITLED, None), (PLACEBO, None)]
        conditions += antagonists(seconds, hogs=hogs).items()
        context.rng.shuffle(conditions)
        rates: dict[str, float] = {}
        with ExitStack() as stack:
            victim, neighbour = (stack.enter_context(context.launch()) for _ in range(2))
            start_s = start_cost_s(victim, sysbench.PROBE)
            neighbour.exec(("stress-ng", "--version"), GRACE_S).check()
            # An emulator translates the victim's code in its first run: kept, and in no ratio.
            yield Sample(
                RATE.name, work_rate(victim, 1, start_s), Phase.WARMUP, {"condition": PLACEBO, "position": "-1"}
            )
            for position, (condition, argv) in enumerate(conditions):
                context.say(condition)
                labels = {"condition": condition, "position": str(position)}
                with neighbourhood(neighbour, condition, argv) as antagonist:
                    rates[condition] = work_rate(victim, seconds, start_s)
                    if antagonist is not None:
                        antagonist.demand_running()
                if not (victim.alive() and neighbour.alive()):
                    raise TareError("leakage", f"an instance died beside {condition}")
                yield Sample(RATE.name, rates[condition], labels=labels)
                if antagonist is not None:
                    done = stress_ng.parse(antagonist.result().stderr)
                    yield Sample(PRESSURE.name, done.ops / done.elapsed_s, labels=labels)
        yield from _ratios(rates)


def antagonists(seconds: float, *, hogs: int) -> dict[str, tuple[str, ...]]:
    """What START is given to run each antagonist, by name; their own time-out is only a backstop."""
    backstop_s = seconds + 2 * GRACE_S
    fsync = stress_ng.fsync_argv(WRITERS, backstop_s, directory=DIRECTORY, file_mib=FILE_MIB)
    return {
        "cpu": (session_nice(hogs), *stress_ng.cpu_argv(hogs, backstop_s, directory=DIRECTORY)),
        "fsync": (session_nice(WRITERS), *fsync),
    }


def session_nice(processes: int) -> str:
    """The nice value at which a session weighs as much as that many tasks at nice 0."""
    return str(max(-20, -round(math.log(processes, NICE_STEP))))


def work_rate(victim: Instance, seconds: float, start_s: float) -> float:
    """Events per second of a single-threaded sysbench. Raises Invalid when its clock is not the host's."""
    result = run_timed(victim, sysbench.cpu_argv(seconds), seconds)
    work = sysbench.parse(result.stdout)
    demand_one_clock(result, work.elapsed_s, start_s)
    return work.events / work.elapsed_s


def _ratios(rates: dict[str, float]) -> Iterator[Sample]:
    for condition, rate in sorted(rates.items()):
        labels = {"antagonist": condition}
        if condition != ENTITLED:
            yield Sample(LEAK.name, 1 - rate / rates[ENTITLED], labels=labels)
        if condition not in (ENTITLED, PLACEBO):
            yield Sample(SLOWDOWN.name, 1 - rate / rates[PLACEBO], labels=labels)


@contextmanager
def neighbourhood(neighbour: Instance, condition: str, argv: Sequence[str] | None) -> Iterator[Antagonist | None]:
    """The neighbour as `condition` wants it, and idle again afterwards."""
    if argv is not None:
        antagonist = Antagonist(neighbour, condition, tuple(argv))
        antagonist.start()
        try:
            yield antagonist
        finally:
            antagonist.stop()
    elif condition == ENTITLED:
        neighbour.pause()
        try:
            yield None
        finally:
            neighbour.resume()
    else:
        yield None


class Antagonist:
    """A stress-ng inside `instance`, run from a thread of ours because `exec` waits for its end."""

    def __init__(self, instance: Instance, name: str, argv: tuple[str, ...]) -> None:
        self._instance = instance
        self._name = name
        self._argv = argv
        self._pid_file = f"/tmp/tare-antagonist-{name}"  # noqa: S108 - inside the instance
        self._thread = threading.Thread(target=self._run, name=f"antagonist-{name}", daemon=True)
        self._outcome: ExecResult | BaseException | None = None

    def _run(self) -> None:
        try:
            self._outcome = self._instance.exec(("/bin/sh", "-c", START, self._pid_file, *self._argv), 4 * GRACE_S)
        except BaseException as error:  # noqa: BLE001 - carried to the thread that asks for the result
            self._outcome = error

    def start(self) -> None:
        """Start it; returns once it has workers. Raises TareError when it does not come to that."""
        self._thread.start()
        try:
            working = self._instance.exec(("/bin/sh", "-c", AWAIT, self._pid_file), GRACE_S).exit_code == 0
        except BaseException:
            self.stop()
            raise
        if not working:
            self.stop()
            self.result()
            raise Invalid("leakage", f"the antagonist {self._name} never came to work")

    def demand_running(self) -> None:
        """Raise if it ended before it was told to: the victim's window was then not wholly under pressure."""
        if not self._thread.is_alive():
            self.result()
            raise Invalid("leakage", f"the antagonist {self._name} ended early")

    def stop(self) -> None:
        """Interrupt it and wait until every process of it is gone. Raises TareError if the instance is."""
        if self._thread.is_alive() and self._instance.alive():
            self._instance.exec(("/bin/sh", "-c", STOP, self._pid_file), GRACE_S)
        self._thread.join(GRACE_S)
        if self._thread.is_alive():
            raise TareError("leakage", f"the antagonist {self._name} does not stop")

    def result(self) -> ExecResult:
        """What it printed. Raises what its run raised, TareError when it failed."""
        if isinstance(self._outcome, ExecResult):
            return self._outcome.check()
        raise self._outcome or TareError("leakage", f"the antagonist {self._name} has not ended")
