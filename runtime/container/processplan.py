"""From a configuration's process to the steps that make the child that process. Pure, without a host."""

from __future__ import annotations

import os
from collections.abc import Iterator

from runtime.container.becoming import (
    Confine,
    Execute,
    IoPriority,
    Personality,
    ResourceLimit,
    SessionKeyring,
    Terminal,
)
from runtime.container.config import Capabilities, Process
from runtime.container.config import Personality as Persona
from runtime.container.stepping import Step
from runtime.errors import TareError, UsageError
from runtime.linux import capabilities
from runtime.record import record

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_IO_CLASSES = {"IOPRIO_CLASS_RT": 1, "IOPRIO_CLASS_BE": 2, "IOPRIO_CLASS_IDLE": 3}
_DOMAINS = {"LINUX": 0, "LINUX32": 8}  # linux/personality.h
_UMASK = 0o022
# asm-generic/resource.h, by their numbers there: the module is one more library for each clone to take along
_LIMITS = {
    f"RLIMIT_{name}": number
    for number, name in enumerate(
        (
            *("CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS"),
            *("SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"),
        )
    )
}
_UNLIMITED = 2**64 - 1


@record
class Confinement:
    """What confines a process beside its own fields: the compiled filter, whether devices are guarded for it.

    `lacking` are capabilities that nobody here has to give, `given_up` those that who clones has taken from its own
    bounding set, and so from every child's.
    """

    seccomp: bytes | None
    seccomp_flags: int = 0
    devices_guarded: bool = True
    last_capability: int = capabilities.NUMBERS["CAP_CHECKPOINT_RESTORE"]
    lacking: frozenset[int] = frozenset()
    given_up: frozenset[int] = frozenset()


def check(process: Process, field: str = "process") -> None:
    """Raise UsageError for what no host of ours does."""
    for name in ("apparmor_profile", "selinux_label"):
        if getattr(process, name):
            raise UsageError(f"{field}.{_JSON[name]}", "this runtime sets no such label", "leave it out")
    if not process.args:
        raise UsageError(f"{field}.args", "empty", "say what to run")


_JSON = {"apparmor_profile": "apparmorProfile", "selinux_label": "selinuxLabel"}


def limits(process: Process) -> tuple[tuple[int, int, int], ...]:
    """Its resource limits as (number, soft, hard)."""
    found = []
    for index, limit in enumerate(process.rlimits):
        if limit.type not in _LIMITS:
            raise UsageError(f"process.rlimits[{index}].type", f"{limit.type!r} is no limit", "see setrlimit(2)")
        found.append((_LIMITS[limit.type], _signed(limit.soft), _signed(limit.hard)))
    return tuple(found)


def before(process: Process, *, set_limits: bool, keyring: bool, persona: Persona | None = None) -> Iterator[Step]:
    """What is set while the child may still do everything. Where it may not (`set_limits`), its parent sets limits."""
    if set_limits:
        yield from (ResourceLimit(*limit) for limit in limits(process))
    if keyring:
        yield SessionKeyring()
    if persona is not None:
        yield Personality(_persona(persona))
    if process.io_priority is not None:
        kind = _IO_CLASSES.get(process.io_priority.cls)
        if kind is None:
            raise UsageError("process.ioPriority.class", f"{process.io_priority.cls!r} is not known", "see ionice(1)")
        yield IoPriority(kind, process.io_priority.priority)


def confine(process: Process, given: Confinement) -> Confine:
    """The one step that takes away, with what is left: numbers of capabilities beyond the kernel's are passed over."""
    last, user = given.last_capability, process.user
    withheld = given.lacking | (frozenset() if given.devices_guarded else {capabilities.NUMBERS["CAP_MKNOD"]})
    everything = frozenset(range(last + 1))
    sets = process.capabilities
    if sets is None:
        names: Capabilities | None = None
        bounding = everything - withheld
    else:
        names, bounding = sets, capabilities.numbers(sets.bounding, last) - withheld
    if beyond := bounding & given.given_up:
        wanted = next(name for name, number in capabilities.NUMBERS.items() if number in beyond)
        raise TareError(f"capability {wanted}", "whoever launches has given it up", "launch from another process")
    return Confine(
        uid=user.uid,
        gid=user.gid,
        groups=user.additional_gids,
        dropped=tuple(sorted(everything - bounding - given.given_up)),
        sets=None if names is None else _masks(names, last, withheld),
        ambient=() if names is None else tuple(sorted(_ambient(names, last) - withheld)),
        no_new_privileges=process.no_new_privileges,
        seccomp=given.seccomp,
        seccomp_flags=given.seccomp_flags,
        umask=_UMASK if user.umask is None else user.umask,
    )


def _ambient(names: Capabilities, last: int) -> frozenset[int]:
    """Those the kernel would raise; engines name others, which runc passes over as well."""
    permitted, inheritable = capabilities.numbers(names.permitted, last), capabilities.numbers(names.inheritable, last)
    return capabilities.numbers(names.ambient, last) & permitted & inheritable


def execute(process: Process) -> Execute:
    """The last step: a name without a slash is looked for along the process's own PATH."""
    env = dict(word.partition("=")[::2] for word in process.env if "=" in word)
    env.setdefault("HOME", "/root" if process.user.uid == 0 else "/")
    name = process.args[0]
    directories = env.get("PATH", PATH).split(":")
    paths = (name,) if "/" in name else tuple(f"{part or '.'}/{name}" for part in directories)
    return Execute(
        paths=tuple(os.fsencode(path) for path in paths),
        argv=tuple(os.fsencode(word) for word in process.args),
        env=tuple((os.fsencode(key), os.fsencode(value)) for key, value in env.items()),
    )


def terminal(process: Process, *, console: bool) -> Iterator[Step]:
    """Its terminal, if it has one."""
    if process.terminal:
        size = process.console_size
        rows, columns = (0, 0) if size is None else (size.height, size.width)
        yield Terminal(rows, columns, process.user.uid, console=console)


def _masks(sets: Capabilities, last: int, withheld: frozenset[int]) -> tuple[int, int, int]:
    effective, permitted, inheritable = (
        sum(1 << number for number in capabilities.numbers(names, last) - withheld)
        for names in (sets.effective, sets.permitted, sets.inheritable)
    )
    return effective, permitted, inheritable


def _persona(persona: Persona) -> int:
    if persona.domain not in _DOMAINS or persona.flags:
        raise UsageError("linux.personality", f"{persona.domain!r} {persona.flags} is not known", "LINUX or LINUX32")
    return _DOMAINS[persona.domain]


def _signed(value: int) -> int:
    return -1 if value in (-1, _UNLIMITED) else value
