"""The kernel's capabilities by name and number, and what `--cap-add` and `--cap-drop` make of them.

Numbers and names are those of linux/capability.h (6.x). Not how they are set: that is `syscalls`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from runtime.errors import UsageError

_IN_ORDER = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
NUMBERS = {f"CAP_{name}": number for number, name in enumerate(_IN_ORDER.split())}
"""By name, `CAP_…`."""

DEFAULT = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)
"""What a Docker container has that asks for nothing (docs.docker.com, "Linux capabilities")."""

BEYOND_DEFAULT = frozenset(NUMBERS.values()) - {NUMBERS[name] for name in DEFAULT}
"""The numbers of all others."""

ALL = "ALL"


def normalise(name: str) -> str:
    """`net_admin`, `NET_ADMIN` or `CAP_NET_ADMIN` as `CAP_NET_ADMIN`; `all` as `ALL`. Raises UsageError if unknown."""
    upper = name.upper()
    if upper in (ALL, f"CAP_{ALL}"):
        return ALL
    full = upper if upper.startswith("CAP_") else f"CAP_{upper}"
    if full not in NUMBERS:
        raise UsageError(f"capability {name!r}", "the kernel has none of this name", "see capabilities(7)")
    return full


def everything(last: int = len(NUMBERS) - 1) -> tuple[str, ...]:
    """All capabilities up to number `last`, the highest that the running kernel knows."""
    return tuple(name for name, number in NUMBERS.items() if number <= last)


def held(status: Path = Path("/proc/self/status")) -> tuple[str, ...]:
    """What a process, ours unless said otherwise, can pass on: its bounding set, without names we do not know."""
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("CapBnd:"))
    mask = int(line.split()[1], 16)
    return tuple(name for name, number in NUMBERS.items() if mask >> number & 1)


def choose(
    add: Sequence[str] = (),
    drop: Sequence[str] = (),
    default: Iterable[str] = DEFAULT,
    every: Iterable[str] = tuple(NUMBERS),
) -> tuple[str, ...]:
    """What is left of `default`, by number, after Docker's rules.

    `ALL` in `add` is `every` one but what is dropped; `ALL` in `drop` leaves what is added; else what is
    dropped goes first and what is added comes after, so that a name in both stays. Raises UsageError.
    """
    added, dropped = {normalise(name) for name in add}, {normalise(name) for name in drop}
    if ALL in added:
        chosen = set(every) - dropped
    elif ALL in dropped:
        chosen = added
    else:
        chosen = (set(default) - dropped) | added
    return tuple(sorted(chosen, key=NUMBERS.__getitem__))


def numbers(names: Iterable[str], last: int = len(NUMBERS) - 1) -> frozenset[int]:
    """The numbers of those names that a kernel with capabilities up to `last` has; others are left out."""
    return frozenset(number for name in names if (number := NUMBERS.get(name, last + 1)) <= last)
