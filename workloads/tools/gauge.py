"""The gauge (`runtime/guest/gauge.c`, which documents its words): command lines and what it prints.

Not what the figures mean; workloads decide that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from runtime.errors import TareError
from runtime.instance import ExecResult, Instance
from workloads.base import Invalid
from workloads.honesty import demand_one_clock, run_timed, start_cost_s
from workloads.tools.totals import possible

PROGRAM = "/usr/lib/tare/gauge"
NOTHING = (PROGRAM, "nothing")
SERVE_S = 3600  # more than any cell takes
UNREACHABLE = 3  # its exit code when nobody is there to connect to


@dataclass(frozen=True, slots=True)
class Work:
    """What was done (the word's own unit) in `elapsed_s` by the instance's clock."""

    work: int
    elapsed_s: float

    @property
    def rate(self) -> float:
        """Work per second."""
        return self.work / self.elapsed_s


@dataclass(frozen=True, slots=True)
class Place:
    """Where an instance is in the network: its addresses less the loopback's, and the default gateway or ''."""

    addresses: tuple[str, ...]
    gateway: str


def timed_argv(word: str, seconds: float, *rest: object) -> tuple[str, ...]:
    """A timed run of `word`; 0 seconds is one batch."""
    return (PROGRAM, word, f"{seconds:g}", *map(str, rest))


def parse(output: bytes) -> Work:
    """Read what a timed run printed. Raises Invalid for anything else, and for no work."""
    try:
        report = json.loads(output)
        work = Work(int(report["work"]), float(report["elapsed_s"]))
    except (ValueError, KeyError, TypeError, OverflowError) as problem:
        raise Invalid("gauge", f"no totals in its output: {_tail(output)}") from problem
    if not possible(work.work, work.elapsed_s):
        raise Invalid("gauge", "it did no work")
    return work


def measure(instance: Instance, word: str, seconds: float, *rest: object) -> Work:
    """Run `word` for `seconds` on one clock; a run of one batch before shows what start and making ready cost.

    Raises TareError when it fails, Invalid when its clock is not the host's.
    """
    start_s = start_cost_s(instance, timed_argv(word, 0, *rest))
    result = run_timed(instance, timed_argv(word, seconds, *rest), seconds)
    work = parse(result.stdout)
    demand_one_clock(result, work.elapsed_s, start_s)
    return work


def reached(result: ExecResult) -> bool:
    """Whether a run that connects found somebody. Raises TareError when it failed for another reason."""
    if result.exit_code == UNREACHABLE:
        return False
    parse(result.check().stdout)
    return True


def place(instance: Instance, timeout_s: float) -> Place:
    """Where `instance` is in the network. Raises TareError when it cannot say."""
    return _place(instance, (PROGRAM, "place"), timeout_s)


def serve(instance: Instance, address: str, port: int, timeout_s: float) -> Place:
    """Let a server listen inside until the instance ends, and say where that is. Raises TareError when it cannot."""
    return _place(instance, timed_argv("serve", SERVE_S, address, port), timeout_s)


def _place(instance: Instance, argv: tuple[str, ...], timeout_s: float) -> Place:
    output = instance.exec(argv, timeout_s).check().stdout
    try:
        report = json.loads(output)
        return Place(tuple(map(str, report["addresses"])), str(report["gateway"]))
    except (ValueError, KeyError, TypeError) as problem:
        raise TareError("gauge", f"no place in its output: {_tail(output)}") from problem


def _tail(output: bytes) -> str:
    return output.decode(errors="replace").strip()[-200:] or "it said nothing"
