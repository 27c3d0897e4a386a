"""The system calls that Python's standard library lacks, one typed function each. The only file with ctypes.

Each function is named for its call, which section 2 of the manual describes.

A call that fails raises OSError with its errno and a text that names the call and what it was about.
Constants are named as in the kernel's headers. Nothing here knows what a container is.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from _socket import AF_INET, SOCK_CLOEXEC, SOCK_DGRAM

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Final

# linux/sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_PIDFD: Final = 0x00001000
CLONE_PARENT: Final = 0x00008000
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
MS_SYNCHRONOUS: Final = 0x10
MS_REMOUNT: Final = 0x20
MS_MANDLOCK: Final = 0x40
MS_DIRSYNC: Final = 0x80
MS_NOSYMFOLLOW: Final = 0x100
MS_NOATIME: Final = 0x400
MS_NODIRATIME: Final = 0x800
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_SILENT: Final = 1 << 15
MS_UNBINDABLE: Final = 1 << 17
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MS_SHARED: Final = 1 << 20
MS_RELATIME: Final = 1 << 21
MS_I_VERSION: Final = 1 << 23
MS_STRICTATIME: Final = 1 << 24
MS_LAZYTIME: Final = 1 << 25
MNT_DETACH: Final = 2
OPEN_TREE_CLONE: Final = 1
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
MOUNT_ATTR_ATIME: Final = 0x70
MOUNT_ATTR_NOATIME: Final = 0x10
MOUNT_ATTR_STRICTATIME: Final = 0x20
MOUNT_ATTR_NODIRATIME: Final = 0x80
MOUNT_ATTR_IDMAP: Final = 0x100000
MOUNT_ATTR_NOSYMFOLLOW: Final = 0x200000
FSCONFIG_SET_STRING: Final = 1
FSCONFIG_CMD_CREATE: Final = 6

# linux/fcntl.h
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

# linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_GET_DUMPABLE: Final = 3
PR_SET_DUMPABLE: Final = 4
PR_SET_KEEPCAPS: Final = 8
PR_CAPBSET_READ: Final = 23
PR_CAPBSET_DROP: Final = 24
PR_GET_SECUREBITS: Final = 27
PR_SET_SECUREBITS: Final = 28
SECBIT_NO_SETUID_FIXUP: Final = 1 << 2  # linux/securebits.h
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_RAISE: Final = 2
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4

# keyctl(2): a new session keyring without a name, instead of the one inherited
KEYCTL_JOIN_SESSION_KEYRING: Final = (1, None, 0, 0, 0)

# linux/sockios.h
SIOCSIFFLAGS: Final = 0x8914

# linux/openat2.h
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
RESOLVE_IN_ROOT: Final = 0x10

# linux/close_range.h, linux/seccomp.h, linux/capability.h
CLOSE_RANGE_CLOEXEC: Final = 4
SECCOMP_SET_MODE_FILTER: Final = 1
_LINUX_CAPABILITY_VERSION_3: Final = 0x20080522

# linux/bpf.h
BPF_PROG_TYPE_CGROUP_DEVICE: Final = 15
BPF_CGROUP_DEVICE: Final = 6
_BPF_PROG_LOAD, _BPF_PROG_ATTACH, _BPF_PROG_DETACH = 5, 8, 9
_BPF_PROG_GET_FD_BY_ID, _BPF_OBJ_GET_INFO_BY_FD, _BPF_PROG_QUERY = 13, 15, 16
_BPF_F_ALLOW_MULTI: Final = 1 << 1

# asm/unistd_64.h and asm-generic/unistd.h: the calls that the C library does not wrap
_NUMBERS: Final = {
    "x86_64": {
        "bpf": 321,
        "pivot_root": 155,
        "capset": 126,
        "personality": 135,
        "keyctl": 250,
        "ioprio_set": 251,
        "seccomp": 317,
    },
    "aarch64": {
        "bpf": 280,
        "pivot_root": 41,
        "capset": 91,
        "personality": 92,
        "keyctl": 219,
        "ioprio_set": 30,
        "seccomp": 277,
    },
}
# the same on every machine since they came in with clone3's generation
_COMMON: Final = {
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
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
    numbers = _NUMBERS.get(os.uname().machine)
    number = -1 if numbers is None else numbers.get(name) or _COMMON[name]
    function = _function("syscall", _long, *types)
    return lambda *arguments: function(number, *arguments)


_mount = _function("mount", _text, _text, _text, _ulong, _text)
_umount2 = _function("umount2", _text, _int)
_unshare = _function("unshare", _int)
_setns = _function("setns", _int, _int)
_inotify_init1 = _function("inotify_init1", _int)
_inotify_add_watch = _function("inotify_add_watch", _int, _text, ctypes.c_uint32)
_sethostname = _function("sethostname", _text, ctypes.c_size_t)
_setfsuid = _function("setfsuid", ctypes.c_uint)
_setfsgid = _function("setfsgid", ctypes.c_uint)
_prlimit = _function("prlimit", _int, _int, _text, _pointer)
_prctl = _function("prctl", _int, _ulong, _ulong, _ulong, _ulong)
_pivot_root = _call("pivot_root", _text, _text)
_capset = _call("capset", _pointer, _pointer)
_seccomp = _call("seccomp", _ulong, _ulong, _pointer)
_bpf = _call("bpf", _ulong, _pointer, _ulong)
_clone3 = _call("clone3", _pointer, ctypes.c_size_t)
_close_range = _call("close_range", _ulong, _ulong, _ulong)
_setdomainname = _function("setdomainname", _text, ctypes.c_size_t)
_personality = _call("personality", _ulong)
_keyctl = _call("keyctl", _ulong, _text, _ulong, _ulong, _ulong)
_ioprio_set = _call("ioprio_set", _ulong, _ulong, _ulong)
_open_tree = _call("open_tree", _long, _text, _ulong)
_move_mount = _call("move_mount", _long, _text, _long, _text, _ulong)
_fsopen = _call("fsopen", _text, _ulong)
_fsconfig = _call("fsconfig", _long, _ulong, _text, _text, _long)
_fsmount = _call("fsmount", _long, _ulong, _ulong)
_mount_setattr = _call("mount_setattr", _long, _text, _ulong, _pointer, ctypes.c_size_t)
_openat2 = _call("openat2", _long, _text, _pointer, ctypes.c_size_t)


# What a list of calls is made of, without their checks: the answer is -1 when one fails.
bare_mount, bare_umount2, bare_unshare, bare_sethostname, bare_prctl = _mount, _umount2, _unshare, _sethostname, _prctl
bare_mkdir = _function("mkdir", _text, ctypes.c_uint)
bare_mknod = _function("mknod", _text, ctypes.c_uint, _ulong)
bare_symlink = _function("symlink", _text, _text)
_open, _write = _function("open", _text, _int, ctypes.c_uint), _function("write", _int, _text, ctypes.c_size_t)
_close, _socket = _function("close", _int), _function("socket", _int, _int, _int)
_ioctl = _function("ioctl", _int, _ulong, _text)
bare_chdir = _function("chdir", _text)
bare_umask = _function("umask", ctypes.c_uint)
bare_setgroups = _function("setgroups", ctypes.c_size_t, _text)
bare_setresgid = _function("setresgid", *(ctypes.c_uint,) * 3)
bare_setresuid = _function("setresuid", *(ctypes.c_uint,) * 3)
bare_pivot_root, bare_keyctl = _pivot_root, _keyctl


def bare_write(path: bytes, flags: int, mode: int, text: bytes) -> int:
    """Open `path`, write `text` in one go, close: -1 for whichever fails."""
    descriptor = _open(path, flags, mode)
    if descriptor == -1:
        return -1
    if _write(descriptor, text, len(text)) != -1:
        return _close(descriptor)
    number = ctypes.get_errno()
    _close(descriptor)
    ctypes.set_errno(number)
    return -1


def bare_link_flags(request: bytes) -> int:
    """Set a link's flags as `request` says, a struct ifreq (netdevice(7))."""
    descriptor = _socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    return -1 if descriptor == -1 else _ioctl(descriptor, SIOCSIFFLAGS, request) or _close(descriptor)


def bare_is_place(path: bytes) -> int:
    """Open `path` as `open_place` does, and close it again."""
    descriptor = _openat2(AT_FDCWD, path, _PLACE, 24)
    return -1 if descriptor == -1 else _close(descriptor)


def bare_is_directory(path: bytes) -> int:
    """Open `path`, which must be a directory and no link, and close it again."""
    descriptor = _open(path, _REAL_DIRECTORY, 0)
    return -1 if descriptor == -1 else _close(descriptor)


def bare_capset(sets: bytes) -> int:
    """capset(2) for the caller, of `capability_sets`."""
    return _capset(_CAPABILITY_HEADER, sets)


def bare_seccomp_set_filter(program: bytes, flags: int) -> int:
    """As `seccomp_set_filter`."""
    structure = _Program(len(program) // 8, program)
    return _seccomp(SECCOMP_SET_MODE_FILTER, flags, ctypes.byref(structure))


def failed(call: str) -> OSError:
    """What a bare call that has just answered -1 would have raised."""
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


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
    if _umount2(target, flags) == -1:
        _check(-1, "umount2", os.fsdecode(target))


def pivot_root(new_root: bytes, put_old: bytes) -> None:
    """Exchange the root mount."""
    if _pivot_root(new_root, put_old) == -1:
        _check(-1, "pivot_root", os.fsdecode(new_root))


def unshare(flags: int) -> None:
    """Leave namespaces for new ones."""
    if _unshare(flags) == -1:
        _check(-1, f"unshare {flags:#x}")


def setns(descriptor: int, flags: int) -> None:
    """Join a namespace, in the caller's thread and for good: use it in a child."""
    _check(_setns(descriptor, flags), f"setns {flags:#x}")


def inotify_init1(flags: int) -> int:
    """A descriptor that tells of changes to files (inotify(7))."""
    return _check(_inotify_init1(flags), "inotify_init1")


def inotify_add_watch(descriptor: int, path: bytes, mask: int) -> int:
    """Tell of the events `mask` at `path`."""
    return _check(_inotify_add_watch(descriptor, path, mask), "inotify_add_watch", os.fsdecode(path))


def sethostname(name: bytes) -> None:
    """Name the UTS namespace."""
    if _sethostname(name, len(name)) == -1:
        _check(-1, "sethostname", name.decode())


def setdomainname(name: bytes) -> None:
    """Name the UTS namespace's NIS domain."""
    _check(_setdomainname(name, len(name)), "setdomainname", name.decode())


def personality(persona: int) -> None:
    """Set the execution domain."""
    _check(_personality(persona), f"personality {persona:#x}")


def ioprio_set(which: int, who: int, priority: int) -> None:
    """Set the I/O scheduling class and priority: `class << 13 | data`."""
    _check(_ioprio_set(which, who, priority), f"ioprio_set {priority:#x}")


def join_session_keyring() -> None:
    """keyctl(KEYCTL_JOIN_SESSION_KEYRING): a new session keyring instead of the one inherited."""
    _check(_keyctl(*KEYCTL_JOIN_SESSION_KEYRING), "keyctl")


def setfsids(uid: int, gid: int) -> None:
    """Own what the calling thread makes as `uid` and `gid`. Raises OSError(EPERM) when it may not."""
    _setfsgid(gid)
    _setfsuid(uid)
    keep = 0xFFFFFFFF  # no id: the calls say the present one, and never fail
    if (_setfsuid(keep), _setfsgid(keep)) != (uid, gid):
        raise OSError(errno.EPERM, "setfsuid: Operation not permitted")


def prctl(option: int, argument: int = 0, third: int = 0) -> int:
    """Change or read an attribute of the process."""
    result = _prctl(option, argument, third, 0, 0)
    return result if result != -1 else _check(-1, f"prctl {option} {argument}")


_RLIMIT_ALL = (1 << 64) - 1


def prlimit(pid: int, resource: int, soft: int, hard: int) -> None:
    """Set a resource limit of a process, the caller's where `pid` is 0; -1 is none."""
    values = struct.pack("=QQ", soft & _RLIMIT_ALL, hard & _RLIMIT_ALL)
    _check(_prlimit(pid, resource, values, None), f"prlimit {resource}")


# struct __user_cap_header_struct of the caller
_CAPABILITY_HEADER = struct.pack("=Ii", _LINUX_CAPABILITY_VERSION_3, 0)


def capability_sets(effective: int, permitted: int, inheritable: int) -> bytes:
    """Two of struct __user_cap_data_struct: each is a mask of bits `1 << CAP_…`."""
    low = [mask & 0xFFFFFFFF for mask in (effective, permitted, inheritable)]
    high = [mask >> 32 for mask in (effective, permitted, inheritable)]
    # As plain bytes: a child of a launcher has few pages of its own.
    return struct.pack("=6I", *low, *high)


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the caller's capabilities."""
    _check(bare_capset(capability_sets(effective, permitted, inheritable)), "capset")


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp_set_filter(program: bytes, flags: int = 0) -> None:
    """Install the classic BPF `program`, 8 bytes an instruction, for the caller and what it executes."""
    _check(bare_seccomp_set_filter(program, flags), "seccomp")


def close_range(first: int, last: int, flags: int) -> None:
    """Close descriptors, or mark them."""
    if _close_range(first, last, flags) == -1:
        _check(-1, f"close_range {first}")


_OpenHow = ctypes.c_uint64 * 3  # struct open_how: flags, mode, resolve


def openat2(directory: int, path: bytes, flags: int, resolve: int, mode: int = 0) -> int:
    """Open `path` below the descriptor `directory` by the rules `resolve`; returns a close-on-exec descriptor."""
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    while True:
        result = _openat2(directory, path, ctypes.byref(how), ctypes.sizeof(how))
        # Something was renamed while `..` was resolved: the manual says to try again.
        if result != -1 or ctypes.get_errno() != errno.EAGAIN:
            return _check(result, "openat2", os.fsdecode(path))


_REAL_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# struct open_how for open_place(), made once: a child of a launcher has few pages of its own.
_PLACE = struct.pack("=QQQ", os.O_PATH | os.O_CLOEXEC, 0, RESOLVE_NO_SYMLINKS)


def open_place(path: bytes) -> int:
    """A path descriptor of `path`, on which there must be no link: openat2(2) with RESOLVE_NO_SYMLINKS."""
    result = _openat2(AT_FDCWD, path, _PLACE, 24)
    return result if result != -1 else _check(-1, "openat2", os.fsdecode(path))


class _MountAttributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


def open_tree(directory: int, path: bytes, flags: int) -> int:
    """A descriptor of a mount, or of a detached copy of it (OPEN_TREE_CLONE); close-on-exec."""
    return _check(_open_tree(directory, path, flags | os.O_CLOEXEC), "open_tree", os.fsdecode(path))


def move_mount(source: int, target: int, path: bytes = b"") -> None:
    """Attach the detached mount `source` at `path`, or on what the descriptor `target` stands for."""
    flags = MOVE_MOUNT_F_EMPTY_PATH | (0 if path else MOVE_MOUNT_T_EMPTY_PATH)
    _check(_move_mount(source, b"", target, path, flags), "move_mount", os.fsdecode(path))


def fsopen(filesystem: bytes) -> int:
    """A context in which a file system is configured; close-on-exec."""
    return _check(_fsopen(filesystem, 1), f"fsopen {filesystem.decode()}")


def fsconfig(context: int, command: int, key: bytes | None = None, value: bytes | None = None) -> None:
    """Set a parameter (FSCONFIG_SET_STRING), or make the file system (FSCONFIG_CMD_CREATE)."""
    about = "" if key is None else key.decode()
    _check(_fsconfig(context, command, key, value, 0), f"fsconfig {about}".rstrip(), os.fsdecode(value or b""))


def fsmount(context: int, attributes: int = 0) -> int:
    """A detached mount of the file system that was made in `context`; close-on-exec."""
    return _check(_fsmount(context, 1, attributes), "fsmount")


def mount_setattr(descriptor: int, flags: int, attr_set: int, attr_clr: int = 0, userns_fd: int = 0) -> None:
    """Change attributes (MOUNT_ATTR_…) of the mount of `descriptor`; of those below too with AT_RECURSIVE."""
    attributes = _MountAttributes(attr_set, attr_clr, 0, userns_fd)
    result = _mount_setattr(descriptor, b"", flags | AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes))
    _check(result, f"mount_setattr {attr_set:#x}")


def _bpf_command(command: int, call: str, layout: str, *values: int | bytes) -> bytes:
    """bpf(2) with union bpf_attr as struct `layout`; the union as it is afterwards."""
    packed = struct.pack(layout, *values)
    attributes = ctypes.create_string_buffer(packed, len(packed))
    _check(_bpf(command, attributes, len(packed)), call)
    return attributes.raw


def bpf_load(kind: int, instructions: bytes, name: str) -> int:
    """Give the kernel an eBPF program of BPF_PROG_TYPE `kind`, 8 bytes an instruction; a descriptor of it."""
    code, license_text = ctypes.create_string_buffer(instructions), ctypes.create_string_buffer(b"GPL")
    packed = struct.pack(
        "<IIQQIIQII16s",
        *(kind, len(instructions) // 8, ctypes.addressof(code), ctypes.addressof(license_text)),
        *(0, 0, 0, 0, 0, name.encode()),
    )
    attributes = ctypes.create_string_buffer(packed, len(packed))
    return _check(_bpf(_BPF_PROG_LOAD, attributes, len(packed)), "bpf PROG_LOAD", name)


def bpf_attach(group: int, program: int, kind: int) -> None:
    """Let `program` decide, beside those already there, for the cgroup of descriptor `group`."""
    _bpf_command(_BPF_PROG_ATTACH, "bpf PROG_ATTACH", "<IIII", group, program, kind, _BPF_F_ALLOW_MULTI)


def bpf_detach(group: int, program: int, kind: int) -> None:
    """Take `program` off the cgroup of descriptor `group`."""
    _bpf_command(_BPF_PROG_DETACH, "bpf PROG_DETACH", "<IIII", group, program, kind, 0)


def bpf_attached(group: int, kind: int) -> tuple[int, ...]:
    """The numbers of the programs attached to the cgroup of descriptor `group` itself, at most 64."""
    numbers = (ctypes.c_uint32 * 64)()
    answer = _bpf_command(
        _BPF_PROG_QUERY, "bpf PROG_QUERY", "<IIIIQI4x", group, kind, 0, 0, ctypes.addressof(numbers), len(numbers)
    )
    return tuple(numbers[: struct.unpack_from("<I", answer, 24)[0]])


def bpf_open(number: int) -> int:
    """A descriptor of the program of that number."""
    packed = struct.pack("<III", number, 0, 0)
    attributes = ctypes.create_string_buffer(packed, len(packed))
    return _check(_bpf(_BPF_PROG_GET_FD_BY_ID, attributes, len(packed)), "bpf PROG_GET_FD_BY_ID", str(number))


def bpf_name(program: int) -> str:
    """What the program was called when it was loaded: struct bpf_prog_info, 16 bytes at 64."""
    info = ctypes.create_string_buffer(80)
    _bpf_command(_BPF_OBJ_GET_INFO_BY_FD, "bpf OBJ_GET_INFO_BY_FD", "<IIQ", program, len(info), ctypes.addressof(info))
    return info.raw[64:80].rstrip(b"\0").decode()


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
