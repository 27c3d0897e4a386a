"""The processes of a container for `tare top`: from /proc, or from the host's ps when its options are given."""

from __future__ import annotations

import os
import pwd
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from runtime.command import run
from runtime.errors import TareError

_HEAD = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")


def table(pids: Sequence[int], words: Sequence[str], proc: Path = Path("/proc")) -> Iterator[str]:
    """Lines of the table of `pids`, its head first. Raises TareError when ps shows no PID column."""
    if words:
        yield from _by_ps(pids, words)
        return
    rows = [_HEAD, *(row for pid in sorted(pids) if (row := _row(pid, proc)) is not None)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD) - 1)]
    for row in rows:
        yield "  ".join((*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[-1]))


def _by_ps(pids: Sequence[int], words: Sequence[str]) -> Iterator[str]:
    head, *rows = run(["ps", *words], timeout_s=30).stdout.decode(errors="replace").splitlines()
    columns = head.split()
    if "PID" not in columns:
        raise TareError("top", "ps shows no PID with these options", "add pid to them")
    at, wanted = columns.index("PID"), {str(pid) for pid in pids}
    yield head
    yield from (row for row in rows if len(row.split()) > at and row.split()[at] in wanted)


def _row(pid: int, proc: Path) -> tuple[str, ...] | None:
    try:
        directory = proc / str(pid)
        stat = (directory / "stat").read_text()
        fields = stat[stat.rindex(")") + 2 :].split()
        argv = (directory / "cmdline").read_bytes().split(b"\0")[:-1]
        uid = directory.stat().st_uid
    except OSError:
        return None
    tick = os.sysconf("SC_CLK_TCK")
    used_s = (int(fields[11]) + int(fields[12])) // tick
    started_s = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + int(fields[19]) / tick
    lived_s = max(1.0, time.time() - started_s)
    name = stat[stat.index("(") + 1 : stat.rindex(")")]
    return (
        _user(uid),
        str(pid),
        fields[1],
        str(int(100 * used_s / lived_s)),
        time.strftime("%H:%M", time.localtime(started_s)),
        _terminal(int(fields[4])),
        f"{used_s // 3600:02}:{used_s // 60 % 60:02}:{used_s % 60:02}",
        b" ".join(argv).decode(errors="replace") or f"[{name}]",
    )


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _terminal(number: int) -> str:
    return f"pts/{os.minor(number)}" if os.major(number) in range(136, 144) else "?"
