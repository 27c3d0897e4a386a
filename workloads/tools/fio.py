"""fio 3: command lines and what its JSON says. Not what the figures mean; workloads decide that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

from workloads.base import Invalid
from workloads.tools.totals import possible

PROBE = ("fio", "--version")


Direction = Literal["read", "write"]


@dataclass(frozen=True, slots=True)
class Moved:
    """What one job read or wrote: totals, and the milliseconds of its own clock they took, in seconds."""

    operations: int
    bytes: int
    elapsed_s: float


def layout_argv(path: str, size_mib: int) -> tuple[str, ...]:
    """Write the file once, in full, and flush it: later writes then meet allocated, initialised blocks."""
    return (
        *("fio", "--name=layout", f"--filename={path}", f"--size={size_mib}M", "--rw=write", "--bs=1M"),
        *("--ioengine=psync", "--end_fsync=1", "--output-format=json"),
    )


def run_argv(
    path: str, size_mib: int, seconds: float, *, pattern: str, block: str, flush: bool = False
) -> tuple[str, ...]:
    """Work on the laid-out file for `seconds`, one request at a time.

    `pattern` is fio's rw (`read`, `write`, `randread`, `randwrite`), `block` its bs (`4k`, `1M`). Past the page
    cache, or, with `flush`, through it and every write followed by an fsync.
    """
    return (
        *("fio", f"--name={pattern}", f"--filename={path}", f"--size={size_mib}M", f"--rw={pattern}", f"--bs={block}"),
        *("--fsync=1" if flush else "--direct=1", "--ioengine=psync", "--time_based"),
        *(f"--runtime={round(seconds * 1000)}ms", "--randrepeat=1", "--output-format=json"),
    )


def parse(output: bytes, direction: Direction) -> Moved:
    """Read the JSON of a single job. Raises Invalid when it is none, reports an error, or moved nothing that way."""
    text = output.decode(errors="replace")
    start = text.find("{")  # warnings come first, as plain text
    try:
        report: dict[str, Any] = json.loads(text[start:]) if start >= 0 else {}
        (job,) = report["jobs"]
        error, done = int(job["error"]), job[direction]
        moved = Moved(int(done["total_ios"]), int(done["io_bytes"]), int(done["runtime"]) / 1000)
    except (ValueError, KeyError, TypeError, OverflowError) as problem:
        raise Invalid("fio", f"no report in its output: {text.strip()[-200:] or 'it said nothing'}") from problem
    if error:
        raise Invalid("fio", f"its job ended with error {error}: {text[: max(start, 0)].strip()[-200:]}")
    if not possible(moved.operations, moved.bytes, moved.elapsed_s):
        raise Invalid("fio", f"no {direction} in its report")
    return moved
