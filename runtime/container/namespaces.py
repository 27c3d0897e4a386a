"""Which namespaces a container gets, as the kernel's flags: made, joined by their paths, or those of a process."""

from __future__ import annotations

import os

from runtime.container.config import Config
from runtime.errors import TareError, UsageError
from runtime.linux.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWTIME,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
)
from runtime.record import ordered_record

FLAGS = {
    "mount": CLONE_NEWNS,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "pid": CLONE_NEWPID,
    "network": CLONE_NEWNET,
    "user": CLONE_NEWUSER,
    "cgroup": CLONE_NEWCGROUP,
    "time": CLONE_NEWTIME,
}
"""What clone(2) calls the types of namespaces."""
_FILES = {"mount": "mnt", "network": "net"}
# The one begins where its creator is, the other has offsets that are written before anybody is in it.
_LATE = CLONE_NEWCGROUP | CLONE_NEWTIME


@ordered_record
class Namespaces:
    """Which namespaces are made by clone3, which later by the child, which are entered before, and the user's."""

    cloned: int
    late: int
    entered: tuple[tuple[str, int], ...]
    user: str

    @classmethod
    def of(cls, config: Config) -> Namespaces:
        """Those that `config` asks for. Raises UsageError."""
        cloned, late, entered, user = 0, 0, [], ""
        for index, namespace in enumerate(config.linux.namespaces):
            flag, where = FLAGS.get(namespace.type, 0), f"linux.namespaces[{index}]"
            if not flag:
                raise UsageError(f"{where}.type", f"{namespace.type!r} is not known", f"one of {', '.join(FLAGS)}")
            if namespace.path is None:
                cloned, late = cloned | flag & ~_LATE, late | flag & _LATE
            elif flag == CLONE_NEWNS:
                raise UsageError(f"{where}.path", "a mount namespace cannot be joined", "leave the path out")
            elif flag == CLONE_NEWUSER:
                user = namespace.path
            else:
                entered.append((namespace.path, flag))
        if not cloned & CLONE_NEWNS:
            raise UsageError("linux.namespaces", "a container needs a mount namespace", "add one of type mount")
        return cls(cloned, late, tuple(entered), user)


def foreign(pid: int) -> int:
    """The flags of those namespaces of `pid` that are not the caller's: the kernel refuses to enter one's own."""
    found = 0
    for kind, flag in FLAGS.items():
        name = _FILES.get(kind, kind)
        try:
            theirs = os.readlink(f"/proc/{pid}/ns/{name}")  # noqa: PTH115
        except FileNotFoundError:
            if os.path.exists(f"/proc/self/ns/{name}"):  # noqa: PTH110
                raise gone(pid) from None
            continue
        if theirs != os.readlink(f"/proc/self/ns/{name}"):  # noqa: PTH115
            found |= flag
    return found


def gone(pid: int) -> TareError:
    """The process whose namespaces are wanted has ended."""
    return TareError(f"exec in process {pid}", "it does not run any more", "start the container")
