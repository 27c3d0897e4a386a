"""The options of a mount as mount(8), runc and podman write them, read into what the kernel is asked for. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from runtime.errors import UsageError
from runtime.linux import syscalls
from runtime.linux.syscalls import MS_BIND, MS_REC
from runtime.record import ordered_record

# word: (flag, attribute of a bind); a word that takes a flag away is in _CLEARS
_SETS = {
    "ro": (syscalls.MS_RDONLY, syscalls.MOUNT_ATTR_RDONLY),
    "nosuid": (syscalls.MS_NOSUID, syscalls.MOUNT_ATTR_NOSUID),
    "nodev": (syscalls.MS_NODEV, syscalls.MOUNT_ATTR_NODEV),
    "noexec": (syscalls.MS_NOEXEC, syscalls.MOUNT_ATTR_NOEXEC),
    "nodiratime": (syscalls.MS_NODIRATIME, syscalls.MOUNT_ATTR_NODIRATIME),
    "nosymfollow": (syscalls.MS_NOSYMFOLLOW, syscalls.MOUNT_ATTR_NOSYMFOLLOW),
    "sync": (syscalls.MS_SYNCHRONOUS, 0),
    "dirsync": (syscalls.MS_DIRSYNC, 0),
    "mand": (syscalls.MS_MANDLOCK, 0),
    "iversion": (syscalls.MS_I_VERSION, 0),
    "lazytime": (syscalls.MS_LAZYTIME, 0),
    "silent": (syscalls.MS_SILENT, 0),
}
_CLEARS = {
    "rw": "ro",
    "suid": "nosuid",
    "dev": "nodev",
    "exec": "noexec",
    "diratime": "nodiratime",
    "symfollow": "nosymfollow",
    "async": "sync",
    "nomand": "mand",
    "noiversion": "iversion",
    "nolazytime": "lazytime",
    "loud": "silent",
}
# How access times are kept is one choice: (flag, attribute).
_TIMES = {
    "relatime": (syscalls.MS_RELATIME, 0),
    "noatime": (syscalls.MS_NOATIME, syscalls.MOUNT_ATTR_NOATIME),
    "strictatime": (syscalls.MS_STRICTATIME, syscalls.MOUNT_ATTR_STRICTATIME),
}
_NO_TIMES = ("atime", "norelatime", "nostrictatime")
_DEFAULTS = ("defaults", "remount")
PROPAGATION = {
    f"{prefix}{word}": flag | (MS_REC if prefix else 0)
    for prefix in ("", "r")
    for word, flag in (
        ("private", syscalls.MS_PRIVATE),
        ("shared", syscalls.MS_SHARED),
        ("slave", syscalls.MS_SLAVE),
        ("unbindable", syscalls.MS_UNBINDABLE),
    )
}


@ordered_record
class Wanted:
    """What the words ask for. `attributes` are (set, cleared) on a bind itself, then (set, cleared) also below it."""

    bind: bool = False
    recursive: bool = False
    flags: int = 0
    attributes: tuple[int, int, int, int] = (0, 0, 0, 0)
    propagation: tuple[int, ...] = ()
    data: str = ""
    copy_up: bool = False
    idmap: str = ""


def read(words: Sequence[str], *, bind: bool, where: str) -> Wanted:
    """The meaning of `words`, later ones winning; those that are nobody's go to the file system.

    `bind` says that the mount's type is bind already. Raises UsageError about `where` for a word on a bind that no
    file system will read.
    """
    flags = dict.fromkeys(_SETS, False)
    times, below, propagation, data = "", _Below(), [], []
    recursive, copy_up, idmap = False, False, ""
    for word in words:
        if word in ("bind", "rbind"):
            bind, recursive = True, word == "rbind"
        elif word in _SETS:
            flags[word] = True
        elif word in _CLEARS:
            flags[_CLEARS[word]] = False
        elif word in _TIMES or word in _NO_TIMES:
            times = word if word in _TIMES else ""
        elif word in PROPAGATION:
            propagation.append(PROPAGATION[word])
        elif word == "tmpcopyup":
            copy_up = True
        elif word in ("idmap", "ridmap"):
            idmap = word
        elif word not in _DEFAULTS and not below.take(word):
            data.append(word)
    if bind and data:
        raise UsageError(f"{where}.options", f"{data[0]!r} means nothing on a bind mount", "leave it out")
    chosen = [word for word, on in flags.items() if on]
    attribute = sum(_SETS[word][1] for word in chosen) | (_TIMES[times][1] if times else 0)
    return Wanted(
        bind=bind,
        recursive=recursive,
        flags=sum(_SETS[word][0] for word in chosen) | (_TIMES[times][0] if times else 0) | (MS_BIND if bind else 0),
        attributes=(
            attribute if bind else 0,
            syscalls.MOUNT_ATTR_ATIME if bind and times else 0,
            below.set,
            below.cleared,
        ),
        propagation=tuple(propagation),
        data=",".join(data),
        copy_up=copy_up,
        idmap=idmap,
    )


class _Below:
    """The words that begin with `r` and mean a mount and all below it: `rro`, `rnosuid`, `ratime`."""

    def __init__(self) -> None:
        self.set = 0
        self.cleared = 0

    def take(self, word: str) -> bool:
        """Whether it was such a word."""
        if not word.startswith("r"):
            return False
        name = word[1:]
        if name in _SETS and _SETS[name][1]:
            self._change(_SETS[name][1], 0)
        elif name in _CLEARS and _SETS[_CLEARS[name]][1]:
            self._change(0, _SETS[_CLEARS[name]][1])
        elif name in _TIMES:
            self._change(_TIMES[name][1], syscalls.MOUNT_ATTR_ATIME)
        elif name in _NO_TIMES:
            self._change(0, syscalls.MOUNT_ATTR_ATIME)
        else:
            return False
        return True

    def _change(self, on: int, off: int) -> None:
        self.set = self.set & ~off | on
        self.cleared = self.cleared & ~on | off
