"""fio 3: command lines and what its JSON says. Not what the figures mean; workloads decide that."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from workloads.base import Invalid

PROBE = ("fio", "--version")


@dataclass(frozen=True, slots=True)
class Written:
    """What one job wrote: totals, and the milliseconds of its own clock they took, in seconds."""

    operations: int
    bytes: int
    elapsed_s: float


def layout_argv(path: str, size_mib: int) -> tuple[str, ...]:
    """Write the file once, in full, and flush it: later writes then meet allocated, initialised blocks."""
    return (
        *("fio", "--name=layout", f"--filename={path}", f"--size={size_mib}M", "--rw=write", "--bs=1M"),
        *("--ioengine=psync", "--end_fsync=1", "--output-format=json"),
    )


def write_argv(path: str, size_mib: int, seconds: float, *, pattern: str, block: str) -> tuple[str, ...]:
    """Write into the laid-out file for `seconds`, one request at a time, past the page cache.

    `pattern` is fio's rw (`write`, `randwrite`), `block` its bs (`4k`, `1M`).
    """
    return (
        *("fio", f"--name={pattern}", f"--filename={path}", f"--size={size_mib}M", f"--rw={pattern}", f"--bs={block}"),
        *("--direct=1", "--ioengine=psync", "--time_based", f"--runtime={round(seconds * 1000)}ms"),
        *("--randrepeat=1", "--output-format=json"),
    )


def parse(output: bytes) -> Written:
    """Read the JSON of a single writing job. Raises Invalid when it is none, reports an error, or wrote nothing."""
    text = output.decode(errors="replace")
    start = text.find("{")  # warnings come first, as plain text
    try:
        report: dict[str, Any] = json.loads(text[start:]) if start >= 0 else {}
        (job,) = report["jobs"]
        error, write = int(job["error"]), job["write"]
        written = Written(int(write["total_ios"]), int(write["io_bytes"]), int(write["runtime"]) / 1000)
    except (ValueError, KeyError, TypeError) as problem:
        raise Invalid("fio", f"no report in its output: {text.strip()[-200:] or 'it said nothing'}") from problem
    if error:
        raise Invalid("fio", f"its job ended with error {error}: {text[: max(start, 0)].strip()[-200:]}")
    if written.operations == 0 or written.elapsed_s == 0:
        raise Invalid("fio", "it wrote nothing")
    return written
