"""A timed command inside an instance, trusted only where its clock and the host's tell the same story.

A guest's clock may run slow or jump (software emulation, a paused vCPU); a rate divided by such seconds is
fiction. Not for phases of an instance's life: those are on the host's clock to begin with.
"""

from __future__ import annotations

from collections.abc import Sequence

from runtime.instance import ExecResult, Instance
from workloads.base import Invalid

GRACE_S = 60.0  # beyond the tool's own time-box; an emulated guest starts programs slowly
DRIFT = 0.1  # relative: clocks that differ by more are not the same clock
SLACK_S = 0.3
START_FACTOR = 4  # a tool's start, reading its input and a busy host against its bare start


def start_cost_s(instance: Instance, probe: Sequence[str]) -> float:
    """Host seconds of a run without work (`tool --version`): the floor under every timed run; it warms the pages."""
    return instance.exec(probe, GRACE_S).check().elapsed_ns / 1e9


def run_timed(instance: Instance, argv: Sequence[str], seconds: float) -> ExecResult:
    """Run a tool that ends by itself after about `seconds`. Raises TareError when it fails or does not end."""
    return instance.exec(argv, seconds * (1 + DRIFT) + GRACE_S).check()


def demand_one_clock(result: ExecResult, tool_s: float, start_s: float) -> None:
    """Raise Invalid unless the tool's `tool_s` fits in the host's time for the command with only a start to spare.

    The bound: −10 % of `tool_s` ≤ host − tool ≤ 4 × `start_s` + 10 % of `tool_s` + 0.3 s.
    """
    excess_s = result.elapsed_ns / 1e9 - tool_s
    if not -DRIFT * tool_s <= excess_s <= START_FACTOR * start_s + DRIFT * tool_s + SLACK_S:
        raise Invalid(
            f"clock of {result.argv[0]}",
            f"it counted {tool_s:.3f} s where the host counted {result.elapsed_ns / 1e9:.3f} s",
            "the instance's clock does not run at the host's pace here",
        )
