"""Seccomp profiles as users write them: Docker's format, with its conditions resolved, or the OCI's own.

Docker's profile is the OCI's `linux.seccomp` with an `archMap` instead of `architectures`, and rules that hold only
with or without certain capabilities, architectures or kernels (github.com/moby/profiles, `seccomp`). Not how it becomes
a program: that is `runtime.linux.seccomp`.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from runtime.container import decode
from runtime.container.config import Seccomp, SyscallArgument, SyscallRule
from runtime.errors import UsageError
from runtime.record import field, record, replace

# GOARCH, which `includes` and `excludes` speak of, by what uname says.
_GO_NAMES = {
    "x86_64": "amd64",
    "i386": "386",
    "i686": "386",
    "aarch64": "arm64",
    "armv7l": "arm",
    "armv6l": "arm",
    "loongarch64": "loong64",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
    "mips64": "mips64",
    "mips": "mips",
}
_NATIVE = {
    "x86_64": "SCMP_ARCH_X86_64",
    "i386": "SCMP_ARCH_X86",
    "i686": "SCMP_ARCH_X86",
    "aarch64": "SCMP_ARCH_AARCH64",
    "armv7l": "SCMP_ARCH_ARM",
    "armv6l": "SCMP_ARCH_ARM",
    "loongarch64": "SCMP_ARCH_LOONGARCH64",
    "ppc64le": "SCMP_ARCH_PPC64LE",
    "riscv64": "SCMP_ARCH_RISCV64",
    "s390x": "SCMP_ARCH_S390X",
    "mips64": "SCMP_ARCH_MIPS64",
    "mips": "SCMP_ARCH_MIPS",
}
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})", re.ASCII)


@record
class _Condition:
    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: str | None = None


@record
class _Rule:
    """A rule, as `SyscallRule`, and when it is one. `name` is the old form of `names`."""

    action: str
    names: tuple[str, ...] = ()
    name: str | None = None
    errno_ret: int | None = None
    args: tuple[SyscallArgument, ...] = ()
    includes: _Condition = field(default_factory=_Condition)
    excludes: _Condition = field(default_factory=_Condition)


@record
class _Architecture:
    architecture: str
    sub_architectures: tuple[str, ...] = ()


@record
class _Profile:
    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    arch_map: tuple[_Architecture, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[_Rule, ...] = ()


@record
class Host:
    """What conditions ask about: the machine as uname names it, and the kernel's release."""

    machine: str = field(default_factory=platform.machine)
    release: str = field(default_factory=platform.release)


def load(path: Path, capabilities: Collection[str], host: Host | None = None) -> Seccomp:
    """The profile in a file, as it is for a container with these capabilities. Raises UsageError naming the field."""
    return parse(decode.read_json(path), capabilities, host, name=str(path))


def parse(
    document: Mapping[str, Any],
    capabilities: Collection[str],
    host: Host | None = None,
    *,
    name: str = "seccomp profile",
) -> Seccomp:
    """A profile of either format, its conditions resolved. Raises UsageError naming the field."""
    host = host or Host()
    profile = decode.parse_as(_Profile, document, name)
    if profile.architectures and profile.arch_map:
        raise UsageError(name, "architectures: there is an archMap too", "leave out one of them")
    resolved = Seccomp(
        default_action=profile.default_action,
        default_errno_ret=profile.default_errno_ret,
        architectures=profile.architectures or _architectures(profile.arch_map, host),
        flags=profile.flags,
        listener_path=profile.listener_path,
        listener_metadata=profile.listener_metadata,
        syscalls=tuple(
            _rule(rule, f"syscalls[{index}]", name)
            for index, rule in enumerate(profile.syscalls)
            if _holds(rule, f"syscalls[{index}]", name, capabilities, host)
        ),
    )
    # The numbers of the rules are those of the file only if none has been left out: the check comes before, too.
    everything = replace(resolved, syscalls=tuple(_rule(rule, "", name) for rule in profile.syscalls))
    decode.parse_seccomp(decode.document(everything), name)
    return resolved


def _architectures(arch_map: tuple[_Architecture, ...], host: Host) -> tuple[str, ...]:
    """The machine's own, and those whose programs it runs too."""
    native = _NATIVE.get(host.machine)
    for entry in arch_map:
        if entry.architecture == native:
            return (entry.architecture, *entry.sub_architectures)
    return ()


def _rule(rule: _Rule, path: str, name: str) -> SyscallRule:
    if rule.name is not None and rule.names:
        raise UsageError(name, f"{path}.name: there are names too", "leave out one of them")
    names = rule.names if rule.name is None else (rule.name,)
    return SyscallRule(names=names, action=rule.action, errno_ret=rule.errno_ret, args=rule.args)


def _holds(rule: _Rule, path: str, name: str, capabilities: Collection[str], host: Host) -> bool:
    """All of what a rule includes must be so; any of what it excludes must not."""
    inside, outside = rule.includes, rule.excludes
    machine = _GO_NAMES.get(host.machine, host.machine)
    return (
        all(capability in capabilities for capability in inside.caps)
        and not any(capability in capabilities for capability in outside.caps)
        and (not inside.arches or machine in inside.arches)
        and machine not in outside.arches
        and _is_new_enough(inside, host, f"{path}.includes.minKernel", name, without=True)
        and not _is_new_enough(outside, host, f"{path}.excludes.minKernel", name, without=False)
    )


def _is_new_enough(condition: _Condition, host: Host, path: str, name: str, *, without: bool) -> bool:
    """Whether the kernel is at least the one wanted; `without` one, as said."""
    if condition.min_kernel is None:
        return without
    wanted = _VERSION.fullmatch(condition.min_kernel)
    if wanted is None:
        raise UsageError(name, f"{path}: {condition.min_kernel[:40]!r} is not a version such as 4.8", "correct it")
    running = _VERSION.match(host.release)
    return running is not None and _pair(running) >= _pair(wanted)


def _pair(match: re.Match[str]) -> tuple[int, int]:
    return int(match[1]), int(match[2])
