"""What instances of a driver left on the host, from their pages in the ledger: found, and removed.

For drivers of containers; machines have their own (`runtime.vm.sweep`). What a living owner has it gives back itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from runtime.cgroups.detect import open_cgroup
from runtime.container import storage
from runtime.container.instance import KILL_TIMEOUT_S
from runtime.errors import TareError
from runtime.ledger import PREFIX, Ledger, Resource, Stale, process_start
from runtime.linux import procfs, syscalls
from runtime.linux.pidfd import Pidfd
from runtime.network.network import Networks

MARK = "TARE_INSTANCE"
"""The variable by which a program that we had run for an instance, and all that it started, can be told."""


class Leftovers:
    """Of the instances of one driver whose owner is dead."""

    def __init__(self, driver: str, ledger: Ledger, networks: Networks) -> None:
        self._driver, self._ledger, self._networks = driver, ledger, networks

    def lines(self) -> list[str]:
        """Each thing that is still there."""
        return [f"{stale.id}: {item.kind} {item.value}" for stale in self._stale() for item in self._present(stale)]

    def sweep(self) -> list[str]:
        """Kill, remove and strike out, instance by instance; returns what went."""
        removed = []
        for stale in self._stale():
            items = list(self._present(stale))
            remove(items)
            self._networks.sweep(stale.id, [(item.kind, item.value) for item in items])
            remaining = list(self._present(stale))
            if remaining:
                raise TareError(
                    f"sweeping {stale.id}", f"{remaining[0].kind} {remaining[0].value} is still there", "try again"
                )
            self._ledger.strike(stale.id)
            removed += [f"{stale.id}: {item.kind} {item.value}" for item in items]
        return removed + self._networks.retire()

    def _stale(self) -> list[Stale]:
        return list(self._ledger.stale(self._driver))

    def _present(self, stale: Stale) -> Iterator[Resource]:
        """What of a stale page still exists; a network's things are its own to look for."""
        yield from present(stale.resources, same_boot=stale.same_boot)
        for item in stale.resources if stale.same_boot else ():
            if self._networks.holds(stale.id, item.kind, item.value):
                yield item


def present(resources: Sequence[Resource], *, same_boot: bool = True) -> Iterator[Resource]:
    """What of a page still exists; beside the noted, every process that bears its mark or lives on its files.

    By files only where nothing was mounted in the host's mount namespace: what is mounted there, every process sees.
    """
    told_by_files = same_boot and all(item.kind != "mount" for item in resources)
    directories = [Path(item.value) for item in resources if item.kind == "dir" and told_by_files]
    own = [directory for directory in directories if directory.name.startswith(PREFIX)]  # no other has such a name
    found = {pid for directory in own for pid in procfs.with_mount_below(directory)}
    for item in resources if same_boot else ():
        found |= set(procfs.with_variable(MARK, item.value)) if item.kind == "mark" else set()
    for item in standing(resources, same_boot=same_boot):
        yield item
        found -= {_pid(item)} if item.kind == "pid" else set()
    yield from (Resource("pid", f"{pid}:{process_start(pid)}") for pid in found - {os.getpid()})


def standing(resources: Sequence[Resource], *, same_boot: bool = True) -> Iterator[Resource]:
    """What is noted and still exists; nothing else is looked for."""
    return (item for item in resources if _exists(item, same_boot))


def _exists(item: Resource, same_boot: bool) -> bool:
    match item.kind:
        case "dir":
            return Path(item.value).is_dir()
        case "cgroup":
            return open_cgroup(item.value).exists()
        case "pid":
            return same_boot and _runs(item)
        case "mount":
            return same_boot and is_mounted(item.value)
    return False


def is_mounted(path: str) -> bool:
    """Whether something is mounted at exactly this path, here."""
    return any(line.split()[4] == path for line in Path("/proc/self/mountinfo").read_text().splitlines())


def remove(items: Sequence[Resource]) -> None:
    """Cgroups first: a frozen process can only die when they are thawed. Directories last: mounts lie in them."""
    for item in items:
        if item.kind == "cgroup":
            open_cgroup(item.value).remove()
    for item in items:
        if item.kind == "pid":
            _kill(item)
    for item in items:
        if item.kind == "mount":
            unmount(item.value)
    for item in items:
        if item.kind == "dir":
            storage.remove(item.value)


def unmount(path: str) -> None:
    """Take away what is mounted at `path`, even while somebody looks at it; nothing there is no error."""
    if is_mounted(path):
        syscalls.umount2(path.encode(), syscalls.MNT_DETACH)


def _kill(item: Resource) -> None:
    with suppress(ProcessLookupError), Pidfd.of(_pid(item)) as process:
        if _runs(item):
            process.signal(signal.SIGKILL)
            process.wait(KILL_TIMEOUT_S)


def _runs(item: Resource) -> bool:
    """Whether exactly this process runs; a zombie does not."""
    start = item.value.partition(":")[2]
    return str(process_start(_pid(item))) == start and procfs.state(_pid(item)) not in (None, "Z", "X")


def _pid(item: Resource) -> int:
    return int(item.value.partition(":")[0])
