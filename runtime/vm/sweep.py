"""What dead processes left of their virtual machines, and its removal. Needs no libvirt: QEMU is found by its command.

A machine is ours to remove when its owner is dead and its sockets or files lie below this state
directory; other state directories have their own sweep.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from runtime.cgroups.detect import open_cgroup
from runtime.driver import Host
from runtime.ledger import Ledger, Stale, process_start
from runtime.linux import procfs
from runtime.linux.pidfd import Pidfd
from runtime.network.network import Networks
from runtime.spec import Limits
from runtime.vm.connection import embedded_roots

_GUEST = re.compile(r"guest=(tare-[0-9a-f]{12})(?:,|$)")
_DIE_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing: what it is (`kind`: process, cgroup, link, lease, port, dir, page) and which."""

    kind: str
    value: str
    instance_id: str

    def __str__(self) -> str:
        return f"{self.kind} {self.value}" + (f" of {self.instance_id}" if self.kind == "process" else "")


def find(host: Host, driver: str, proc: Path = Path("/proc")) -> list[Leftover]:
    """Everything that dead owners left of `driver`'s machines, in the order in which it can be removed."""
    ledger = Ledger(host.run)
    living = {instance_id for instance_id, _ in ledger.live()}
    stale = {page.id: page for page in ledger.stale(driver)}
    processes = [
        Leftover("process", str(pid), instance_id)
        for pid, instance_id, name in qemus(host, proc)
        if instance_id not in living and (instance_id in stale or name == driver)
    ]
    found = list(processes)
    for page in stale.values():
        found += [
            Leftover(resource.kind, resource.value, page.id)
            for resource in page.resources
            if resource.kind in ("cgroup", "dir") and Path(resource.value).exists()
        ]
        found += _of_networks(host, page)
        found.append(Leftover("page", page.id, page.id))
    # A reboot empties the run directory, pages and all; disks stay.
    known = {entry.value for entry in found}
    for directory in sorted((host.root / "instances").glob("tare-*")):
        orphan = directory.name not in living and str(directory) not in known
        if orphan and (directory / "disk.qcow2").exists() and _driver_of(directory) == driver:
            found.append(Leftover("dir", str(directory), directory.name))
    return found + [Leftover("dir", str(root), "") for root in dead_roots(host, proc)]


def remove(host: Host, driver: str) -> list[str]:
    """Remove what `find` finds; one line for each thing removed."""
    removed = []
    for entry in find(host, driver):
        match entry.kind:
            case "process":
                _kill(int(entry.value), entry.instance_id)
            case "cgroup":
                open_cgroup(entry.instance_id, Limits(cpuset="0")).remove()
            case "link" | "lease" | "port":
                with closing(Networks(host.root, host.run)) as networks:
                    networks.sweep(entry.instance_id, [(entry.kind, entry.value)])
            case "page":
                Ledger(host.run).strike(entry.value)
            case _:
                shutil.rmtree(entry.value)
        removed.append(str(entry))
    return removed


def _of_networks(host: Host, page: Stale) -> list[Leftover]:
    """What of a page's tap, address and published ports is still there; all of it went with another boot."""
    if not page.same_boot:
        return []
    with closing(Networks(host.root, host.run)) as networks:
        return [
            Leftover(resource.kind, resource.value, page.id)
            for resource in page.resources
            if networks.holds(page.id, resource.kind, resource.value)
        ]


def qemus(host: Host, proc: Path = Path("/proc")) -> Iterator[tuple[int, str, str]]:
    """Every QEMU of this state directory as (pid, instance id, driver), by its command line."""
    for pid in procfs.pids(proc):
        instance_id, words = _guest_of(pid, proc)
        if instance_id and any(str(host.run / "vm" / instance_id) in word for word in words):
            yield pid, instance_id, "microvm" if "-kernel" in words else "vm"


def dead_roots(host: Host, proc: Path = Path("/proc")) -> list[Path]:
    """The embedded libvirt's state directories whose process is dead."""
    dead = []
    for root in sorted(embedded_roots(host).glob("*-*")):
        pid, _, start = root.name.partition("-")
        if not pid.isdigit() or str(process_start(int(pid), proc)) != start:
            dead.append(root)
    return dead


def _guest_of(pid: int, proc: Path) -> tuple[str | None, list[str]]:
    try:
        words = os.fsdecode((proc / str(pid) / "cmdline").read_bytes()).split("\0")
    except OSError:
        return None, []
    match = next((match for word in words[:4] if (match := _GUEST.match(word))), None)
    return (match[1] if match else None), words


def _driver_of(directory: Path) -> str:
    return "vm" if (directory / "variables.fd").exists() else "microvm"


def _kill(pid: int, instance_id: str) -> None:
    with suppress(ProcessLookupError), Pidfd.of(pid) as process:
        if _guest_of(pid, Path("/proc"))[0] == instance_id:  # the pid may have been given away meanwhile
            process.signal(9)
            open_cgroup(instance_id).await_end(process.wait, _DIE_TIMEOUT_S)
