"""Whether this host virtualises in hardware, found out by a race: the real guest on KVM and on TCG at once.

That /dev/kvm is there, opens and makes a machine proves nothing: some clouds emulate it instruction by
instruction. Whichever brings the guest to userland first is used. The answer holds for this boot of this kernel
on this CPU with this QEMU, and is kept for as long; TARE_ACCELERATOR=kvm|tcg decides instead, and that it did is
recorded.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import queue
import textwrap
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

from runtime.errors import TareError, UsageError
from runtime.ledger import boot_id

VARIABLE = "TARE_ACCELERATOR"
RACE_TIMEOUT_S = 90.0
_KVM_GET_API_VERSION = 0xAE00  # linux/kvm.h
_KVM_CREATE_VM = 0xAE01
# Of a processor in /proc/cpuinfo; the other lines change from moment to moment. A host that is a guest itself may
# be moved to another CPU without a boot.
_IDENTIFYING = frozenset({"vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "flags"})


@dataclass(frozen=True, slots=True)
class Accelerator:
    """`name` is kvm or tcg; `reason` how that was found; `forced` whether the user decided."""

    name: str
    reason: str
    forced: bool = False


class Contender(Protocol):
    """A guest in the race."""

    def wait_userland(self, timeout_s: float) -> None:
        """Return when it is in userland, or raise TareError."""

    def close(self) -> None:
        """End it, however far it has come."""


def forced(environment: Mapping[str, str] = os.environ) -> Accelerator | None:
    """What TARE_ACCELERATOR demands, or None. Raises UsageError for anything but kvm and tcg."""
    name = environment.get(VARIABLE)
    if not name:
        return None
    if name not in ("kvm", "tcg"):
        raise UsageError(f"{VARIABLE}={name}", "no such accelerator", "use kvm or tcg, or unset it")
    return Accelerator(name, f"{VARIABLE} says so", forced=True)


def kvm_problem(device: Path = Path("/dev/kvm")) -> str | None:
    """Why KVM cannot be used, or None if it at least makes a machine; told by making one."""
    try:
        fd = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        return f"{device}: {error.strerror}"
    try:
        version = fcntl.ioctl(fd, _KVM_GET_API_VERSION)
        if version != 12:
            return f"{device} speaks version {version} of its interface"
        os.close(fcntl.ioctl(fd, _KVM_CREATE_VM, 0))
    except OSError as error:
        return f"{device} makes no machine: {error.strerror}"
    finally:
        os.close(fd)
    return None


def without_race(device: Path = Path("/dev/kvm")) -> Accelerator | None:
    """TCG, where KVM could not even start; None where only a race can tell."""
    problem = kvm_problem(device)
    return None if problem is None else Accelerator("tcg", problem)


def key(emulator: Path, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Identifies what an answer holds for: this kernel, CPU and boot, and QEMU as `plan.write_emulator` names it."""
    first, _, _ = cpuinfo.read_text().partition("\n\n")
    cpu = [line for line in first.splitlines() if line.partition(":")[0].strip() in _IDENTIFYING]
    parts = "\n".join((platform.release(), *cpu, boot_id(), emulator.name))
    return hashlib.sha256(parts.encode()).hexdigest()


def recall(cache: Path, wanted: str) -> Accelerator | None:
    """The answer kept in `cache` for `wanted`, if there is one."""
    try:
        kept = json.loads(cache.read_text())
        return Accelerator(**kept["answer"]) if kept["key"] == wanted else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def keep(cache: Path, wanted: str, answer: Accelerator) -> None:
    """Keep `answer` for `wanted`; only the latest is kept."""
    cache.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    new = cache.with_suffix(f".{os.getpid()}")
    new.write_text(json.dumps({"key": wanted, "answer": asdict(answer)}, indent=1) + "\n")
    new.rename(cache)


def race(start: Callable[[str], Contender], timeout_s: float = RACE_TIMEOUT_S) -> Accelerator:
    """Start the guest on `kvm` and on `tcg` at the same time and take the first in userland; the other is killed.

    Raises TareError when neither gets there within `timeout_s`, with what each said.
    """
    results: queue.SimpleQueue[tuple[str, float, TareError | None]] = queue.SimpleQueue()
    runners = {name: _Runner(name, start, timeout_s, results) for name in ("kvm", "tcg")}
    failures: dict[str, str] = {}
    try:
        for runner in runners.values():
            runner.start()
        while len(failures) < len(runners):
            name, seconds, error = results.get()
            if error is None:
                return Accelerator(name, _account(name, seconds, failures))
            failures[name] = textwrap.shorten(str(error), 240, placeholder=" …")
    finally:
        for runner in runners.values():
            runner.end()
    raise TareError("accelerator", "; ".join(f"{name}: {why}" for name, why in failures.items()), "see: tare doctor")


def _account(winner: str, seconds: float, failures: Mapping[str, str]) -> str:
    loser = "tcg" if winner == "kvm" else "kvm"
    fate = f"failed ({failures[loser]})" if loser in failures else "was not there yet"
    return f"the guest was in userland on {winner.upper()} after {seconds:.1f} s, {loser.upper()} {fate}"


class _Runner(threading.Thread):
    """One contender's way to userland; `end()` may come at any moment of it."""

    def __init__(
        self,
        name: str,
        start: Callable[[str], Contender],
        timeout_s: float,
        results: queue.SimpleQueue[tuple[str, float, TareError | None]],
    ) -> None:
        super().__init__(name=f"tare-race-{name}", daemon=True)
        self._launch = start
        self._timeout_s = timeout_s
        self._results = results
        self._guard = threading.Lock()
        self._guest: Contender | None = None
        self._over = False

    def run(self) -> None:
        begun = time.monotonic()
        try:
            guest = self._launch(self.name.removeprefix("tare-race-"))
            with self._guard:
                self._guest = guest
                over = self._over
            if over:
                guest.close()
                return
            guest.wait_userland(self._timeout_s)
            self._report(time.monotonic() - begun, None)
        except TareError as error:
            self._report(time.monotonic() - begun, error)

    def _report(self, seconds: float, error: TareError | None) -> None:
        self._results.put((self.name.removeprefix("tare-race-"), seconds, error))

    def end(self) -> None:
        with self._guard:
            self._over = True
            guest = self._guest
        if guest is not None:
            guest.close()
        if self.ident is not None:
            self.join()
