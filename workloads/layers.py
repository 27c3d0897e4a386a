"""Layers: whether what an instance does to its image's files stays its own, and the image as it was.

Not for what they take on disk: a further instance is `growth`'s, a changed image `delivery`'s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from workloads.base import Context, Stage, Workload
from workloads.footprint import TIMEOUT_S
from workloads.metric import Better, Metric, Sample

APART = Metric("layers.apart", "bool", Better.HIGHER, "1: what one instance does to the image's files stays its own")
CHANGED, REMOVED = "/usr/bin/sysbench", "/usr/bin/fio"
# Says for each file of the image whether it could be changed at all.
SPOIL = 'if printf x >> "$1"; then echo written; fi; if rm "$2"; then echo removed; fi; sync'


class Layers(Workload):
    """Two instances of one image: the first appends to one of its files and removes another (label `outcome`).

    The second must read both as before (`beside`), and no file of what they share on the host may have changed in
    size or time (`image`). The outcome `refused` is a read-only image.
    """

    name = "layers"
    stage = Stage.OWN
    metrics = (APART,)

    def measure(self, context: Context) -> Iterator[Sample]:
        """Yield one sample a file, and one for the image. Raises TareError when the second cannot read it before."""
        with context.launch() as first, context.launch() as second:
            shared = first.disk_paths().shared
            look = ("sha256sum", CHANGED, REMOVED)
            before, image = second.exec(look, TIMEOUT_S).check().stdout, fingerprint(shared)
            spoilt = first.exec(("/bin/sh", "-c", SPOIL, "spoil", CHANGED, REMOVED), TIMEOUT_S).check().stdout.split()
            after = second.exec(look, TIMEOUT_S).stdout
            outcome = {"outcome": " ".join(word.decode() for word in spoilt) or "refused"}
            yield Sample(APART.name, float(before == after), labels={"where": "beside", **outcome})
            yield Sample(APART.name, float(fingerprint(shared) == image), labels={"where": "image", **outcome})


def fingerprint(paths: Iterable[Path]) -> frozenset[tuple[str, int, int]]:
    """(path, size, time of change) of everything at and below `paths`."""
    found = set()
    for top in paths:
        for directory, _, names in os.walk(top):
            found |= {_entry(os.path.join(directory, name)) for name in names}  # noqa: PTH118 - tens of thousands
        found.add(_entry(os.fspath(top)))
    return frozenset(found)


def _entry(path: str) -> tuple[str, int, int]:
    status = os.lstat(path)
    return path, status.st_size, status.st_mtime_ns
