"""What of this host stands in the way of bridges, or will when there are many: a sentence each, and what to do."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from runtime.network import forwarding
from runtime.network.definitions import Definitions

_NEIGHBOURS: Final = "sys/net/ipv4/neigh/default/gc_thresh3"
_ENOUGH: Final = 4096


@dataclass(frozen=True, slots=True)
class Remark:
    """One thing. `do` is a command for a root shell; `usable` is whether bridges work all the same."""

    text: str
    do: str
    usable: bool = True


def remarks(root: Path, proc: Path = Path("/proc")) -> list[Remark]:
    """Look at this host as the networks of state root `root` would find it."""
    if shutil.which("nft") is None:
        return [Remark("nft is not on PATH: no NAT and no bridge networks", "./bootstrap", usable=False)]
    found = [
        Remark(text, "nft insert rule FAMILY TABLE CHAIN ...") for text in forwarding.obstacles(Definitions(root).table)
    ]
    limit = _neighbours(proc)
    if limit is not None and limit < _ENOUGH:
        # Containers and gateways know each other permanently; the table counts who speaks to whom beside that.
        text = f"the neighbour table ends at {limit} entries: more than {limit} containers cannot all speak to others"
        found.append(Remark(text, f"sysctl -w net.ipv4.neigh.default.gc_thresh3={_ENOUGH}"))
    return found


def _neighbours(proc: Path) -> int | None:
    try:
        return int((proc / _NEIGHBOURS).read_text())
    except (OSError, ValueError):
        return None
