"""The root directory of a container as a descriptor, whether the container runs or not, and safe ways through it.

Whatever lies in it was made by somebody who may want to be let out: every path is resolved by the kernel inside that
root (openat2), never by name from the host's. Nothing is mounted where the host can see it. Not for what is copied
(`copying`) nor for starting anything.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path

from runtime.container.storage import overlay_options
from runtime.errors import TareError
from runtime.ledger import process_start
from runtime.linux import syscalls
from runtime.linux.inside import open_inside
from runtime.linux.syscalls import MNT_DETACH, MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT, MS_SLAVE
from runtime.record import ordered_record, record

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@ordered_record
class Bound:
    """A host path that the container shows at `target`."""

    source: Path
    target: str
    read_only: bool = False


@record
class ContainerFiles:
    """What a container's files are made of.

    `layers`, topmost last, lie under the writable one in `directory`, `bound` over it. `pid` and `pid_start`
    (`ledger.process_start`) name its first process while it runs; then `bound` and `read_only` say nothing new.
    """

    name: str
    layers: tuple[Path, ...]
    directory: Path
    pid: int | None = None
    pid_start: int | None = None
    bound: tuple[Bound, ...] = ()
    read_only: bool = False

    @property
    def upper(self) -> Path:
        """Its writable layer."""
        return self.directory / "upper"


@contextmanager
def opened(files: ContainerFiles) -> Iterator[int]:
    """A descriptor of the container's root directory, as its processes see it or would see it."""
    with ExitStack() as stack:
        if files.pid is not None:
            yield stack.enter_context(_running(files, files.pid))
        else:
            overlay = _Overlay(tuple(map(str, files.layers)), str(files.directory), files.bound, files.read_only)
            yield stack.enter_context(_mounted(overlay))


@contextmanager
def opened_layers(layers: Sequence[Path]) -> Iterator[int]:
    """A descriptor of the read-only root directory that `layers` make together, topmost last."""
    with ExitStack() as stack:
        if len(layers) == 1:  # an overlay of one layer is none
            descriptor = os.open(layers[0], _DIRECTORY)
            stack.callback(os.close, descriptor)
            yield descriptor
        else:
            yield stack.enter_context(_mounted(_Overlay(tuple(map(str, layers)))))


@contextmanager
def _running(files: ContainerFiles, pid: int) -> Iterator[int]:
    gone = TareError(f"container {files.name}", "it has just ended", "try again")
    try:
        descriptor = os.open(f"/proc/{pid}/root", _DIRECTORY)
    except (FileNotFoundError, ProcessLookupError):
        raise gone from None
    try:
        if process_start(pid) != files.pid_start:  # another process has got its number
            raise gone
        yield descriptor
    finally:
        os.close(descriptor)


@ordered_record
class _Overlay:
    """What is to be mounted; `directory` None: without a writable layer."""

    layers: tuple[str, ...]
    directory: str | None = None
    bound: tuple[Bound, ...] = ()
    read_only: bool = False

    @property
    def target(self) -> bytes:
        """Where: over one of its own parts, so that nothing needs to be made."""
        return os.fsencode(self.layers[-1] if self.directory is None else f"{self.directory}/upper")

    def mount(self) -> int:
        """Mount it and return a descriptor of its root."""
        options = os.fsencode(overlay_options(self.layers, self.directory))
        flags = MS_RDONLY if self.directory is None else 0
        syscalls.mount(b"overlay", self.target, b"overlay", flags, options)
        root = os.open(self.target, _DIRECTORY)
        try:
            for each in self.bound:
                _bind(root, each)
            if self.read_only:
                syscalls.mount(None, self.target, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None)
        except BaseException:
            os.close(root)
            raise
        return root


@contextmanager
def _mounted(overlay: _Overlay) -> Iterator[int]:
    """The overlay's root, mounted in the namespace of a thread that lives as long as this context."""
    ready: Future[int] = Future()
    done = threading.Event()
    thread = threading.Thread(target=_hold, args=(overlay, ready, done), daemon=True)
    thread.start()
    try:
        yield ready.result()
    finally:
        done.set()
        thread.join()


def _hold(overlay: _Overlay, ready: Future[int], done: threading.Event) -> None:
    """The thread's work. Its mounts end with it at the latest; taken off one by one, they have ended when it has."""
    try:
        with ExitStack() as stack:
            syscalls.unshare(syscalls.CLONE_NEWNS)
            syscalls.mount(None, b"/", None, MS_REC | MS_SLAVE, None)
            root = overlay.mount()
            stack.callback(syscalls.umount2, overlay.target, MNT_DETACH)
            stack.callback(os.close, root)
            ready.set_result(root)
            done.wait()
    except BaseException as error:
        if ready.done():
            raise
        ready.set_exception(error)


def _bind(root: int, bound: Bound) -> None:
    with _held(_make_target(root, bound.target, directory=bound.source.is_dir())) as place:
        syscalls.mount(os.fsencode(bound.source), place, None, MS_BIND | MS_REC, None)
    if bound.read_only:
        with _held(open_inside(root, bound.target, os.O_PATH)) as place:  # now what is mounted there
            syscalls.mount(None, place, None, MS_BIND | MS_REMOUNT | MS_RDONLY, None)


@contextmanager
def _held(descriptor: int) -> Iterator[bytes]:
    """The name of what a descriptor means, for a call that takes only names."""
    try:
        yield b"/proc/self/fd/%d" % descriptor
    finally:
        os.close(descriptor)


def _make_target(root: int, path: str, *, directory: bool) -> int:
    """An O_PATH descriptor of `path` inside `root`, made where it is missing, as the first start would."""
    try:
        return open_inside(root, path, os.O_PATH)
    except FileNotFoundError:
        above, name = os.path.split(path.rstrip("/"))
        parent = _make_target(root, above, directory=True)
    try:
        if directory:
            os.mkdir(name, 0o755, dir_fd=parent)
        else:
            os.mknod(name, stat.S_IFREG | 0o644, dir_fd=parent)
    finally:
        os.close(parent)
    return open_inside(root, path, os.O_PATH)


@contextmanager
def making_as(uid: int, gid: int) -> Iterator[None]:
    """Let what this thread makes belong to `uid` and `gid` from its first moment, with no capability less.

    In an idmapped mount nobody else can make anything at all: the owner would have no number there.
    """
    before, mine = syscalls.prctl(syscalls.PR_GET_SECUREBITS), (os.geteuid(), os.getegid())
    if (uid, gid) == mine:
        yield
        return
    syscalls.prctl(syscalls.PR_SET_SECUREBITS, before | syscalls.SECBIT_NO_SETUID_FIXUP)
    try:
        syscalls.setfsids(uid, gid)
        yield
    finally:
        syscalls.setfsids(*mine)
        syscalls.prctl(syscalls.PR_SET_SECUREBITS, before)


# File systems made of kernel objects: their files are no data, and reading some of them waits for ever.
_PSEUDO = ("proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "bpf")


def pseudo_devices(pid: int, proc: Path = Path("/proc")) -> dict[int, bool]:
    """The device numbers (as in `st_dev`) of the pseudo file systems that process `pid` has mounted, /dev included.

    With each whether it holds files all the same: that of /dev does, which other places show (/etc/hosts).
    """
    devices = dict[int, bool]()
    for line in (proc / str(pid) / "mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        number, _, target = fields.split()[2:5]
        is_pseudo = rest.split()[0] in _PSEUDO
        if is_pseudo or target == "/dev":
            major, _, minor = number.partition(":")
            devices[os.makedev(int(major), int(minor))] = not is_pseudo
    return devices
