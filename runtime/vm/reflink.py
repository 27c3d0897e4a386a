"""An instance's disk as a reflink of its base: the file system shares their blocks until one of them is written.

Not where disks lie, nor what else they can be (`guest`: an overlay).
"""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path

from runtime.errors import TareError

FICLONE = 0x40049409  # linux/fs.h
_NONE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL)


def clone(base: Path, disk: Path) -> None:
    """Make `disk`, sharing all its blocks with `base`. Raises TareError, by name, where that is impossible."""
    with base.open("rb") as source, disk.open("xb") as target:
        try:
            fcntl.ioctl(target, FICLONE, source.fileno())
        except OSError as error:
            disk.unlink()
            if error.errno not in _NONE:
                raise
            why = "they lie on two file systems" if error.errno == errno.EXDEV else "their file system has none"
            raise TareError(f"reflink of {base} below {disk.parent}", why, "use overlays: leave reflink out") from error


def require(base: Path, directory: Path) -> None:
    """Raise TareError unless disks in `directory` can be reflinks of `base`; told by making one."""
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    probe = directory / f"reflink.{os.getpid()}.{threading.get_ident()}"
    clone(base, probe)
    probe.unlink()
