"""What a full file system of the host means to whoever makes a virtual machine, in one line.

Not for a disk that fills while a guest runs: QEMU stops the guest then, which `events` hears.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.driver import Host
from runtime.errors import TareError

_WORDS = os.strerror(errno.ENOSPC)
_CONTROL = "/sys/"  # a control file says the same of a value that it does not take


@contextmanager
def room_for(host: Host, what: str = "disk of a virtual machine") -> Iterator[None]:
    """Tell "no space left" from inside the block as a TareError about `what`. Programs of others tell it in words."""
    try:
        yield
    except (OSError, TareError) as error:
        if isinstance(error, OSError):
            full = error.errno == errno.ENOSPC and not str(error.filename or "").startswith(_CONTROL)
        else:
            full = _WORDS in error.why
        if not full:
            raise
        below = f"{host.root} or {host.run}"
        raise TareError(what, f"no space is left below {below}", "free some, or choose another --root") from error
