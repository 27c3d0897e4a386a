"""Mounts with shifted owners: what is on disk is nobody's in particular, and a user namespace sees it as its own.

Done by the parent of a child that waits, with the child's own user namespace; results are detached mounts, which the
child attaches. Needs mount_setattr(2) with MOUNT_ATTR_IDMAP (Linux 5.12; for an overlay 5.19), and file systems that
take part. Lean.
"""

from __future__ import annotations

import errno
import marshal
import os
from _signal import SIGCHLD, SIGKILL, pause  # type: ignore[import-not-found]
from _socket import AF_UNIX, SOCK_SEQPACKET, socketpair

from runtime.container.mounting import Overlay
from runtime.container.outside import Outside, OverlayTree, Tree
from runtime.linux import syscalls
from runtime.linux.passing import receive, send
from runtime.linux.syscalls import AT_FDCWD, AT_RECURSIVE, MOUNT_ATTR_IDMAP, OPEN_TREE_CLONE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from typing import NoReturn


def detached(outside: Outside, pid: int) -> list[int]:
    """The trees and the overlay of `outside` for the child `pid`, as descriptors of the caller's. Raises OSError."""
    made: list[int] = []
    namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        # One by one, so that those made before a failure are known.
        made.extend(_detached(tree, namespace) for tree in outside.trees)
        if outside.overlay is not None:
            made.append(_overlay(outside.overlay, namespace))
    except BaseException:
        for descriptor in made:
            os.close(descriptor)
        raise
    finally:
        os.close(namespace)
    return made


def user_namespace(uid_map: bytes, gid_map: bytes) -> int:
    """A descriptor of a new user namespace with these maps, for the sake of them. Raises OSError."""
    pid, pidfd = syscalls.clone3(syscalls.CLONE_NEWUSER, SIGCHLD)
    if pid == 0:
        while True:
            pause()
    try:
        write_maps(pid, uid_map, gid_map)
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, SIGKILL)
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
        os.close(pidfd)


def write_maps(pid: int, uid_map: bytes, gid_map: bytes) -> None:
    """Map the ids of a new user namespace, in which `pid` is. Raises OSError naming the map."""
    for name, text in (("uid_map", uid_map), ("gid_map", gid_map)):
        descriptor = os.open(f"/proc/{pid}/{name}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text)
        except OSError as error:
            raise OSError(error.errno, f"{name} {text.decode().strip()!r}: {error.strerror}") from error
        finally:
            os.close(descriptor)


def _detached(tree: Tree, namespace: int) -> int:
    descriptor = syscalls.open_tree(AT_FDCWD, tree.path, OPEN_TREE_CLONE | (AT_RECURSIVE if tree.recursive else 0))
    try:
        if tree.mapped:
            _shift(descriptor, tree, namespace)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _shift(descriptor: int, tree: Tree, namespace: int) -> None:
    own = user_namespace(tree.uid_map, tree.gid_map) if tree.uid_map else namespace
    try:
        shift(descriptor, own, tree.path, deep=tree.deep)
    finally:
        if own != namespace:
            os.close(own)


def shift(descriptor: int, namespace: int, path: bytes, *, deep: bool = False) -> None:
    """Show the detached mount with the ids of the user namespace. Raises OSError that names `path`."""
    try:
        syscalls.mount_setattr(descriptor, AT_RECURSIVE if deep else 0, MOUNT_ATTR_IDMAP, 0, namespace)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        where = os.fsdecode(path)
        raise OSError(error.errno, f"{where}: this kernel or its file system cannot map owners of a mount") from error


def _overlay(wanted: OverlayTree, namespace: int) -> int:
    """Made by a short-lived child in a mount namespace of its own, where the shifted layers lie over the plain ones."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    try:
        pid, pidfd = syscalls.clone3(syscalls.CLONE_NEWNS, SIGCHLD)
        if pid == 0:
            _make_overlay(wanted, namespace, theirs)
        theirs.close()
        try:
            message, descriptors = receive(ours, 4096, 1)
        finally:
            os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
            os.close(pidfd)
    finally:
        ours.close()
        theirs.close()
    if descriptors:
        return descriptors[0]
    number, text = marshal.loads(message) if message else (errno.EIO, "died")  # noqa: S302 - our own child wrote it
    raise OSError(number, f"overlay for a user namespace: {text}")


def _make_overlay(wanted: OverlayTree, namespace: int, told: socket) -> NoReturn:
    try:
        syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_SLAVE, None)
        for path in (*wanted.layers, wanted.directory):
            _shift_in_place(path, namespace)
        # The overlay makes files of its own as whoever mounts it, who must be somebody in the shifted layer.
        syscalls.prctl(syscalls.PR_SET_SECUREBITS, syscalls.SECBIT_NO_SETUID_FIXUP)
        os.setgroups(())
        os.setresgid(wanted.gid, wanted.gid, wanted.gid)
        os.setresuid(wanted.uid, wanted.uid, wanted.uid)
        mounted = Overlay(wanted.layers, wanted.directory, wanted.flags).detached()
        send(told, b"overlay", [mounted])
        os._exit(0)
    except OSError as error:
        told.send(marshal.dumps((error.errno or 0, str(error))))
    except BaseException as error:  # noqa: BLE001 - a copy of the launcher must end here, whatever happens
        told.send(marshal.dumps((0, repr(error))))
    os._exit(1)


def _shift_in_place(path: bytes, namespace: int) -> None:
    descriptor = syscalls.open_tree(AT_FDCWD, path, OPEN_TREE_CLONE)
    shift(descriptor, namespace, path)
    syscalls.move_mount(descriptor, AT_FDCWD, path)
    os.close(descriptor)
