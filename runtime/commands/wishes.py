"""The words of `docker run` read into values: sizes, limits, devices, signals, ports. Each bad one is refused by name.

Looks at the host for device numbers and files only. Not the options' declaration (`asking`).
"""

from __future__ import annotations

import os
import re
import signal
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from runtime.cgroups.resources import (
    BlockIo,
    Cpu,
    DeviceRule,
    Memory,
    Pids,
    Resources,
    ThrottleDevice,
    WeightDevice,
)
from runtime.container.config import Rlimit
from runtime.errors import UsageError
from runtime.spec import parse_cpuset, parse_size

PERIOD_US = 100_000
_DEVICE_RULE = re.compile(r"([abc]) (\*|\d+):(\*|\d+) ([rwm]{1,3})")
_RLIMITS = {
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice"),
    *("nofile", "nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
}


def whole(name: str, text: str, least: int, most: int) -> int:
    """A whole number of flag `name`. Raises UsageError."""
    try:
        value = int(text)
    except ValueError:
        raise UsageError(f"{name} {text!r}", "not a whole number", "give one") from None
    if not least <= value <= most:
        raise UsageError(f"{name} {text}", f"must lie between {least} and {most}", "choose another")
    return value


def size(name: str, text: str, *, unlimited: bool = False, least: int = 0) -> int:
    """Bytes. Raises UsageError naming the flag."""
    if unlimited and text == "-1":
        return -1
    try:
        found = parse_size(text)
    except UsageError as error:
        raise UsageError(f"{name} {text!r}", error.why, error.do) from None
    if found < least:
        raise UsageError(f"{name} {text}", f"must be at least {least} bytes", "give more")
    return found


def memory(
    limit: str | None, swap: str | None, reservation: str | None, swappiness: str | None, *, kills: bool = True
) -> Memory | None:
    """`-m`, `--memory-swap` (both together), `--memory-reservation`, `--memory-swappiness`, `--oom-kill-disable`."""
    limit_bytes = None if limit is None else size("--memory", limit, least=6 << 20)
    swap_bytes = None if swap is None else size("--memory-swap", swap, unlimited=True)
    low = None if reservation is None else size("--memory-reservation", reservation)
    if swap_bytes is not None and limit_bytes is None:
        raise UsageError("--memory-swap", "needs a memory limit beside it", "add --memory")
    if swap_bytes is not None and limit_bytes is not None and 0 < swap_bytes < limit_bytes:
        raise UsageError("--memory-swap", "is memory and swap together: not less than --memory", "give more")
    if low is not None and limit_bytes is not None and low > limit_bytes:
        raise UsageError("--memory-reservation", "exceeds --memory", "give less")
    found = Memory(
        limit=limit_bytes,
        swap=swap_bytes or None,
        reservation=low,
        swappiness=None if swappiness is None else whole("--memory-swappiness", swappiness, 0, 100),
        disable_oom_killer=None if kills else True,
    )
    return None if found == Memory() else found


def cpu(
    cpus: str | None, shares: str | None, period: str | None, quota: str | None, cpuset: str | None, mems: str | None
) -> Cpu | None:
    """`--cpus`, which is a quota by another name, `-c`, `--cpu-period`, `--cpu-quota`, and the two cpusets."""
    quota_us = None if quota is None else whole("--cpu-quota", quota, -1, 1 << 40)
    period_us = None if period is None else whole("--cpu-period", period, 1000, 1_000_000)
    if cpus is not None:
        if quota is not None or period is not None:
            raise UsageError("--cpus", "is --cpu-quota by another name", "give one of them")
        period_us, quota_us = PERIOD_US, _quota(cpus)
    if quota_us is not None and 0 < quota_us < 1000:
        raise UsageError("--cpu-quota", "must be at least 1000 µs", "give more")
    for name, numbers, kind in (("--cpuset-cpus", cpuset, "cpu"), ("--cpuset-mems", mems, "node")):
        if numbers:
            _demand_online(name, numbers, Path(f"/sys/devices/system/{kind}/online"))
    found = Cpu(
        shares=None if shares is None else whole("--cpu-shares", shares, 2, 262144),
        period=period_us,
        quota=quota_us or None,
        cpus=cpuset or None,
        mems=mems or None,
    )
    return None if found == Cpu() else found


def _demand_online(name: str, numbers: str, online: Path) -> None:
    try:
        wanted = parse_cpuset(numbers)
    except UsageError as error:
        raise UsageError(f"{name} {numbers!r}", error.why, error.do) from None
    there = online.read_text().strip() if online.exists() else "0"
    if not wanted <= parse_cpuset(there):
        raise UsageError(f"{name} {numbers}", f"this host has {there}", "choose among them")


def _quota(cpus: str) -> int:
    try:
        number = float(cpus)
    except ValueError:
        number = 0.0
    most = os.cpu_count() or 1
    if not 0.01 <= number <= most:
        raise UsageError(f"--cpus {cpus}", f"must lie between 0.01 and {most}, the CPUs of this host", "choose another")
    return int(number * PERIOD_US)


def block_io(weight: str | None, weights: Sequence[str], rates: Sequence[tuple[str, Sequence[str]]]) -> BlockIo | None:
    """`--blkio-weight`, `--blkio-weight-device`, and the four `--device-…-bps|iops`, by flag."""
    throttled = {name: tuple(_throttle(name, text) for text in texts) for name, texts in rates}
    found = BlockIo(
        weight=None if weight is None else whole("--blkio-weight", weight, 10, 1000) or None,
        weight_device=tuple(_weight_device(text) for text in weights),
        throttle_read_bps_device=throttled.get("--device-read-bps", ()),
        throttle_write_bps_device=throttled.get("--device-write-bps", ()),
        throttle_read_iops_device=throttled.get("--device-read-iops", ()),
        throttle_write_iops_device=throttled.get("--device-write-iops", ()),
    )
    return None if found == BlockIo() else found


def resources(memory: Memory | None, cpu: Cpu | None, block_io: BlockIo | None, pids: str | None) -> Resources:
    """All limits at once; `--pids-limit` 0 and -1 are unlimited."""
    limit = None if pids is None else whole("--pids-limit", pids, -1, 1 << 22)
    return Resources(memory=memory, cpu=cpu, block_io=block_io, pids=Pids(limit=limit) if limit else None)


def _split(name: str, text: str) -> tuple[str, str]:
    path, colon, value = text.rpartition(":")
    if not colon or not path.startswith("/"):
        raise UsageError(f"{name} {text!r}", "not DEVICE:VALUE", f"write it like {name} /dev/sda:10m")
    return path, value


def _number_of(name: str, path: str) -> tuple[int, int]:
    try:
        info = os.stat(path)  # noqa: PTH116 - its type is wanted too
    except OSError as error:
        raise UsageError(f"{name} {path}", error.strerror or str(error), "name a block device") from None
    if not stat.S_ISBLK(info.st_mode):
        raise UsageError(f"{name} {path}", "not a block device", "name the disk")
    return os.major(info.st_rdev), os.minor(info.st_rdev)


def _throttle(name: str, text: str) -> ThrottleDevice:
    path, value = _split(name, text)
    rate = size(name, value) if name.endswith("bps") else whole(name, value, 0, 1 << 62)
    if rate < 1:
        raise UsageError(f"{name} {text}", "the rate must be above 0", "give more")
    major, minor = _number_of(name, path)
    return ThrottleDevice(major=major, minor=minor, rate=rate)


def _weight_device(text: str) -> WeightDevice:
    path, value = _split("--blkio-weight-device", text)
    major, minor = _number_of("--blkio-weight-device", path)
    return WeightDevice(major=major, minor=minor, weight=whole("--blkio-weight-device", value, 10, 1000))


def device_rule(text: str) -> DeviceRule:
    """`--device-cgroup-rule 'c 10:200 rwm'`. Raises UsageError."""
    match = _DEVICE_RULE.fullmatch(text)
    if match is None:
        raise UsageError(f"--device-cgroup-rule {text!r}", "not a rule", "write it like 'c 10:200 rwm'")
    major, minor = (None if word == "*" else int(word) for word in match.group(2, 3))
    return DeviceRule(allow=True, type=match[1], major=major, minor=minor, access=match[4])


def ulimit(text: str) -> Rlimit:
    """`--ulimit NAME=SOFT[:HARD]`; -1 is unlimited. Raises UsageError."""
    name, equals, values = text.partition("=")
    soft, _, hard = values.partition(":")
    if not equals or name not in _RLIMITS:
        raise UsageError(f"--ulimit {text!r}", "not a limit", "write it like nofile=1024:2048")
    low, high = (_rlimit(text, word) for word in (soft, hard or soft))
    if low > high:
        raise UsageError(f"--ulimit {text}", "the soft limit exceeds the hard one", "write SOFT:HARD")
    return Rlimit(type=f"RLIMIT_{name.upper()}", soft=low, hard=high)


def _rlimit(text: str, word: str) -> int:
    number = whole(f"--ulimit {text}:", word, -1, (1 << 64) - 1)
    return (1 << 64) - 1 if number < 0 else number


def signal_number(text: str) -> int:
    """A signal as Docker takes it: `SIGTERM`, `term`, `15`, `RTMIN+3`. Raises UsageError."""
    name = text.upper().removeprefix("SIG")
    if name.isascii() and name.isdigit() and 1 <= int(name) <= signal.SIGRTMAX:
        return int(name)
    match = re.fullmatch(r"(RTMIN|RTMAX)([+-]\d{1,2})?", name)
    if match is not None:
        found = (signal.SIGRTMIN if match[1] == "RTMIN" else signal.SIGRTMAX) + int(match[2] or 0)
        if signal.SIGRTMIN <= found <= signal.SIGRTMAX:
            return found
    for known in signal.Signals:
        if known.name == f"SIG{name}":
            return int(known)
    raise UsageError(f"signal {text!r}", "no such signal", "use a name such as TERM, or its number")


def restart(text: str | None, removed: bool) -> tuple[str, int]:
    """`--restart POLICY[:MOST]`; `removed` says that it goes at its end. Raises UsageError."""
    name, colon, most = (text or "no").partition(":")
    if name not in ("no", "on-failure", "always", "unless-stopped"):
        raise UsageError(f"--restart {text}", "no such policy", "use no, on-failure[:N], always or unless-stopped")
    if colon and name != "on-failure":
        raise UsageError(f"--restart {text}", "only on-failure takes a number", f"use --restart {name}")
    if removed and name != "no":
        raise UsageError(f"--restart {name}", "what goes at its end is not started again", "leave --rm out")
    return name, whole("--restart on-failure:", most, 0, 1 << 31) if colon else 0


def pair(flag: str, text: str) -> tuple[str, str]:
    """`KEY=VALUE`; the value may be missing. Raises UsageError."""
    key, _, value = text.partition("=")
    if not key or "\0" in text:
        raise UsageError(f"{flag} {text!r}", "the key is missing", f"write {flag} KEY=VALUE")
    return key, value


def words_of_file(flag: str, path: str) -> list[str]:
    """The lines of an `--env-file` or `--label-file`: empty ones and comments left out. Raises UsageError."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{flag} {path}", why or str(error), "name a file of KEY=VALUE lines") from None
    return [line.lstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def environment(words: Sequence[str], known: Callable[[str], str | None] = os.environ.get) -> tuple[str, ...]:
    """`-e` words; one without a value takes the value it has here, and without one takes the image's away."""
    found = []
    for word in words:
        key, equals, _ = word.partition("=")
        if not key or "\0" in word:
            raise UsageError(f"environment {word!r}", "not a variable", "use -e NAME=VALUE")
        value = None if equals else known(key)
        found.append(word if value is None else f"{key}={value}")
    return tuple(found)
