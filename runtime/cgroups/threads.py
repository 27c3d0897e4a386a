"""A group below an instance's own for some threads of its processes, with a CPU limit that binds them alone.

On v1 any thread may be in any group of the cpu hierarchy; on v2 such a group is of the threaded type
(cgroup-v2.rst, "Threads"). All else binds the threads where it did. The group goes when the one above is removed.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from runtime.cgroups.controls import Batch, Names, put
from runtime.cgroups.files import write
from runtime.cgroups.resources import LIMIT_NAMES, of_limits
from runtime.cgroups.v1_controls import V1Controls
from runtime.cgroups.v2_controls import V2Controls
from runtime.instance import LimitReading
from runtime.spec import Limits


class ThreadGroup:
    """The group `directory`; on v2, `mount` is the hierarchy's. Construction touches nothing."""

    def __init__(self, directory: Path, cpus: float, *, mount: Path | None = None) -> None:
        self.directory = directory
        self._cpus = cpus
        self._mount = mount

    @property
    def tasks(self) -> Path:
        """The file that threads enter by, and that lists them."""
        return self.directory / ("tasks" if self._mount is None else "cgroup.threads")

    def create(self) -> None:
        """Make it below the instance's group, which exists, with its limit. Raises OSError and TareError."""
        self.directory.mkdir(0o755)
        if self._mount is not None:
            write(self.directory / "cgroup.type", "threaded")
            write(self.directory.parent / "cgroup.subtree_control", "+cpu")
        put(list(self._batches()))

    def add(self, threads: Iterable[int]) -> None:
        """Move threads in. Raises OSError."""
        for thread in threads:
            write(self.tasks, str(thread))

    def threads(self) -> tuple[int, ...]:
        """The threads in it."""
        return tuple(sorted(int(word) for word in self.tasks.read_text().split()))

    def readings(self) -> tuple[LimitReading, ...]:
        """Its limit, read back from the kernel."""
        return tuple(control.reading() for batch in self._batches() for control in batch)

    def _batches(self) -> Iterable[Batch]:
        def locate(_limit: str, file: str) -> Path:
            return self.directory / file

        names, asked = Names(LIMIT_NAMES), of_limits(Limits(cpus=self._cpus))
        if self._mount is None:
            return V1Controls(locate, None, names).batches(asked)
        return V2Controls(locate, self._mount, None, names).batches(asked)
