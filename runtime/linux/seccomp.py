"""System-call filters: compiled by libseccomp outside any launch, installed by the child as ready bytes.

Compiling takes tens of milliseconds and loads libseccomp; `cached` keeps what came out below a directory, so that a
command that finds it there needs neither. Not what a profile says: that is `profile`.
"""

from __future__ import annotations

import errno
import os
import platform
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from pathlib import Path
from types import MappingProxyType

from runtime.errors import TareError, UsageError
from runtime.linux.profile import Seccomp, SyscallArgument, SyscallRule, default_profile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_PLAIN_ACTIONS = MappingProxyType(
    {
        "SCMP_ACT_KILL": 0x00000000,
        "SCMP_ACT_KILL_THREAD": 0x00000000,
        "SCMP_ACT_KILL_PROCESS": 0x80000000,
        "SCMP_ACT_TRAP": 0x00030000,
        "SCMP_ACT_LOG": 0x7FFC0000,
        "SCMP_ACT_ALLOW": 0x7FFF0000,
    }
)
_NUMBERED_ACTIONS = MappingProxyType({"SCMP_ACT_ERRNO": 0x00050000, "SCMP_ACT_TRACE": 0x7FF00000})
_NOTIFY = "SCMP_ACT_NOTIFY"
ACTIONS = frozenset((*_PLAIN_ACTIONS, *_NUMBERED_ACTIONS, _NOTIFY))
NUMBERED_ACTIONS = frozenset(_NUMBERED_ACTIONS)
"""Those that take an errno."""

OPERATORS = MappingProxyType(
    {
        "SCMP_CMP_NE": 1,
        "SCMP_CMP_LT": 2,
        "SCMP_CMP_LE": 3,
        "SCMP_CMP_EQ": 4,
        "SCMP_CMP_GE": 5,
        "SCMP_CMP_GT": 6,
        "SCMP_CMP_MASKED_EQ": 7,
    }
)
_64, _LE, _N32 = 0x80000000, 0x40000000, 0x20000000
ARCHITECTURES = MappingProxyType(
    {
        # linux/audit.h
        "SCMP_ARCH_NATIVE": 0,
        "SCMP_ARCH_X86": 3 | _LE,
        "SCMP_ARCH_X86_64": 62 | _64 | _LE,
        "SCMP_ARCH_X32": 62 | _LE,
        "SCMP_ARCH_ARM": 40 | _LE,
        "SCMP_ARCH_AARCH64": 183 | _64 | _LE,
        "SCMP_ARCH_LOONGARCH64": 258 | _64 | _LE,
        "SCMP_ARCH_M68K": 4,
        "SCMP_ARCH_MIPS": 8,
        "SCMP_ARCH_MIPS64": 8 | _64,
        "SCMP_ARCH_MIPS64N32": 8 | _64 | _N32,
        "SCMP_ARCH_MIPSEL": 8 | _LE,
        "SCMP_ARCH_MIPSEL64": 8 | _64 | _LE,
        "SCMP_ARCH_MIPSEL64N32": 8 | _64 | _LE | _N32,
        "SCMP_ARCH_PARISC": 15,
        "SCMP_ARCH_PARISC64": 15 | _64,
        "SCMP_ARCH_PPC": 20,
        "SCMP_ARCH_PPC64": 21 | _64,
        "SCMP_ARCH_PPC64LE": 21 | _64 | _LE,
        "SCMP_ARCH_RISCV64": 243 | _64 | _LE,
        "SCMP_ARCH_S390": 22,
        "SCMP_ARCH_S390X": 22 | _64,
        "SCMP_ARCH_SH": 42 | _LE,
        "SCMP_ARCH_SHEB": 42,
    }
)
FLAGS = MappingProxyType(
    {
        # linux/seccomp.h: for seccomp(2) when the program is installed, not part of the program
        "SECCOMP_FILTER_FLAG_TSYNC": 1,
        "SECCOMP_FILTER_FLAG_LOG": 2,
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV": 32,
    }
)
_HIGHEST = 600
_UNKNOWN = 0x00050000 | errno.ENOSYS
_PERMISSIVE = (0x7FFC0000, 0x7FFF0000)
_NO_SUCH_CALL = -1
# linux/bpf_common.h and struct seccomp_data
_LOAD, _JUMP_EQUAL, _JUMP_GREATER, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x25, 0x35, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET = 0, 4
_X32_BIT = 0x40000000
_DIGEST_BYTES = 32
_LARGEST_BYTES = 4096 * 8  # BPF_MAXINSNS


@cache
def default_program() -> bytes:
    """The default profile as classic BPF for this machine's native architecture.

    Other architectures' calls (32-bit ones on a 64-bit kernel) are ENOSYS. Raises TareError without libseccomp.
    """
    return compile_profile(default_profile())


def compile_profile(profile: Seccomp) -> bytes:
    """A profile as classic BPF, 8 bytes an instruction.

    As in runc: calls that libseccomp does not know are passed over; conditions of one rule on the same argument are
    alternatives; a profile that refuses what it does not name answers ENOSYS for calls newer than all of its own, so
    that libraries fall back. Raises UsageError naming the field at fault, TareError without libseccomp.
    """
    import tempfile

    library = _library()
    default = _action(profile.default_action, profile.default_errno_ret, "defaultAction")
    try:
        program = library.SyscallFilter(defaction=default)
        # A binary tree: the kernel runs the filter once for every call number when it is installed, at each launch.
        program.set_attr(library.Attr.CTL_OPTIMIZE, 2)
        if default == _UNKNOWN:
            program.set_attr(library.Attr.ACT_BADARCH, default)
        architectures = _add_architectures(program, library, profile.architectures)
        for index, rule in enumerate(profile.syscalls):
            _add_rule(program, library, rule, default, f"syscalls[{index}]")
        with tempfile.TemporaryFile() as file:
            program.export_bpf(file)
            file.seek(0)
            code = file.read()
    except OSError as error:
        raise _bad(f"libseccomp refuses it: {error.strerror}") from error
    if default not in (_UNKNOWN, *_PERMISSIVE):
        names = {name for rule in profile.syscalls for name in rule.names}
        code = b"".join(_newer_unknown(library, architecture, names) for architecture in architectures) + code
    if len(code) > _LARGEST_BYTES:
        raise _bad(f"it compiles to {len(code) // 8} instructions, the kernel takes {_LARGEST_BYTES // 8}")
    return code


@lru_cache(maxsize=64)
def cached(profile: Seccomp, directory: Path) -> bytes:
    """`compile_profile`, kept below `directory` by a digest of all that it depends on.

    What is read there is trusted only if it is whole and nobody else could have written it; a directory that cannot
    be written is no failure. Raises as `compile_profile`.
    """
    path = directory / f"{_key(profile)}.bpf"
    program = _read(path)
    if program is None:
        program = compile_profile(profile)
        with suppress(OSError):
            _write(path, program)
    return program


def flags(profile: Seccomp) -> int:
    """The flags for seccomp(2) when the profile's program is installed. Unknown ones are left out."""
    return sum(FLAGS.get(name, 0) for name in set(profile.flags))


def native_architecture() -> str:
    """The SCMP_ARCH_… of this machine. Raises TareError without libseccomp."""
    number = _library().system_arch()
    return next(name for name, value in ARCHITECTURES.items() if value == number)


@cache
def known_calls() -> tuple[str, ...]:
    """The names of every call that libseccomp knows for the native architecture, by number."""
    native = _library().system_arch()
    names = (_name(number, native) for number in range(_HIGHEST))
    return tuple(name for name in names if name is not None)


def _library() -> Any:
    """The binding, loaded when something must be compiled."""
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise TareError("seccomp filter", str(error), "run ./bootstrap to install libseccomp") from error
    return pyseccomp


def _name(number: int, architecture: int) -> str | None:
    try:
        return str(_library().resolve_syscall(architecture, number).decode())
    except (OSError, ValueError):
        return None


def _bad(why: str) -> UsageError:
    return UsageError("seccomp profile", why, "correct the profile")


def _action(name: str, number: int | None, field: str) -> int:
    """The filter's return value. EPERM is the specification's errno where none is given."""
    if name in _PLAIN_ACTIONS and number is None:
        return _PLAIN_ACTIONS[name]
    if name in _NUMBERED_ACTIONS:
        return _NUMBERED_ACTIONS[name] | ((errno.EPERM if number is None else number) & 0xFFFF)
    if name == _NOTIFY:
        raise _bad(f"{field}: {name} needs a listener, which this runtime does not serve")
    if name in _PLAIN_ACTIONS:
        raise _bad(f"{field}: {name} takes no errno")
    raise _bad(f"{field}: {name!r} is not one of {', '.join(sorted(ACTIONS))}")


def _add_architectures(program: Any, library: Any, names: Iterable[str]) -> tuple[int, ...]:
    """Let the program decide about these too. Returns all it decides about, the native one first."""
    native = int(library.system_arch())
    found = [native]
    for index, name in enumerate(names):
        number = ARCHITECTURES.get(name)
        if number is None:
            raise _bad(f"architectures[{index}]: {name!r} is not one of {', '.join(ARCHITECTURES)}")
        if (number or native) in found:
            continue
        try:
            program.add_arch(number)
        except OSError as error:
            raise _bad(f"architectures[{index}]: libseccomp cannot filter {name} on this machine") from error
        found.append(number)
    return tuple(found)


def _add_rule(program: Any, library: Any, rule: SyscallRule, default: int, field: str) -> None:
    action = _action(rule.action, rule.errno_ret, f"{field}.action")
    if action == default:
        return  # libseccomp takes a rule that changes nothing for a mistake
    for conditions in _alternatives(rule.args):
        arguments = [_argument(library, argument, field) for argument in conditions]
        for name in rule.names:
            number = library.resolve_syscall(0, name)
            if number == _NO_SUCH_CALL:
                continue
            try:
                program.add_rule(action, number, *arguments)
            except OSError as error:
                if error.errno != errno.EEXIST:
                    raise _bad(f"{field}: libseccomp refuses the rule for {name}: {error.strerror}") from error


def _alternatives(arguments: tuple[SyscallArgument, ...]) -> Iterator[tuple[SyscallArgument, ...]]:
    """A filter compares each argument once: of several conditions on the same one, any will do."""
    if len({argument.index for argument in arguments}) == len(arguments):
        yield arguments
    else:
        yield from ((argument,) for argument in arguments)


def _argument(library: Any, argument: SyscallArgument, field: str) -> Any:
    operator = OPERATORS.get(argument.op)
    if operator is None:
        raise _bad(f"{field}.args: {argument.op!r} is not one of {', '.join(OPERATORS)}")
    if not 0 <= argument.index < 6:
        raise _bad(f"{field}.args: a call has arguments 0 to 5, not {argument.index}")
    if operator == OPERATORS["SCMP_CMP_MASKED_EQ"]:
        return library.Arg(argument.index, operator, argument.value, argument.value_two)  # mask, then value
    return library.Arg(argument.index, operator, argument.value)


def _newer_unknown(library: Any, architecture: int, names: Iterable[str]) -> bytes:
    """Instructions before the program: calls of one architecture beyond the highest that it names are ENOSYS."""
    if architecture == ARCHITECTURES["SCMP_ARCH_X32"]:
        return b""  # its calls are x86-64's with a bit set, and few
    highest = max((library.resolve_syscall(architecture, name) for name in names), default=-1)
    if highest < 0:
        return b""
    return b"".join(
        (
            _instruction(_LOAD, _ARCHITECTURE_OFFSET),
            _instruction(_JUMP_EQUAL, architecture, no=4),
            _instruction(_LOAD, _NUMBER_OFFSET),
            _instruction(_JUMP_GREATER_EQUAL, _X32_BIT, yes=2),
            _instruction(_JUMP_GREATER, highest, no=1),
            _instruction(_RETURN, _UNKNOWN),
        )
    )


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    """One struct sock_filter."""
    return struct.pack("=HBBI", code, yes, no, value)


def _key(profile: Seccomp) -> str:
    """Changes with the profile, the machine, libseccomp and this code."""
    made_of = (repr(profile).encode(), f"{platform.machine()} {_library_files()}".encode(), Path(__file__).read_bytes())
    return _digest(b"\0".join(made_of)).hex()


def _digest(content: bytes) -> bytes:
    import hashlib  # brings OpenSSL with it

    return hashlib.sha256(content).digest()


def _library_files() -> list[str]:
    """The versioned file names of libseccomp, found without loading it."""
    found = (path for root in ("/lib", "/usr/lib") for path in Path(root).glob("*linux*/libseccomp.so.2"))
    other = (Path(root, "libseccomp.so.2") for root in ("/lib64", "/usr/lib64", "/usr/lib"))
    return sorted({str(path.resolve()) for path in (*found, *other)})


def _read(path: Path) -> bytes | None:
    """What `_write` wrote there, or None if it is not there, not whole, or could be another's."""
    try:
        with path.open("rb") as file:
            info = os.fstat(file.fileno())
            content = file.read(_LARGEST_BYTES + _DIGEST_BYTES + 1)
    except OSError:
        return None
    program = content[_DIGEST_BYTES:]
    whole = _digest(program) == content[:_DIGEST_BYTES] and len(program) % 8 == 0 < len(program)
    own = stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and not info.st_mode & 0o022
    return program if whole and own else None


def _write(path: Path, program: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.urandom(8).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(_digest(program) + program)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
