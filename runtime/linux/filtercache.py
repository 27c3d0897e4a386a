"""The end of what `seccomp.cached` keeps below a directory.

At any moment: who has a file open reads it to its end, who finds none compiles, and who is about to write one and finds
its directory or file gone does without.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

_OURS = re.compile(r"[0-9a-f]{64}\.bpf|\.[0-9a-f]{16}")  # a program; one that was being written


def forget(directory: Path) -> None:
    """Remove the programs, then the directory unless others have put something there. Raises OSError."""
    try:
        found = list(directory.iterdir())
    except FileNotFoundError:
        return
    for path in found:
        if _OURS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        directory.rmdir()
