"""The system calls that Python's standard library lacks, one typed function each. The only file with ctypes.

Each function is named for its call, which section 2 of the manual describes.

A call that fails raises OSError with its errno and a text that names the call and what it was about.
Constants are named as in the kernel's headers. Nothing here knows what a container is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Callable, Iterable
from typing import Final

# linux/sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_PIDFD: Final = 0x00001000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000

# linux/mount.h
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_RELATIME: Final = 1 << 21
MS_STRICTATIME: Final = 1 << 24
MNT_DETACH: Final = 2

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# linux/openat2.h
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# linux/close_range.h, linux/seccomp.h, linux/capability.h
CLOSE_RANGE_CLOEXEC: Final = 4
SECCOMP_SET_MODE_FILTER: Final = 1
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522

# asm/unistd_64.h and asm-generic/unistd.h: the calls that the C library does not wrap
_NUMBERS: Final = {
    "x86_64": {"pivot_root": 155, "capset": 126, "seccomp": 317, "clone3": 435, "close_range": 436, "openat2": 437},
    "aarch64": {"pivot_root": 41, "capset": 91, "seccomp": 277, "clone3": 435, "close_range": 436, "openat2": 437},
}

_LIBC = ctypes.CDLL(None, use_errno=True)
_long, _ulong, _int, _text, _pointer = (
    ctypes.c_long,
    ctypes.c_ulong,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
)


def _function(name: str, *types: type) -> Callable[..., int]:
    """The C library's `name`. Each use of `[]` makes a new object, so that prototypes do not collide."""
    function = _LIBC[name]
    function.argtypes = types
    function.restype = _long if name == "syscall" else _int
    return function


def _call(name: str, *types: type) -> Callable[..., int]:
    """The system call `name` by its number; calling it on an unknown machine raises OSError(ENOSYS)."""
    number = _NUMBERS.get(platform.machine(), {}).get(name, -1)
    function = _function("syscall", _long, *types)
    return lambda *arguments: function(number, *arguments)


_mount = _function("mount", _text, _text, _text, _ulong, _text)
_umount2 = _function("umount2", _text, _int)
_unshare = _function("unshare", _int)
_setns = _function("setns", _int, _int)
_sethostname = _function("sethostname", _text, ctypes.c_size_t)
_prctl = _function("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_pivot_root = _call("pivot_root", _text, _text)
_capset = _call("capset", _pointer, _pointer)
_seccomp = _call("seccomp", _ulong, _ulong, _pointer)
_clone3 = _call("clone3", _pointer, ctypes.c_size_t)
_close_range = _call("close_range", _ulong, _ulong, _ulong)
_openat2 = _call("openat2", _long, _text, _pointer, ctypes.c_size_t)


def _check(result: int, call: str, about: str = "") -> int:
    """Return `result`, or raise what errno says about `call`."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", about or None)
    return result


def mount(source: bytes | None, target: bytes, filesystem: bytes | None, flags: int, data: bytes | None) -> None:
    """Attach a file system or change a mount."""
    if _mount(source, target, filesystem, flags, data) == -1:
        _check(-1, f"mount {(filesystem or source or b'').decode()}", os.fsdecode(target))


def umount2(target: bytes, flags: int) -> None:
    """Detach a mount."""
    _check(_umount2(target, flags), "umount2", os.fsdecode(target))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Exchange the root mount."""
    _check(_pivot_root(new_root, put_old), "pivot_root", os.fsdecode(new_root))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    _check(_unshare(flags), f"unshare {flags:#x}")


def setns(descriptor: int, flags: int) -> None:
    """Join a namespace, in the caller's thread and for good: use it in a child."""
    _check(_setns(descriptor, flags), f"setns {flags:#x}")


def sethostname(name: bytes) -> None:
    """Name the UTS namespace."""
    _check(_sethostname(name, len(name)), "sethostname", name.decode())


def prctl(option: int, argument: int = 0, third: int = 0) -> int:
    """Change or read an attribute of the process."""
    return _check(_prctl(option, argument, third, 0, 0), f"prctl {option} {argument}")


# struct __user_cap_header_struct, and two of __user_cap_data_struct: made once, as making a type is slow.
_CapabilityHeader = ctypes.c_uint32 * 2
_CapabilityData = ctypes.c_uint32 * 6


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the caller's capabilities, each a mask of bits `1 << CAP_…`."""
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    header, data = _CapabilityHeader(_LINUX_CAPABILITY_VERSION_3, 0), _CapabilityData(*low, *high)
    _check(_capset(ctypes.byref(header), ctypes.byref(data)), "capset")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp_set_filter(program: bytes) -> None:
    """Install the classic BPF `program`, 8 bytes an instruction, for the caller and what it executes."""
    structure = _Program(len(program) // 8, program)
    _check(_seccomp(SECCOMP_SET_MODE_FILTER, 0, ctypes.byref(structure)), "seccomp")


def close_range(first: int, last: int, flags: int) -> None:
    """Close descriptors, or mark them."""
    _check(_close_range(first, last, flags), f"close_range {first}")


_OpenHow = ctypes.c_uint64 * 3  # struct open_how: flags, mode, resolve


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` below the descriptor `directory` by the rules `resolve`; returns a close-on-exec descriptor."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        result = _openat2(directory, path, ctypes.byref(how), ctypes.sizeof(how))
        # Something was renamed while `..` was resolved: the manual says to try again.
        if result != -1 or ctypes.get_errno() != errno.EAGAIN:
            return _check(result, "openat2", os.fsdecode(path))


class _CloneArguments(ctypes.Structure):
    """struct clone_args, its first 88 bytes (CLONE_ARGS_SIZE_VER2)."""

    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    )


def clone3(flags: int, exit_signal: int, cgroup: int | None = None) -> tuple[int, int]:
    """Clone the process like fork: (pid, pidfd) in the parent, (0, -1) in the child.

    `cgroup` is a descriptor of the v2 group to be born in. The C library and Python do not learn of
    the fork: the caller must have one thread, and the child should do little and execute.
    """
    pidfd = ctypes.c_int(-1)
    arguments = _CloneArguments(
        flags=flags | CLONE_PIDFD | (0 if cgroup is None else CLONE_INTO_CGROUP),
        pidfd=ctypes.addressof(pidfd),
        exit_signal=exit_signal,
        cgroup=cgroup or 0,
    )
    pid = _check(_clone3(ctypes.byref(arguments), ctypes.sizeof(arguments)), f"clone3 {flags:#x}")
    return pid, pidfd.value if pid else -1


def capability_mask(capabilities: Iterable[int]) -> int:
    """The bits of capability numbers."""
    return sum(1 << number for number in set(capabilities))
