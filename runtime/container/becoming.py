# ruff: noqa: D102, S606
# Step explains describe() and execute() once for all; to execute is what this is for.
"""Steps that make the child the process it is to be: terminal, limits, credentials, and the program itself."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct

from runtime.container.stepping import Bare, Call, Context, Talking, shown
from runtime.linux import syscalls
from runtime.linux.passing import send
from runtime.record import ordered_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Final

# asm-generic/ioctls.h
_TIOCSCTTY: Final = 0x540E
_TIOCSWINSZ: Final = 0x5414
_TIOCGPTN: Final = 0x80045430
_TIOCSPTLCK: Final = 0x40045431
_TIOCGPTPEER: Final = 0x5441
_PTMX: Final = os.makedev(5, 2)  # Documentation/admin-guide/devices.txt
_IOPRIO_WHO_PROCESS: Final = 1  # linux/ioprio.h


@ordered_record
class BecomeRoot:
    """Become the root of a user namespace, where who has just come is nobody."""

    dumpable: bool = True

    def describe(self) -> str:
        return "become root of the user namespace"

    def execute(self) -> None:
        os.setgroups(())
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        # The change took /proc/self away, which belongs to a process's user only while it could be dumped.
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, int(self.dumpable))


@ordered_record
class Undumpable:
    """Let nobody in the container that is joined look into this process before it has become a part of it."""

    def describe(self) -> str:
        return "be undumpable until the program runs"

    def execute(self) -> None:
        syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)


@ordered_record
class ResourceLimit:
    """setrlimit(2); `number` is one of RLIMIT_…."""

    number: int
    soft: int
    hard: int

    def describe(self) -> str:
        return f"set rlimit {self.number} to {self.soft}:{self.hard}"

    def execute(self) -> None:
        try:
            syscalls.prlimit(0, self.number, self.soft, self.hard)
        except PermissionError as error:
            raise PermissionError(errno.EPERM, "not allowed to raise maximum limit") from error


@ordered_record
class IoPriority:
    """ioprio_set(2): class 1 is real time, 2 best effort, 3 idle."""

    kind: int
    priority: int

    def describe(self) -> str:
        return f"set I/O class {self.kind}, priority {self.priority}"

    def execute(self) -> None:
        syscalls.ioprio_set(_IOPRIO_WHO_PROCESS, 0, self.kind << 13 | self.priority)


@ordered_record
class Personality:
    """personality(2)."""

    persona: int

    def describe(self) -> str:
        return f"set personality {self.persona:#x}"

    def execute(self) -> None:
        syscalls.personality(self.persona)


@ordered_record
class SessionKeyring(Bare):
    """Leave the host's session keyring for an empty one, where the kernel has keyrings and lets us."""

    def describe(self) -> str:
        return "join a new session keyring"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_keyctl, syscalls.KEYCTL_JOIN_SESSION_KEYRING),)

    def execute(self) -> None:
        try:
            syscalls.join_session_keyring()
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EDQUOT, errno.EOPNOTSUPP):
                raise


@ordered_record
class Terminal(Talking):
    """A terminal of the container's own devpts as controlling terminal and standard streams, for user `uid`.

    Its master goes to the parent. With `console` it is /dev/console as well. Sizes are in characters; 0 leaves it.
    """

    rows: int
    columns: int
    uid: int = 0
    console: bool = True

    def describe(self) -> str:
        return f"open a terminal of {self.columns}×{self.rows} for user {self.uid}"

    def talk(self, context: Context) -> None:
        master = os.open(b"/dev/pts/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
        found = os.fstat(master)
        if not stat.S_ISCHR(found.st_mode) or found.st_rdev != _PTMX:
            raise OSError(errno.ENOTTY, "/dev/pts/ptmx is no terminal multiplexer")
        fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
        slave = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY)
        if self.rows or self.columns:
            fcntl.ioctl(slave, _TIOCSWINSZ, struct.pack("HHHH", self.rows, self.columns, 0, 0))
        if self.uid:
            os.fchown(slave, self.uid, -1)
        for number in (0, 1, 2):
            os.dup2(slave, number)
        fcntl.ioctl(0, _TIOCSCTTY, 0)
        if self.console:
            (number,) = struct.unpack("i", fcntl.ioctl(master, _TIOCGPTN, b"\0" * 4))
            self._bind(b"/dev/pts/%d" % number)
        send(context.report, b"console", [master])
        os.close(master)
        if slave > 2:
            os.close(slave)

    @staticmethod
    def _bind(path: bytes) -> None:
        os.close(os.open(b"/dev/console", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o620))
        syscalls.mount(path, b"/dev/console", None, syscalls.MS_BIND, None)


@ordered_record
class Confine(Bare):
    """Become `uid`:`gid` with the capabilities `sets` (effective, permitted, inheritable masks) and the filter.

    The bounding set goes first, as that needs a capability. The filter comes last, as it would forbid the rest;
    without `no_new_privileges` it needs a capability too and comes first. `sets` None leaves what the kernel
    leaves. Ends the time without a umask, in which the steps before made what they make.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    dropped: tuple[int, ...]
    sets: tuple[int, int, int] | None
    ambient: tuple[int, ...]
    no_new_privileges: bool
    seccomp: bytes | None
    seccomp_flags: int = 0
    umask: int = 0o022

    def describe(self) -> str:
        instructions = "no filter" if self.seccomp is None else f"a filter of {len(self.seccomp) // 8} instructions"
        kept = "all capabilities" if self.sets is None else f"capabilities {self.sets[1]:#x}"
        return f"become {self.uid}:{self.gid} with {kept} and {instructions}"

    def calls(self) -> tuple[Call, ...]:
        return tuple([(function, given) for _, function, given in self._named()])

    def execute(self) -> None:
        for name, function, given in self._named():
            if function(*given) == -1:
                raise syscalls.failed(name)

    def recover(self) -> None:
        raise syscalls.failed("confine")  # what has been taken away cannot be taken away again

    def _named(self) -> Iterator[tuple[str, Callable[..., int], tuple[Any, ...]]]:
        loaded = "seccomp", syscalls.bare_seccomp_set_filter, (self.seccomp, self.seccomp_flags)
        if self.seccomp is not None and not self.no_new_privileges:
            yield loaded
        yield _control(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        for capability in self.dropped:
            yield _control(syscalls.PR_CAPBSET_DROP, capability)
        yield "umask", syscalls.bare_umask, (self.umask,)
        groups = struct.pack(f"={len(self.groups)}I", *self.groups)
        yield "setgroups", syscalls.bare_setgroups, (len(self.groups), groups)
        yield "setresgid", syscalls.bare_setresgid, (self.gid,) * 3
        if self.sets is not None and self.uid:
            yield _control(syscalls.PR_SET_KEEPCAPS, 1)
        yield "setresuid", syscalls.bare_setresuid, (self.uid,) * 3
        if self.sets is not None:
            yield "capset", syscalls.bare_capset, (syscalls.capability_sets(*self.sets),)
        for capability in self.ambient:
            yield _control(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, capability)
        if self.no_new_privileges:
            yield _control(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            if self.seccomp is not None:
                yield loaded


def _control(option: int, argument: int, third: int = 0) -> tuple[str, Callable[..., int], tuple[Any, ...]]:
    return f"prctl {option} {argument}", syscalls.bare_prctl, (option, argument, third, 0, 0)


@ordered_record
class DieWithParent(Bare):
    """Ask for SIGKILL when the launcher ends. After `Confine`: the kernel forgets it when credentials change."""

    def describe(self) -> str:
        return "die with the launcher"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_prctl, (syscalls.PR_SET_PDEATHSIG, 9, 0, 0, 0)),)

    def execute(self) -> None:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)


@ordered_record
class Find:
    """Fail now as `Execute` would for a program that is not there or may not be executed."""

    paths: tuple[bytes, ...]
    argv: tuple[bytes, ...]

    def describe(self) -> str:
        return f"look for {shown(self.argv[0])}"

    def execute(self) -> None:
        denied = False
        for path in self.paths:
            if os.access(path, os.X_OK, effective_ids=True) and not os.path.isdir(path):  # noqa: PTH112
                return
            denied = denied or os.path.lexists(path)
        number = errno.EACCES if denied else errno.ENOENT
        raise OSError(number, os.strerror(number), shown(self.paths[-1]))


@ordered_record
class Execute:
    """Execute the first of `paths` that exists; never returns."""

    paths: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]

    def describe(self) -> str:
        return f"execute {shown(self.argv[0])}"

    def execute(self) -> None:
        env, denied = dict(self.env), None
        for path in self.paths:
            try:
                os.execve(path, self.argv, env)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                denied = error
        raise denied or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), shown(self.argv[0]))
