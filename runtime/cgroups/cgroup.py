"""One interface to a control group, whichever hierarchy the host has: limits, accounting, freezing, removal.

Paths are arguments, so that everything here works on a recorded tree. Not which hierarchy the host
has (that is `detect`), and not when a process joins (that is whoever starts it).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from runtime.cgroups.controls import Batch, demand, put, replace_all
from runtime.cgroups.devices import USUAL
from runtime.cgroups.files import absent, family, kill_members, lift_io_caps, members, remove_directories, write
from runtime.cgroups.resources import DeviceRule, Resources
from runtime.cgroups.statistics import Statistics
from runtime.cgroups.threads import ThreadGroup
from runtime.errors import TareError
from runtime.instance import LimitReading, Usage
from runtime.spec import Limits

_PROMPT_S = 0.5
_MAKING_ATTEMPTS = 100
Wanted = Limits | Resources
"""What a group is asked for, in either form. Messages and readings use the names of the form that was given."""

Rules = tuple[DeviceRule, ...]


class Cgroup(ABC):
    """The control group of one instance. Construction touches nothing; `create()` makes it.

    `wanted` tells beforehand what `apply()` will be given; `guard_devices` confines the group to the usual
    device nodes where `wanted` has no rules of its own. Limits that the host cannot enforce are refused by
    name with a TareError, never dropped.
    """

    method: str
    guards_devices: bool
    """Whether the kernel lets the group's processes at no other device nodes than the rules say."""

    def __init__(
        self,
        instance_id: str,
        *,
        io_device: str | None = None,
        wanted: Wanted | None = None,
        guard_devices: bool = False,
    ) -> None:
        self.id = instance_id
        self.io_device = io_device
        self._wanted = wanted
        asked = wanted.devices if isinstance(wanted, Resources) else None
        self._rules: Rules | None = asked if asked is not None else USUAL if guard_devices else None
        self._confined: Rules | None = None
        self._known: tuple[Wanted, list[Batch]] | None = None
        self._made: set[Path | str] = set()

    @abstractmethod
    def directories(self) -> tuple[Path, ...]:
        """Every directory that `create()` makes, for the ledger."""

    def possible_directories(self) -> tuple[Path, ...]:
        """Every directory that a group of this name may have, whatever limits it was made for."""
        return self.directories()

    def create(self) -> None:
        """Make the group, empty, unlimited and with its devices guarded. Raises OSError.

        An empty group of that name, which may have anybody's limits, is made anew. Raises TareError for one in
        use, and, leaving nothing, when the host lacks a control that the group was opened for.
        """
        for last in (False,) * _MAKING_ATTEMPTS + (True,):
            try:
                self._make_anew()
            except OSError as error:
                if last or not absent(error):
                    raise
                self.remove()  # those above went while it was made: nobody was in them (`parents`)
            else:
                break
        try:
            if self._wanted is not None:
                batches = list(self._batches(self._wanted))
                demand(batches)
                self._known = self._wanted, batches
            if self._rules is not None and self.guards_devices:
                self.confine(self._rules)
        except BaseException:
            self.remove()
            raise

    def _make_anew(self) -> None:
        try:
            self._make()
        except FileExistsError as error:
            if any(members(path) for top in self.possible_directories() for path in family(top)):
                raise TareError(f"cgroup {self.id}", f"{error.filename} has processes", "choose another name") from None
            self.remove()
            self._make()

    @abstractmethod
    def _make(self) -> None:
        """Make the directories, and those above that are not there. Raises OSError."""

    @abstractmethod
    def _batches(self, wanted: Wanted) -> Iterable[Batch]:
        """The controls of `wanted`, without devices. Raises TareError naming what this host lacks."""

    @abstractmethod
    def _enable(self, wanted: Wanted) -> None:
        """Join the controllers that `wanted` needs and `create()` did not know of."""

    def check(self, wanted: Wanted) -> None:
        """Refuse what `apply()` would refuse, as far as can be told while the group is not made. Raises TareError."""
        demand(self._batches(wanted))
        if isinstance(wanted, Resources) and wanted.devices is not None:
            self.check_devices(wanted.devices)

    @abstractmethod
    def check_devices(self, rules: Rules) -> None:
        """Refuse rules that this host cannot enforce. Raises TareError."""

    def apply(self, wanted: Wanted) -> None:
        """Set every limit that is not None. Raises TareError naming the first one the host lacks, before any is set."""
        if self._known is not None and self._known[0] == wanted:
            batches = self._known[1]
        else:
            batches = list(self._batches(wanted))
            self._enable(wanted)
            demand(batches)
        put(batches)
        self._apply_devices(wanted)

    def update(self, resources: Resources) -> None:
        """Change limits of a group in use: all of `resources`, or none. Raises TareError naming the one that failed."""
        batches = list(self._batches(resources))
        if resources.devices is not None:
            self.check_devices(resources.devices)
        memory = resources.memory
        if memory is not None and memory.check_before_update and memory.limit and memory.limit > 0:
            used = self.usage().memory_bytes or 0
            if used > memory.limit:
                raise TareError("limit memory.limit", f"{used} bytes are in use", "free some, or do not ask to check")
        self._enable(resources)
        demand(batches)
        replace_all(batches)
        self._apply_devices(resources)

    def _apply_devices(self, wanted: Wanted) -> None:
        if isinstance(wanted, Resources) and wanted.devices is not None and wanted.devices != self._confined:
            self.check_devices(wanted.devices)
            self.confine(wanted.devices)

    def confine(self, rules: Rules) -> None:
        """Let the group's processes at those device nodes only. Raises TareError."""
        self._confine(rules)
        self._confined = rules

    @abstractmethod
    def _confine(self, rules: Rules) -> None: ...

    def readings(self, wanted: Wanted) -> tuple[LimitReading, ...]:
        """Each limit of `wanted` read back from the kernel, one reading a control file."""
        found = [control.reading() for batch in self._batches(wanted) for control in batch]
        if isinstance(wanted, Resources) and wanted.devices is not None:
            found.append(self._devices_reading(wanted.devices))
        return tuple(found)

    @abstractmethod
    def _devices_reading(self, rules: Rules) -> LimitReading:
        """Whether the kernel holds `rules`."""

    @abstractmethod
    def usage(self) -> Usage:
        """CPU time, memory, processes and I/O of the whole group; `pss_bytes` is not a cgroup's to know."""

    @abstractmethod
    def statistics(self) -> Statistics:
        """All that the kernel accounts for the group."""

    @abstractmethod
    def set_frozen(self, frozen: bool, timeout_s: float = 5.0) -> None:
        """Freeze or thaw all processes; returns when the kernel says it is done. Raises TareError on time-out."""

    def freeze(self) -> None:
        """Freeze every process of the group."""
        self.set_frozen(True)

    def thaw(self) -> None:
        """Let a frozen group run again."""
        self.set_frozen(False)

    @abstractmethod
    def join_files(self) -> tuple[Path, ...]:
        """Files to which a process writes `0` to enter by itself; empty where `clone_into()` is given."""

    @abstractmethod
    def clone_into(self) -> Path | None:
        """The directory to open for CLONE_INTO_CGROUP, where that covers all controllers (v2)."""

    @abstractmethod
    def mounts_inside(self) -> tuple[tuple[str, str], ...]:
        """What to mount to show the group to its own processes: (controllers, name below /sys/fs/cgroup)."""

    @abstractmethod
    def thread_group(self, name: str, cpus: float) -> ThreadGroup:
        """A group below this one, not yet made, for threads that shall have no more than `cpus` of CPU time."""

    def add_pid(self, pid: int) -> None:
        """Move process `pid` with all its threads in. Raises OSError."""
        for directory in self.directories():
            write(directory / "cgroup.procs", str(pid))

    def pids(self) -> tuple[int, ...]:
        """The processes of the group and those below it, as the host numbers them; empty when it does not exist."""
        return tuple(pid for directory in reversed(family(self.directories()[0])) for pid in members(directory))

    def kill(self) -> None:
        """Send SIGKILL to every process of the group."""
        for top in self.directories():
            for directory in family(top):
                kill_members(directory)

    def await_end(self, ended: Callable[[float], bool], timeout_s: float) -> bool:
        """Whether a process of the group that was just killed has ended, as `ended` says after waiting so many seconds.

        One that does not end at once may wait for its turn below a cap on I/O: those of the group are lifted then.
        """
        if ended(min(_PROMPT_S, timeout_s)):
            return True
        for top in self.possible_directories():
            for directory in family(top):
                lift_io_caps(directory)
        return ended(timeout_s)

    def exists(self) -> bool:
        """Whether any directory of the group is there."""
        return any(directory.is_dir() for directory in self.possible_directories())

    def remove(self, timeout_s: float = 5.0) -> None:
        """Remove the group, killing what is still in it. Removing an absent group is no error.

        Raises TareError when it is still busy after `timeout_s`.
        """
        remove_directories(self._removable(), timeout_s, made=self._made)

    def _removable(self) -> Sequence[Path | str]:
        """The possible directories, in whichever form costs less to have."""
        return self.possible_directories()
