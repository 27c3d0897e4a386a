"""Device rules as a program for the kernel: what cgroup v2 has in place of a devices controller.

`compile_rules` is pure: rules in, instructions out (Documentation/bpf/standardization/instruction-set.rst).
`attach` gives them to a group. The kernel runs the program at every mknod(2) and open(2) of a device node.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from runtime.cgroups.devices import ACCESS, check_rules, numbers, types
from runtime.cgroups.resources import DeviceRule
from runtime.instance import LimitReading
from runtime.linux import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# struct bpf_cgroup_dev_ctx of linux/bpf.h: access_type, major, minor, 32 bits each.
_CONTEXT_ACCESS, _CONTEXT_MAJOR, _CONTEXT_MINOR = 0, 4, 8
_LETTERS: Final = {"m": 1, "r": 2, "w": 4}  # BPF_DEVCG_ACC_*
_KINDS: Final = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_*

# Opcodes of the instructions used.
LOAD: Final = 0x61  # dst = *(u32 *)(src + offset)
MOVE: Final = 0xB7  # dst = immediate
COPY32: Final = 0xBC  # dst = (u32) src
AND32: Final = 0x54  # dst &= immediate
SHIFT32: Final = 0x74  # dst >>= immediate
UNLESS32: Final = 0x56  # if dst != immediate, 32 bits
WHEN32: Final = 0x16  # if dst == immediate, 32 bits
EXIT: Final = 0x95

# The registers: the verdict, the context as the kernel hands it over, and what is taken out of it.
_VERDICT, _CONTEXT, _KIND, _LEFT, _MAJOR, _MINOR, _SCRATCH = 0, 1, 2, 3, 4, 5, 6


def _instruction(opcode: int, destination: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """Struct bpf_insn."""
    return struct.pack("<BBhI", opcode, destination | source << 4, offset, immediate & 0xFFFFFFFF)


@lru_cache(maxsize=64)
def compile_rules(rules: tuple[DeviceRule, ...]) -> bytes:
    """A BPF_PROG_TYPE_CGROUP_DEVICE program that returns 1 exactly where `rules` allow all that is asked.

    The rules are gone through from the last to the first; each that matches settles its letters of the
    request. One settled by a denial ends it, and so does the last one settled by a permission.
    Raises UsageError for what is no rule.
    """
    check_rules(rules)
    code = [
        _instruction(LOAD, _KIND, _CONTEXT, _CONTEXT_ACCESS),
        _instruction(COPY32, _LEFT, _KIND),
        _instruction(AND32, _KIND, immediate=0xFFFF),
        _instruction(SHIFT32, _LEFT, immediate=16),
        _instruction(LOAD, _MAJOR, _CONTEXT, _CONTEXT_MAJOR),
        _instruction(LOAD, _MINOR, _CONTEXT, _CONTEXT_MINOR),
    ]
    for rule in reversed(rules):
        code += _rule(rule)
    code += [_instruction(MOVE, _VERDICT, immediate=0), _instruction(EXIT)]
    return b"".join(code)


def _rule(rule: DeviceRule) -> list[bytes]:
    kinds, access = types(rule), sum(_LETTERS[letter] for letter in set(rule.access or ACCESS))
    if not kinds:
        return []
    settled = _allowing(access) if rule.allow else _denying(access)
    matches = [(_KIND, _KINDS[kinds])] if len(kinds) == 1 else []
    matches += [
        (register, number)
        for register, number in zip((_MAJOR, _MINOR), numbers(rule), strict=True)
        if number is not None
    ]
    length = len(matches) + len(settled)
    tests = [
        _instruction(UNLESS32, register, offset=length - at - 1, immediate=number)
        for at, (register, number) in enumerate(matches)
    ]
    return tests + settled


def _allowing(access: int) -> list[bytes]:
    """Take the letters off what is left; allow when nothing is."""
    return [
        _instruction(AND32, _LEFT, immediate=~access & 7),
        _instruction(UNLESS32, _LEFT, offset=2, immediate=0),
        _instruction(MOVE, _VERDICT, immediate=1),
        _instruction(EXIT),
    ]


def _denying(access: int) -> list[bytes]:
    """Deny when one of the letters is left."""
    return [
        _instruction(COPY32, _SCRATCH, _LEFT),
        _instruction(AND32, _SCRATCH, immediate=access),
        _instruction(WHEN32, _SCRATCH, offset=2, immediate=0),
        _instruction(MOVE, _VERDICT, immediate=0),
        _instruction(EXIT),
    ]


def program_name(program: bytes) -> str:
    """What the kernel is to call the program, so that one attached can be told from another: 13 characters."""
    return f"tare_{zlib.crc32(program):08x}"


def attach(directory: Path, rules: Sequence[DeviceRule]) -> None:
    """Confine the v2 group `directory` to `rules`, in place of what confined it before. Raises OSError.

    There is no moment without a filter: the new one is in force before an old one goes.
    """
    program = compile_rules(tuple(rules))
    with _opened(directory) as group:
        old = syscalls.bpf_attached(group, syscalls.BPF_CGROUP_DEVICE)
        if not old:
            with _kept(program) as shared:
                syscalls.bpf_attach(group, shared, syscalls.BPF_CGROUP_DEVICE)
            return
        with _loaded(program) as new:  # the kernel does not take the kept one twice
            syscalls.bpf_attach(group, new, syscalls.BPF_CGROUP_DEVICE)
        for number in old:
            with suppress(FileNotFoundError), _known(number) as program_before:
                syscalls.bpf_detach(group, program_before, syscalls.BPF_CGROUP_DEVICE)


def attached(directory: Path) -> tuple[str, ...]:
    """The names of the device programs attached to the group itself, not to those above. Raises OSError."""
    names = []
    with _opened(directory) as group:
        for number in syscalls.bpf_attached(group, syscalls.BPF_CGROUP_DEVICE):
            with _known(number) as program:
                names.append(syscalls.bpf_name(program))
    return tuple(names)


@lru_cache(maxsize=1)
def usable() -> bool:
    """Whether this kernel loads such a program for this process: tried once."""
    try:
        with _loaded(compile_rules(())):
            return True
    except OSError:
        return False


_KEPT: Final[dict[bytes, int]] = {}
_KEPT_MOST: Final = 16


@contextmanager
def _kept(program: bytes) -> Iterator[int]:
    """The program, loaded once by this process: that takes fifty times as long as attaching it.

    Whoever closes all descriptors closes these too, and the number may be another file's by now: it is asked.
    """
    descriptor = _KEPT.get(program)
    if descriptor is not None and _is(descriptor, program):
        yield descriptor
        return
    _KEPT.pop(program, None)
    with _loaded(program) as fresh:
        if len(_KEPT) < _KEPT_MOST:
            _KEPT[program] = os.dup(fresh)
        yield fresh


def _is(descriptor: int, program: bytes) -> bool:
    try:
        return syscalls.bpf_name(descriptor) == program_name(program)
    except OSError:
        return False


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _loaded(program: bytes) -> Iterator[int]:
    descriptor = syscalls.bpf_load(syscalls.BPF_PROG_TYPE_CGROUP_DEVICE, program, program_name(program))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _known(number: int) -> Iterator[int]:
    descriptor = syscalls.bpf_open(number)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def reading(directory: Path | None, rules: Sequence[DeviceRule]) -> LimitReading:
    """Whether the kernel holds exactly the program of `rules` for the group itself."""
    asked = program_name(compile_rules(tuple(rules)))
    try:
        read = ",".join(attached(directory)) if directory is not None else ""
    except OSError as error:
        read = error.strerror or str(error)
    return LimitReading(name="devices", asked=asked, read=read, source=f"bpf {directory}", holds=asked == read)
