# ruff: noqa: D102, PTH102, PTH112, PTH211
# Step explains describe() and execute() once for all; paths are bytes.
"""Steps that furnish and lock the new root: small files, directories, links, devices; what is hidden or read-only."""

from __future__ import annotations

import errno
import os
import stat

from runtime.container.mounting import QUIET, by_descriptor
from runtime.container.stepping import Bare, Call, shown
from runtime.container.targets import open_existing, open_target
from runtime.linux import syscalls
from runtime.linux.syscalls import MS_BIND, MS_RDONLY, MS_REC, MS_REMOUNT
from runtime.record import ordered_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

# statvfs(3) and mount(2) name these alike by value; what a mount has of them a remount must name again.
_KEPT: Final = QUIET | MS_RDONLY | syscalls.MS_NOATIME | syscalls.MS_NODIRATIME
_ST_RELATIME: Final = 4096


@ordered_record
class ReadOnly(Bare):
    """Make what is at `path` read-only where it is, by a bind mount on itself.

    `flags` are those of its mount, in the kernel's own file systems; 0 for any other path, which may be absent.
    """

    path: bytes
    flags: int = QUIET

    def describe(self) -> str:
        return f"make {shown(self.path)} read-only"

    def calls(self) -> tuple[Call, ...]:
        if not self.flags:
            return ()
        again = MS_BIND | MS_REMOUNT | MS_RDONLY | self.flags
        return (
            (syscalls.bare_mount, (self.path, self.path, None, MS_BIND | MS_REC, None)),
            (syscalls.bare_mount, (None, self.path, None, again, None)),
        )

    def execute(self) -> None:
        if self.flags:
            syscalls.mount(self.path, self.path, None, MS_BIND | MS_REC, None)
            syscalls.mount(None, self.path, None, MS_BIND | MS_REMOUNT | MS_RDONLY | self.flags, None)
            return
        try:
            target = open_existing(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        place = by_descriptor(target)
        syscalls.mount(place, place, None, MS_BIND | MS_REC, None)
        os.close(target)
        # What is mounted there now is another thing than what was opened.
        target = open_existing(self.path)
        place = by_descriptor(target)
        syscalls.mount(None, place, None, MS_BIND | MS_REMOUNT | MS_RDONLY | _flags_of(place), None)
        os.close(target)


@ordered_record
class ReadOnlyRoot:
    """Make the root mount read-only, when all that had to be made in it is there."""

    def describe(self) -> str:
        return "make / read-only"

    def execute(self) -> None:
        syscalls.mount(None, b"/", None, MS_BIND | MS_REMOUNT | MS_RDONLY | _flags_of(b"/"), None)


@ordered_record
class Mask:
    """Hide `path`, whatever it is: a file behind the *host's* null device, a directory behind an empty one.

    The device is mounted read-only: its mode and owner are not the container's to change.
    """

    path: bytes

    def describe(self) -> str:
        return f"mask {shown(self.path)}"

    def execute(self) -> None:
        try:
            target = open_existing(self.path)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            if stat.S_ISDIR(os.fstat(target).st_mode):
                syscalls.mount(b"tmpfs", by_descriptor(target), b"tmpfs", QUIET | MS_RDONLY, b"size=0k")
            else:
                _hide(target)
        finally:
            os.close(target)


@ordered_record
class NewFile(Bare):
    """Make a file with `text` in it."""

    path: bytes
    text: bytes

    def describe(self) -> str:
        return f"make file {shown(self.path)}"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_write, (self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, self.text)),)

    def recover(self) -> None:
        raise syscalls.failed(f"make {shown(self.path)}")  # it may be there now, and what it lacked is the disk

    def execute(self) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(descriptor, self.text)
        os.close(descriptor)


@ordered_record
class Directory(Bare):
    """Make one directory that may exist."""

    path: bytes
    mode: int = 0o755

    def describe(self) -> str:
        return f"make directory {shown(self.path)}"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_mkdir, (self.path, self.mode)),)

    def execute(self) -> None:
        try:
            os.mkdir(self.path, self.mode)
        except FileExistsError:
            if not os.path.isdir(self.path):
                raise


@ordered_record
class Ensure:
    """See to it that `path` is a real directory, and no link."""

    path: bytes

    def describe(self) -> str:
        return f"have directory {shown(self.path)}"

    def execute(self) -> None:
        os.close(open_target(self.path, directory=True, strict=True))


@ordered_record
class Unmount(Bare):
    """Detach what is mounted at `path`."""

    path: bytes

    def describe(self) -> str:
        return f"unmount {shown(self.path)}"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_umount2, (self.path, syscalls.MNT_DETACH)),)

    def execute(self) -> None:
        syscalls.umount2(self.path, syscalls.MNT_DETACH)


@ordered_record
class Link(Bare):
    """Make the symbolic link `path` → `target`, unless something is there."""

    target: bytes
    path: bytes

    def describe(self) -> str:
        return f"link {shown(self.path)} to {shown(self.target)}"

    def calls(self) -> tuple[Call, ...]:
        return ((syscalls.bare_symlink, (self.target, self.path)),)

    def execute(self) -> None:
        try:
            os.symlink(self.target, self.path)
        except FileExistsError:
            return


@ordered_record
class Device(Bare):
    """Make a device node or FIFO: `mode` has its type and permissions. The same one may be there."""

    path: bytes
    mode: int
    major: int
    minor: int
    uid: int = 0
    gid: int = 0

    def describe(self) -> str:
        return f"make device {shown(self.path)} {self.major}:{self.minor} {self.mode:o}"

    def calls(self) -> tuple[Call, ...]:
        if not self._is_below_dev() or self.uid or self.gid:
            return ()
        return ((syscalls.bare_mknod, (self.path, self.mode, os.makedev(self.major, self.minor))),)

    def execute(self) -> None:
        device = os.makedev(self.major, self.minor)
        if self._is_below_dev():
            self._make(self.path, device, None)
            return
        directory, name = os.path.split(self.path)
        parent = open_target(directory, directory=True)
        try:
            self._make(name, device, parent)
        finally:
            os.close(parent)

    def _is_below_dev(self) -> bool:
        """Right below it, which is ours or was looked at; what is further down, or elsewhere, was not."""
        return self.path.startswith(b"/dev/") and self.path.rfind(b"/") == 4

    def _make(self, name: bytes, device: int, parent: int | None) -> None:
        try:
            if parent is None:  # a word for "nowhere else" is a good part of the call
                os.mknod(name, self.mode, device)
            else:
                os.mknod(name, self.mode, device, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if (stat.S_IFMT(found.st_mode), found.st_rdev) != (stat.S_IFMT(self.mode), device):
                raise FileExistsError(errno.EEXIST, "another file is there", shown(self.path)) from None
            return
        if self.uid or self.gid:
            os.chown(name, self.uid, self.gid, dir_fd=parent, follow_symlinks=False)


def _hide(target: int) -> None:
    null = syscalls.open_tree(syscalls.AT_FDCWD, b"dev/null", syscalls.OPEN_TREE_CLONE)
    try:
        syscalls.mount_setattr(null, 0, syscalls.MOUNT_ATTR_RDONLY)
        syscalls.move_mount(null, target)
    finally:
        os.close(null)


def _flags_of(path: bytes) -> int:
    found = os.statvfs(path).f_flag
    return found & _KEPT | (syscalls.MS_RELATIME if found & _ST_RELATIME else 0)
