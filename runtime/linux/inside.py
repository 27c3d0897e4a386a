"""Paths that stay inside a directory, whoever made what lies in it: resolved by the kernel."""

from __future__ import annotations

import os

from runtime.linux import syscalls
from runtime.linux.syscalls import RESOLVE_IN_ROOT


def open_inside(root: int, path: str, flags: int) -> int:
    """Open `path`, absolute or not, as if `root` were the root directory; links lead nowhere else.

    Raises OSError as open(2) does; a link of /proc that leads out is ELOOP.
    """
    return syscalls.openat2(root, os.fsencode(path) or b".", flags, RESOLVE_IN_ROOT)
