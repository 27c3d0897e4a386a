"""The groups above the instances' own: who makes the first instance makes them, and here they go with the last.

The kernel removes no group that has others below it or processes in it, so none is taken from anybody; whoever finds
them gone while making one of his own makes them again (`Cgroup.create`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from runtime.cgroups.detect import Hierarchies, detect
from runtime.cgroups.paths import PARENT
from runtime.cgroups.v1_devices import GUARDED

_OURS = re.compile(rf"(?:{PARENT}|{GUARDED})(?:\.[0-9]+)?")  # with a number: half made, see `files.whole`


def retire(hierarchies: Hierarchies | None = None) -> list[str]:
    """Remove those that are empty; returns them."""
    found = hierarchies or detect()
    removed = []
    for mount in dict.fromkeys([*found.v1.values(), *([] if found.v2 is None else [found.v2])]):
        for group in _below(mount):
            with suppress(OSError):
                group.rmdir()
                removed.append(str(group))
    return removed


def _below(mount: Path) -> Iterator[Path]:
    """The deepest first."""
    own = [path for path in mount.glob(f"{PARENT}*") if _OURS.fullmatch(path.name)]
    for top in own:
        yield from (path for path in top.glob(f"{GUARDED}*") if _OURS.fullmatch(path.name))
    yield from own
