"""What a system-call filter says, as values: the OCI `linux.seccomp`, and the default profile.

Field names are the specification's in snake case (runtime-spec 1.2, config-linux.md). Not how a profile becomes a
program: that is `seccomp`.

The default profile permits every call of this kernel generation except those that reach beyond a container, which
are refused with EPERM as a missing privilege would be; a capability lifts what it stands for, as in Docker's
default profile (https://docs.docker.com/engine/security/seccomp/). Calls it does not know are ENOSYS.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from functools import cache

from runtime.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from runtime.record import record


@record
class SyscallArgument:
    """`op` compares argument `index` with `value` (and `value_two`, for SCMP_CMP_MASKED_EQ)."""

    index: int
    value: int
    op: str
    value_two: int = 0


@record
class SyscallRule:
    """What happens at these calls when all `args` hold."""

    names: tuple[str, ...]
    action: str
    errno_ret: int | None = None
    args: tuple[SyscallArgument, ...] = ()


@record
class Seccomp:
    """A system-call filter: actions are SCMP_ACT_…, architectures SCMP_ARCH_…; none is the native one alone."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    listener_path: str | None = None
    listener_metadata: str | None = None
    syscalls: tuple[SyscallRule, ...] = ()


# What a capability lifts; "" nothing does. Names that this machine's architecture lacks do no harm.
_WITHHELD = {
    "CAP_BPF": "bpf",
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYSLOG": "syslog",
    "CAP_SYS_ADMIN": """
        bpf fanotify_init fsconfig fsmount fsopen fspick listmount lookup_dcookie lsm_get_self_attr lsm_list_modules
        lsm_set_self_attr mount mount_setattr move_mount name_to_handle_at open_tree open_tree_attr perf_event_open
        pivot_root quotactl quotactl_fd setdomainname sethostname setns statmount syslog umount umount2 unshare
    """,
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_MODULE": "delete_module finit_module init_module",
    "CAP_SYS_NICE": "get_mempolicy mbind migrate_pages move_pages set_mempolicy set_mempolicy_home_node",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp",
    "CAP_SYS_RAWIO": "ioperm iopl",
    "CAP_SYS_TIME": "clock_adjtime clock_adjtime64 clock_settime clock_settime64 settimeofday stime",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "": """
        _sysctl add_key create_module get_kernel_syms io_uring_enter io_uring_register io_uring_setup kexec_file_load
        kexec_load keyctl memfd_secret nfsservctl query_module request_key swapoff swapon sysfs uselib userfaultfd
        ustat vm86 vm86old
    """,
}
DENIED = frozenset(" ".join(_WITHHELD.values()).split())
"""Refused with EPERM in a container with Docker's default capabilities."""

_PERMITTED = """
    _llseek _newselect accept accept4 access adjtimex afs_syscall alarm arch_prctl arm_fadvise64_64
    arm_sync_file_range bdflush bind break breakpoint brk cacheflush cachestat capget capset chdir chmod chown
    chown32 chroot clock_getres clock_getres_time64 clock_gettime clock_gettime64 clock_nanosleep
    clock_nanosleep_time64 close close_range connect copy_file_range creat dup dup2 dup3 epoll_create
    epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2
    execve execveat exit exit_group faccessat faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir
    fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr file_getattr
    file_setattr flistxattr flock fork fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
    ftime ftruncate ftruncate64 futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake futimesat
    get_robust_list get_thread_area get_tls getcpu getcwd getdents getdents64 getegid getegid32 geteuid
    geteuid32 getgid getgid32 getgroups getgroups32 getitimer getpeername getpgid getpgrp getpid getpmsg getppid
    getpriority getrandom getresgid getresgid32 getresuid getresuid32 getrlimit getrusage getsid getsockname
    getsockopt gettid gettimeofday getuid getuid32 getxattr getxattrat gtty idle inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch io_cancel io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup
    io_submit ioctl ioprio_get ioprio_set ipc kill landlock_add_rule landlock_create_ruleset
    landlock_restrict_self lchown lchown32 lgetxattr link linkat listen listxattr listxattrat llistxattr lock
    lremovexattr lseek lsetxattr lstat lstat64 madvise map_shadow_stack membarrier memfd_create mincore mkdir
    mkdirat mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mpx mq_getsetattr mq_notify
    mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal
    msgctl msgget msgrcv msgsnd msync multiplexer munlock munlockall munmap nanosleep newfstatat nice oldfstat
    oldlstat oldolduname oldstat olduname open openat openat2 pause pciconfig_iobase pciconfig_read
    pciconfig_write pidfd_getfd pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect poll
    ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_madvise process_mrelease process_vm_readv
    process_vm_writev prof profil pselect6 pselect6_time64 ptrace putpmsg pwrite64 pwritev pwritev2 read
    readahead readdir readlink readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages
    removexattr removexattrat rename renameat renameat2 restart_syscall riscv_flush_icache riscv_hwprobe rmdir
    rseq rt_sigaction rt_sigpending rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait
    rt_sigtimedwait_time64 rt_tgsigqueueinfo rtas s390_guarded_storage s390_pci_mmio_read s390_pci_mmio_write
    s390_runtime_instr s390_sthyi sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp security select semctl semget semop
    semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto set_robust_list
    set_thread_area set_tid_address set_tls setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups
    setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32
    setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 setxattr setxattrat sgetmask shmat shmctl
    shmdt shmget shutdown sigaction sigaltstack signal signalfd signalfd4 sigpending sigprocmask sigreturn
    sigsuspend socketcall socketpair splice spu_create spu_run ssetmask stat stat64 statfs statfs64 statx stty
    subpage_prot swapcontext switch_endian symlink symlinkat sync sync_file_range sync_file_range2 syncfs
    sys_debug_setcontext sysinfo tee tgkill time timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64 timerfd timerfd_create timerfd_gettime timerfd_gettime64
    timerfd_settime timerfd_settime64 times tkill truncate truncate64 tuxcall ugetrlimit ulimit umask uname
    unlink unlinkat usr26 usr32 utime utimensat utimensat_time64 utimes vfork vmsplice vserver wait4 waitid
    waitpid write writev
"""
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
_ALLOW, _REFUSE = "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO"


def default_profile(capabilities: Iterable[str] = ()) -> Seccomp:
    """The profile of a container with these capabilities. Those of Docker's default set lift nothing."""
    return _default_profile(frozenset(capabilities).intersection(_WITHHELD))


@cache
def _default_profile(capabilities: frozenset[str]) -> Seccomp:
    lifted = {name for capability in capabilities for name in _WITHHELD[capability].split()}
    allowed = set(_PERMITTED.split()) | lifted
    rules = [
        SyscallRule(names=tuple(sorted(DENIED - lifted)), action=_REFUSE, errno_ret=errno.EPERM),
        _when("socket", _ALLOW, "SCMP_CMP_NE", _AF_VSOCK),
        _when("socket", _REFUSE, "SCMP_CMP_EQ", _AF_VSOCK),
        *(_when("personality", _ALLOW, "SCMP_CMP_EQ", value) for value in _PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" in capabilities:
        allowed |= {"clone", "clone3"}
    else:
        # clone3 hides its flags behind a pointer; on ENOSYS the C library falls back to clone.
        rules.append(_when("clone", _ALLOW, "SCMP_CMP_MASKED_EQ", sum(_NAMESPACES), 0))
        rules += [_when("clone", _REFUSE, "SCMP_CMP_MASKED_EQ", flag, flag) for flag in _NAMESPACES]
    return Seccomp(
        default_action=_REFUSE,
        default_errno_ret=errno.ENOSYS,
        syscalls=(SyscallRule(names=tuple(sorted(allowed)), action=_ALLOW), *rules),
    )


def _when(name: str, action: str, op: str, value: int, value_two: int = 0) -> SyscallRule:
    """One rule about the first argument, refusing with EPERM if it refuses."""
    return SyscallRule(
        names=(name,),
        action=action,
        errno_ret=errno.EPERM if action == _REFUSE else None,
        args=(SyscallArgument(index=0, value=value, op=op, value_two=value_two),),
    )
