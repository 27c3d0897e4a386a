"""What a virtual machine has become since its base disk, as a file that can travel: all of its disk, or what differs.

Not for how it travels, nor for states of memory (`saved`).
"""

from __future__ import annotations

import json
from pathlib import Path

from runtime.command import run
from runtime.errors import TareError

WHOLE, CHANGED = "whole disk", "changed clusters"
WAYS = (WHOLE, CHANGED)
_CONVERT = ("qemu-img", "convert", "-U", "-c", "-O", "qcow2", "-o", "compression_type=zstd")
_TIMEOUT_S = 900.0


def pack(overlay: Path, way: str, parcel: Path) -> None:
    """Write a paused guest's disk to `parcel`: with CHANGED, only what `overlay` holds above the disk under it.

    Both are compressed. The guest must have flushed. Raises TareError when qemu-img fails.
    """
    below: tuple[str, ...] = ()
    if way == CHANGED:
        asked = ("qemu-img", "info", "-U", "--output=json", str(overlay))
        info = json.loads(run(asked, timeout_s=_TIMEOUT_S).stdout)
        if "full-backing-filename" not in info:
            raise TareError("changed clusters", "the disk is a reflink, which knows none", "leave reflink out")
        below = ("-B", info["full-backing-filename"], "-F", info["backing-filename-format"])
    run((*_CONVERT, *below, str(overlay), str(parcel)), timeout_s=_TIMEOUT_S)
