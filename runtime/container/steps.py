# ruff: noqa: D102, PTH102, PTH103, PTH120, PTH211, S606
# Step explains describe() and execute() once for all; paths are bytes; to execute is what this is for.
"""What a child does between clone and execute, as values: each can say what it does, and do it.

Made and tested without root; carried out in order by `child`. Paths are bytes, ready for the kernel.
After `PivotRoot` an absolute path means the new root and a relative one the host's tree, which
stays the working directory until `LeaveHost`: no link inside an image can lead a mount out of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import stat
import struct
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

from runtime.linux import syscalls
from runtime.linux.syscalls import MS_BIND, MS_NODEV, MS_NOEXEC, MS_NOSUID, MS_RDONLY, MS_REC, MS_REMOUNT
from runtime.network import inside

_SIOCSIFFLAGS: Final = 0x8914  # linux/sockios.h
_IFF_UP: Final = 0x1  # linux/if.h


class Step(Protocol):
    """One thing to do. `describe()` says it in a line; `execute()` does it or raises OSError."""

    def describe(self) -> str: ...
    def execute(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Context:
    """What a child knows beside its steps: the socket to its parent, and the process it may join (a pidfd or -1)."""

    report: socket.socket
    target: int


class Talking:
    """A step that needs the context: `talk()` stands for `execute()`."""

    __slots__ = ()

    def describe(self) -> str:
        raise NotImplementedError

    def execute(self) -> None:
        raise TypeError(f"{type(self).__name__} needs its context")

    def talk(self, context: Context) -> None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Write:
    """Write `text` to an existing file in one go; `0` to a cgroup's `tasks` moves the writer itself."""

    path: bytes
    text: bytes

    def describe(self) -> str:
        return f"write {self.text.decode()!r} to {_shown(self.path)}"

    def execute(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY)
        os.write(descriptor, self.text)
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class NewFile:
    """Make a file with `text` in it."""

    path: bytes
    text: bytes

    def describe(self) -> str:
        return f"make file {_shown(self.path)}"

    def execute(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, self.text)
        os.close(descriptor)


@dataclass(frozen=True, slots=True)
class Unshare:
    """Leave namespaces that cannot be left by clone3: the cgroup one begins where its creator is *then*."""

    flags: int

    def describe(self) -> str:
        return f"unshare {self.flags:#x}"

    def execute(self) -> None:
        syscalls.unshare(self.flags)


@dataclass(frozen=True, slots=True)
class Mount:
    """mount(2). A target that is missing is made first, as a `file` for a file, else as a directory."""

    source: bytes | None
    target: bytes
    filesystem: bytes | None = None
    flags: int = 0
    data: bytes | None = None
    file: bool = False

    def describe(self) -> str:
        source, data = (_shown(text) if text else "" for text in (self.source, self.data))
        kind = _shown(self.filesystem) if self.filesystem else "bind" if self.flags & MS_BIND else "flags"
        return f"mount {kind} {source} at {_shown(self.target)} ({self.flags:#x}{' ' if data else ''}{data})"

    def execute(self) -> None:
        try:
            syscalls.mount(self.source, self.target, self.filesystem, self.flags, self.data)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            _make(self.target, self.file)
            syscalls.mount(self.source, self.target, self.filesystem, self.flags, self.data)


@dataclass(frozen=True, slots=True)
class ReadOnly:
    """Make what is at `path` read-only where it is, by a bind mount on itself."""

    path: bytes

    def describe(self) -> str:
        return f"make {_shown(self.path)} read-only"

    def execute(self) -> None:
        syscalls.mount(self.path, self.path, None, MS_BIND | MS_REC, None)
        flags = MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
        syscalls.mount(None, self.path, None, flags, None)


@dataclass(frozen=True, slots=True)
class Directory:
    """Make one directory that does not exist yet."""

    path: bytes
    mode: int = 0o755

    def describe(self) -> str:
        return f"make directory {_shown(self.path)}"

    def execute(self) -> None:
        os.mkdir(self.path, self.mode)


@dataclass(frozen=True, slots=True)
class Link:
    """Make the symbolic link `path` → `target`."""

    target: bytes
    path: bytes

    def describe(self) -> str:
        return f"link {_shown(self.path)} to {_shown(self.target)}"

    def execute(self) -> None:
        os.symlink(self.target, self.path)


@dataclass(frozen=True, slots=True)
class CharacterDevice:
    """Make a character device that everybody may use."""

    path: bytes
    major: int
    minor: int

    def describe(self) -> str:
        return f"make device {_shown(self.path)} {self.major}:{self.minor}"

    def execute(self) -> None:
        os.mknod(self.path, stat.S_IFCHR | 0o666, os.makedev(self.major, self.minor))


@dataclass(frozen=True, slots=True)
class PivotRoot:
    """Make the mount at `path` the root; the host's tree stays below it in the stack, as working directory."""

    path: bytes

    def describe(self) -> str:
        return f"pivot_root to {_shown(self.path)}"

    def execute(self) -> None:
        host = os.open(b"/", os.O_PATH | os.O_DIRECTORY)
        os.chdir(self.path)
        syscalls.pivot_root(b".", b".")
        os.fchdir(host)
        os.close(host)


@dataclass(frozen=True, slots=True)
class LeaveHost:
    """Unmount the host's tree, the working directory since `PivotRoot`, and go to `directory`."""

    directory: bytes = b"/"

    def describe(self) -> str:
        return f"unmount the host's tree, enter {_shown(self.directory)}"

    def execute(self) -> None:
        syscalls.umount2(b".", syscalls.MNT_DETACH)
        os.chdir(self.directory)


@dataclass(frozen=True, slots=True)
class JoinNamespaces(Talking):
    """Enter the namespaces of the target process that `flags` name, all at once."""

    flags: int

    def describe(self) -> str:
        return f"join namespaces {self.flags:#x}"

    def talk(self, context: Context) -> None:
        syscalls.setns(context.target, self.flags)


@dataclass(frozen=True, slots=True)
class WaitForParent(Talking):
    """Say `word` to the parent and wait until it answers; end when it is gone."""

    word: str = "hooks"

    def describe(self) -> str:
        return f"wait for {self.word}"

    def talk(self, context: Context) -> None:
        context.report.send(self.word.encode(), socket.MSG_NOSIGNAL)
        if not context.report.recv(16):
            raise OSError(errno.EPIPE, "the parent is gone")


@dataclass(frozen=True, slots=True)
class LoopbackUp:
    """Bring up `lo` of the network namespace; the kernel gives it its addresses."""

    def describe(self) -> str:
        return "bring up lo"

    def execute(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            fcntl.ioctl(any_socket, _SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", _IFF_UP))


@dataclass(frozen=True, slots=True)
class Interface:
    """Wait for link `name`, which the parent makes (`Flat.links`), and set it up, and `lo`.

    Addresses are the kernel's four bytes; `hardware` is the MAC address of the gateway.
    """

    name: str
    address: bytes
    prefix_bits: int
    gateway: bytes
    hardware: bytes

    def describe(self) -> str:
        address, gateway = (socket.inet_ntoa(packed) for packed in (self.address, self.gateway))
        return f"bring up lo, and {self.name} with {address}/{self.prefix_bits} by way of {gateway}"

    def execute(self) -> None:
        inside.set_up(self.name, self.address, self.prefix_bits, self.gateway, self.hardware)


@dataclass(frozen=True, slots=True)
class Hostname:
    """Name the UTS namespace."""

    name: bytes

    def describe(self) -> str:
        return f"set hostname {_shown(self.name)}"

    def execute(self) -> None:
        syscalls.sethostname(self.name)


@dataclass(frozen=True, slots=True)
class ResourceLimit:
    """setrlimit(2); `number` is one of resource.RLIMIT_…."""

    number: int
    soft: int
    hard: int

    def describe(self) -> str:
        return f"set rlimit {self.number} to {self.soft}:{self.hard}"

    def execute(self) -> None:
        resource.setrlimit(self.number, (self.soft, self.hard))


@dataclass(frozen=True, slots=True)
class Confine:
    """Become `uid`:`gid` with no capability beyond the mask `kept`, no way to gain one, and the filter `seccomp`.

    The bounding set goes first, as that needs a capability; the filter last, as it would forbid the rest.
    Ends the time without a umask, in which the steps before made what they make.
    """

    uid: int
    gid: int
    groups: tuple[int, ...]
    dropped: tuple[int, ...]
    kept: int
    no_new_privileges: bool
    seccomp: bytes | None

    def describe(self) -> str:
        instructions = "no filter" if self.seccomp is None else f"a filter of {len(self.seccomp) // 8} instructions"
        return f"become {self.uid}:{self.gid} with capabilities {self.kept:#x} and {instructions}"

    def execute(self) -> None:
        syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
        for capability in self.dropped:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, capability)
        os.umask(0o022)
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)
        if self.uid == 0:
            syscalls.capset(self.kept, self.kept, 0)
        if self.no_new_privileges:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if self.seccomp is not None:
            syscalls.seccomp_set_filter(self.seccomp)


@dataclass(frozen=True, slots=True)
class DieWithParent:
    """Ask for SIGKILL when the launcher ends. After `Confine`: the kernel forgets it when credentials change."""

    def describe(self) -> str:
        return "die with the launcher"

    def execute(self) -> None:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)


@dataclass(frozen=True, slots=True)
class Execute:
    """Execute the first of `paths` that exists; never returns."""

    paths: tuple[bytes, ...]
    argv: tuple[bytes, ...]
    env: tuple[tuple[bytes, bytes], ...]

    def describe(self) -> str:
        return f"execute {_shown(self.argv[0])}"

    def execute(self) -> None:
        env, denied = dict(self.env), None
        for path in self.paths:
            try:
                os.execve(path, self.argv, env)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as error:
                denied = error
        raise denied or FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), _shown(self.argv[0]))


_CLASSES: Final[tuple[type, ...]] = (
    Write,
    NewFile,
    Unshare,
    Mount,
    ReadOnly,
    Directory,
    Link,
    CharacterDevice,
    PivotRoot,
    LeaveHost,
    JoinNamespaces,
    WaitForParent,
    LoopbackUp,
    Interface,
    Hostname,
    ResourceLimit,
    Confine,
    DieWithParent,
    Execute,
)
_INDEX: Final = {kind: index for index, kind in enumerate(_CLASSES)}
Row: TypeAlias = "tuple[Any, ...]"


def to_row(step: Step) -> Row:
    """A step as plain values: what marshal can carry."""
    kind = type(step)
    return (_INDEX[kind], *(getattr(step, name) for name in kind.__slots__))  # type: ignore[attr-defined]


def from_row(row: Row) -> Step:
    """The step that `to_row` was given."""
    step: Step = _CLASSES[row[0]](*row[1:])
    return step


def _shown(text: bytes) -> str:
    return os.fsdecode(text)


def _make(path: bytes, file: bool) -> None:
    """Make a mount point inside an image that lacks it."""
    if file:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o644))
    else:
        os.makedirs(path, exist_ok=True)
