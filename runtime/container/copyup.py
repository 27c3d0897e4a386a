# ruff: noqa: PTH208
"""Copying what an image has at a place into the tmpfs mounted there (the mount option `tmpcopyup`). Lean."""

from __future__ import annotations

import os
import stat

_CHUNK = 1 << 20


def copy_up(source: int, target: int) -> None:
    """Copy below the directory `source` into the directory `target`, both path descriptors. Raises OSError.

    Owners, modes and times are kept; sockets, FIFOs and devices are left out.
    """
    here = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=source)
    there = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=target)
    try:
        for name in os.listdir(here):
            _copy(name, here, there)
        _dress(there, os.fstat(here))
    finally:
        os.close(here)
        os.close(there)


def _copy(name: str, here: int, there: int) -> None:
    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    if stat.S_ISDIR(found.st_mode):
        os.mkdir(name, 0o700, dir_fd=there)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        below, made = os.open(name, flags, dir_fd=here), os.open(name, flags, dir_fd=there)
        try:
            copy_up(below, made)
        finally:
            os.close(below)
            os.close(made)
    elif stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=here), name, dir_fd=there)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=there, follow_symlinks=False)
    elif stat.S_ISREG(found.st_mode):
        _copy_file(name, here, there)


def _copy_file(name: str, here: int, there: int) -> None:
    source = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
    target = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=there)
    try:
        while os.sendfile(target, source, None, _CHUNK):
            pass
        _dress(target, os.fstat(source))
    finally:
        os.close(source)
        os.close(target)


def _dress(descriptor: int, like: os.stat_result) -> None:
    os.fchown(descriptor, like.st_uid, like.st_gid)
    os.fchmod(descriptor, stat.S_IMODE(like.st_mode))
    os.utime(descriptor, ns=(like.st_atime_ns, like.st_mtime_ns))
