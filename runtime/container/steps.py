# ruff: noqa: D102
# Step explains describe() and execute() once for all.
"""What a child does between clone and execute, as values, and how they travel to whoever carries them out.

Here are those about namespaces and waiting; files are in `mounting` and `furnishing`, the process itself in `becoming`.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from _socket import MSG_NOSIGNAL, inet_ntoa

from runtime.container import becoming, furnishing, hooks, mounting
from runtime.container.stepping import JOINED, Bare, Call, Context, Step, Talking, shown
from runtime.errors import TareError
from runtime.linux import syscalls
from runtime.linux.passing import send
from runtime.network import inside
from runtime.record import ordered_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final, TypeAlias

_IFF_UP: Final = 0x1  # linux/if.h
_LO_UP: Final = struct.pack("16sh22x", b"lo", _IFF_UP)


@ordered_record
class Write(Bare):
    """Write `text` to an existing file in one go; `0` to a cgroup's `tasks` moves the writer itself."""

    path: bytes
    text: bytes

    def describe(self) -> str:
        return f"write {self.text.decode()!r} to {shown(self.path)}"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_write, (self.path, os.O_WRONLY, 0, self.text)),)

    def execute(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY)
        os.write(descriptor, self.text)
        os.close(descriptor)


@ordered_record
class Unshare(Bare):
    """Leave namespaces that cannot be left by clone3: the cgroup one begins where its creator is *then*."""

    flags: int

    def describe(self) -> str:
        return f"unshare {self.flags:#x}"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_unshare, (self.flags,)),)

    def execute(self) -> None:
        syscalls.unshare(self.flags)


@ordered_record
class EnterTime:
    """Enter the time namespace made for one's children, its offsets being settled.

    Before Linux 6.3 execve does not do that, and a process whose children would be in another one cannot vfork.
    """

    def describe(self) -> str:
        return "enter the new time namespace"

    def execute(self) -> None:
        descriptor = os.open(b"/proc/self/ns/time_for_children", os.O_RDONLY)
        syscalls.setns(descriptor, syscalls.CLONE_NEWTIME)
        os.close(descriptor)


@ordered_record
class JoinNamespaces(Talking):
    """Go on in the namespaces of the target process that `flags` name, as another child of the parent's.

    That one is born when all of them, and the root, are joined: whoever shares its process namespace, with whatever
    capability, finds no way to the host in its files under /proc. `start` is when the target began, in clock ticks
    since boot: what has its number now may be another process.
    """

    flags: int
    pid: int
    start: int

    def describe(self) -> str:
        return f"join namespaces {self.flags:#x} of process {self.pid}"

    def talk(self, context: Context) -> None:
        # The target's descriptor is older than this look: it means the process that is found here.
        if _start(self.pid) != self.start:
            raise OSError(errno.ESRCH, "it does not run any more", f"process {self.pid}")
        syscalls.setns(context.target, self.flags)
        os.close(context.target)
        pid, pidfd = syscalls.clone3(syscalls.CLONE_PARENT, 0)
        if pid:
            send(context.report, JOINED + b"%d" % pid, [pidfd])
            os._exit(0)
        os.setsid()


def _start(pid: int) -> int:
    """As `ledger.process_start`, with less to import; -1 when there is none."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    except FileNotFoundError:
        return -1
    stat = os.read(descriptor, 4096)
    os.close(descriptor)
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


@ordered_record
class LoopbackUp(Bare):
    """Bring up `lo` of the network namespace; the kernel gives it its addresses."""

    def describe(self) -> str:
        return "bring up lo"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_link_flags, (_LO_UP,)),)

    def execute(self) -> None:
        if syscalls.bare_link_flags(_LO_UP) == -1:
            raise syscalls.failed("SIOCSIFFLAGS lo")


@ordered_record
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
        address, gateway = (inet_ntoa(packed) for packed in (self.address, self.gateway))
        return f"bring up lo, and {self.name} with {address}/{self.prefix_bits} by way of {gateway}"

    def execute(self) -> None:
        inside.set_up(self.name, self.address, self.prefix_bits, self.gateway, self.hardware)


@ordered_record
class Hostname(Bare):
    """Name the UTS namespace."""

    name: bytes

    def describe(self) -> str:
        return f"set hostname {shown(self.name)}"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_sethostname, (self.name, len(self.name))),)

    def execute(self) -> None:
        syscalls.sethostname(self.name)


@ordered_record
class DomainName:
    """Name the UTS namespace's NIS domain."""

    name: bytes

    def describe(self) -> str:
        return f"set domain name {shown(self.name)}"

    def execute(self) -> None:
        syscalls.setdomainname(self.name)


@ordered_record
class WaitForParent(Talking):
    """Say `hooks` to the parent and wait until it answers; end when it is gone."""

    def describe(self) -> str:
        return "wait for the parent"

    def talk(self, context: Context) -> None:
        context.report.send(b"hooks", MSG_NOSIGNAL)
        if not context.report.recv(16):
            raise OSError(errno.EPIPE, "the parent is gone")


@ordered_record
class OpenHold(Talking):
    """Open the FIFO at which `Hold` waits, while the host's paths are there."""

    path: bytes

    def describe(self) -> str:
        return f"open {shown(self.path)}"

    def talk(self, context: Context) -> None:
        # Also for writing: so the opening does not wait, and the reading does, whoever comes and goes.
        context.hold = os.open(self.path, os.O_RDWR | os.O_CLOEXEC)
        # Execve ends the lock, and so does death: whoever starts the container waits for that, then looks for words.
        fcntl.flock(context.hold, fcntl.LOCK_EX)


@ordered_record
class Hold(Talking):
    """Say `start` to the parent and wait until somebody writes to the FIFO."""

    def describe(self) -> str:
        return "wait for the start"

    def talk(self, context: Context) -> None:
        context.report.send(b"start", MSG_NOSIGNAL)
        os.read(context.hold, 1)


@ordered_record
class RunHook:
    """Run a hook of the configuration: see `hooks.run`. `timeout_s` 0 is none.

    With `root` it sees the host's files, and the container's where they are on the host, at that path. It has a copy
    of the mounts then: what it mounts itself is gone after it.
    """

    point: str
    number: int
    argv: tuple[str, ...]
    env: tuple[str, ...]
    timeout_s: int
    state: bytes
    root: bytes = b""

    def describe(self) -> str:
        return f"run {self.point} hook #{self.number} {self.argv[0]}"

    def execute(self) -> None:
        said = self._beside() if self.root else self._run()
        if said != b"done":
            raise OSError(errno.ECANCELED, said.decode(errors="replace") or "died")

    def _run(self) -> bytes:
        timeout_s = self.timeout_s or None
        try:
            hooks.run(self.point, self.number, self.argv, self.env, timeout_s=timeout_s, state=self.state)
        except TareError as error:
            return str(error).encode()
        return b"done"

    def _beside(self) -> bytes:
        """In a process that has gone back to the host's tree, which is the working directory."""
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                syscalls.unshare(syscalls.CLONE_NEWNS)
                syscalls.mount(b"/", self.root.lstrip(b"/"), None, syscalls.MS_BIND | syscalls.MS_REC, None)
                os.chroot(".")
                os.write(write, self._run())
            except OSError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.close(write)
        said = os.read(read, 4096)
        os.close(read)
        os.waitpid(pid, 0)
        return said


_CLASSES: Final[tuple[type, ...]] = (
    Write,
    Unshare,
    EnterTime,
    JoinNamespaces,
    LoopbackUp,
    Interface,
    Hostname,
    DomainName,
    WaitForParent,
    OpenHold,
    Hold,
    RunHook,
    mounting.Mount,
    mounting.Overlay,
    mounting.Attach,
    mounting.Cover,
    mounting.AttachRoot,
    mounting.PrivateParent,
    mounting.PivotRoot,
    mounting.LeaveHost,
    mounting.Enter,
    furnishing.ReadOnly,
    furnishing.ReadOnlyRoot,
    furnishing.Mask,
    furnishing.NewFile,
    furnishing.Directory,
    furnishing.Ensure,
    furnishing.Unmount,
    furnishing.Link,
    furnishing.Device,
    becoming.BecomeRoot,
    becoming.Undumpable,
    becoming.ResourceLimit,
    becoming.IoPriority,
    becoming.Personality,
    becoming.SessionKeyring,
    becoming.Terminal,
    becoming.Confine,
    becoming.DieWithParent,
    becoming.Find,
    becoming.Execute,
)
_INDEX: Final = {kind: index for index, kind in enumerate(_CLASSES)}
Row: TypeAlias = "tuple[Any, ...]"


def to_row(step: Step) -> Row:
    """A step as plain values: what marshal can carry."""
    kind = type(step)
    return (_INDEX[kind], *(getattr(step, name) for name in kind.__match_args__))  # type: ignore[attr-defined]


def from_row(row: Row) -> Step:
    """The step that `to_row` was given."""
    step: Step = _CLASSES[row[0]](*row[1:])
    return step
