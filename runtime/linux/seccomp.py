"""System-call filters: compiled by libseccomp outside any launch, installed by the child as ready bytes.

The default profile permits every call of this kernel generation except those that reach beyond a
container: the set that Docker's default profile withholds from its default capabilities
(https://docs.docker.com/engine/security/seccomp/). Calls this list does not know are ENOSYS.
"""

from __future__ import annotations

import errno
import tempfile
from functools import cache

from runtime.errors import TareError
from runtime.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)

# One group a line of reasons; names that this machine's architecture lacks do no harm.
_KERNEL_CODE = """
    bpf create_module delete_module finit_module get_kernel_syms init_module kcmp kexec_file_load kexec_load
    lookup_dcookie perf_event_open query_module lsm_get_self_attr lsm_list_modules lsm_set_self_attr
"""
_MOUNTS_AND_NAMESPACES = """
    fsconfig fsmount fsopen fspick listmount mount mount_setattr move_mount name_to_handle_at nfsservctl
    open_by_handle_at open_tree open_tree_attr pivot_root quotactl quotactl_fd setns statmount sysfs umount
    umount2 unshare ustat
"""
_MACHINE = """
    _sysctl acct clock_adjtime clock_settime ioperm iopl reboot setdomainname sethostname settimeofday stime
    swapoff swapon syslog vhangup vm86 vm86old get_mempolicy mbind migrate_pages move_pages set_mempolicy
    set_mempolicy_home_node
"""
_NOT_NAMESPACED_OR_OFTEN_ABUSED = """
    add_key fanotify_init io_uring_enter io_uring_register io_uring_setup keyctl memfd_secret request_key uselib
    userfaultfd
"""
DENIED = frozenset((_KERNEL_CODE + _MOUNTS_AND_NAMESPACES + _MACHINE + _NOT_NAMESPACED_OR_OFTEN_ABUSED).split())
"""Refused with EPERM, as a missing privilege would be."""

_HIGHEST = 600
_AF_VSOCK = 40
_NAMESPACES = (
    CLONE_NEWNS,
    CLONE_NEWCGROUP,
    CLONE_NEWUTS,
    CLONE_NEWIPC,
    CLONE_NEWUSER,
    CLONE_NEWPID,
    CLONE_NEWNET,
)
_PERSONALITIES = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)


@cache
def default_program() -> bytes:
    """The default profile as classic BPF for this machine's native architecture.

    Other architectures' calls (32-bit ones on a 64-bit kernel) are ENOSYS. Raises TareError without libseccomp.
    """
    try:
        import pyseccomp
    except (ImportError, OSError, RuntimeError) as error:
        raise TareError("seccomp filter", str(error), "run ./bootstrap to install libseccomp") from error
    unknown, refused = pyseccomp.ERRNO(errno.ENOSYS), pyseccomp.ERRNO(errno.EPERM)
    program = pyseccomp.SyscallFilter(defaction=unknown)
    program.set_attr(pyseccomp.Attr.ACT_BADARCH, unknown)
    # A binary tree: the kernel runs the filter once for every call number when it is installed, at each launch.
    program.set_attr(pyseccomp.Attr.CTL_OPTIMIZE, 2)
    for name in known_calls():
        if name in DENIED:
            program.add_rule(refused, name)
        elif name == "clone":
            program.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(0, pyseccomp.MASKED_EQ, sum(_NAMESPACES), 0))
            for flag in _NAMESPACES:
                program.add_rule(refused, name, pyseccomp.Arg(0, pyseccomp.MASKED_EQ, flag, flag))
        elif name == "socket":
            program.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(0, pyseccomp.NE, _AF_VSOCK))
            program.add_rule(refused, name, pyseccomp.Arg(0, pyseccomp.EQ, _AF_VSOCK))
        elif name == "personality":
            for value in _PERSONALITIES:
                program.add_rule(pyseccomp.ALLOW, name, pyseccomp.Arg(0, pyseccomp.EQ, value))
        elif name != "clone3":
            # clone3 hides its flags behind a pointer; on ENOSYS the C library falls back to clone.
            program.add_rule(pyseccomp.ALLOW, name)
    with tempfile.TemporaryFile() as file:
        program.export_bpf(file)
        file.seek(0)
        return file.read()


@cache
def known_calls() -> tuple[str, ...]:
    """The names of every call that libseccomp knows for the native architecture, by number."""
    import pyseccomp

    native = pyseccomp.system_arch()
    names = (_name(number, native) for number in range(_HIGHEST))
    return tuple(name for name in names if name is not None)


def _name(number: int, architecture: int) -> str | None:
    import pyseccomp

    try:
        return str(pyseccomp.resolve_syscall(architecture, number).decode())
    except (OSError, ValueError):
        return None
