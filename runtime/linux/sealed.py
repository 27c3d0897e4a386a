"""A program as a sealed copy in memory: what a container reaches through /proc/self/exe can then change nothing.

Between clone and execve a child in a container is still its launcher's program. An image whose own program names
/proc/self/exe as its interpreter gets hold of that file, and a root without a user namespace could write to it
afterwards (CVE-2019-5736).
"""

from __future__ import annotations

import fcntl
import os

_CHUNK = 1 << 24


def sealed_copy(path: str) -> int:
    """A descriptor of a copy of the file `path` that nobody can write to; close-on-exec. Raises OSError.

    It is executed as /proc/self/fd/N, where the kernel allows that (vm.memfd_noexec below 2).
    """
    copy = os.memfd_create(os.path.basename(path), os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)  # noqa: PTH119
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while os.sendfile(copy, source, None, _CHUNK):
                pass
        finally:
            os.close(source)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, seals)
    except BaseException:
        os.close(copy)
        raise
    return copy
