"""The default filter, run instruction by instruction as the kernel would."""

from __future__ import annotations

import errno
import struct

import pytest

from runtime.linux import seccomp
from runtime.linux.syscalls import CLONE_NEWUSER

pyseccomp = pytest.importorskip("pyseccomp")

ALLOW, KILL = 0x7FFF0000, 0x80000000
NATIVE = 0xC000003E  # AUDIT_ARCH_X86_64


def refused(number: int) -> int:
    return 0x00050000 | number


def verdict(call: int, *arguments: int, architecture: int | None = None) -> int:
    """What the filter returns: a classic BPF machine with the few instructions that libseccomp emits."""
    data = struct.pack("<iIQ6Q", call, architecture or pyseccomp.system_arch(), 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    program = list(struct.iter_unpack("<HBBI", seccomp.default_program()))
    at, accumulator = 0, 0
    while True:
        code, yes, no, k = program[at]
        at += 1
        match code:
            case 0x20:  # ld [k]
                (accumulator,) = struct.unpack_from("<I", data, k)
            case 0x54:  # and k
                accumulator &= k
            case 0x05:  # ja k
                at += k
            case 0x15:  # jeq
                at += yes if accumulator == k else no
            case 0x25:  # jgt
                at += yes if accumulator > k else no
            case 0x35:  # jge
                at += yes if accumulator >= k else no
            case 0x06:  # ret k
                return int(k)
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


def number(name: str) -> int:
    return int(pyseccomp.resolve_syscall(pyseccomp.system_arch(), name))


@pytest.mark.parametrize("name", ["read", "write", "openat", "execve", "ptrace", "chroot", "futex", "io_submit"])
def test_ordinary_calls_are_allowed(name: str) -> None:
    assert verdict(number(name)) == ALLOW


@pytest.mark.parametrize(
    "name", ["mount", "setns", "unshare", "bpf", "keyctl", "kexec_load", "io_uring_setup", "reboot"]
)
def test_calls_that_reach_beyond_are_refused(name: str) -> None:
    assert verdict(number(name)) == refused(errno.EPERM)


def test_clone_may_make_threads_and_no_namespaces() -> None:
    assert verdict(number("clone"), 0x50F00) == ALLOW
    assert verdict(number("clone"), CLONE_NEWUSER | 17) == refused(errno.EPERM)


def test_clone3_is_unknown_so_that_libraries_fall_back() -> None:
    assert verdict(number("clone3")) == refused(errno.ENOSYS)


def test_vsock_is_the_only_socket_refused() -> None:
    assert verdict(number("socket"), 40) == refused(errno.EPERM)
    assert verdict(number("socket"), 2) == ALLOW


def test_what_is_not_known_is_not_allowed() -> None:
    assert verdict(5000) == refused(errno.ENOSYS)


def test_other_architectures_are_unknown() -> None:
    assert verdict(number("read"), architecture=0x40000003) == refused(errno.ENOSYS)


def test_a_call_is_decided_in_few_instructions() -> None:
    """The kernel runs the filter for every call number at each launch: a list instead of a tree would be slow."""
    assert len(seccomp.default_program()) // 8 < 4096
    assert len(seccomp.known_calls()) > 300
