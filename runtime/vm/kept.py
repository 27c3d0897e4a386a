"""The guests of one keeper: launched, written down (`records`) before anybody is told, ended, once.

Nothing of connections: what a command asks for is `keeper`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from runtime.channel import Command
from runtime.driver import Host
from runtime.errors import TareError
from runtime.images import cloud
from runtime.spec import ImageRef, InstanceSpec, Limits, NetworkMode, NetworkSpec, Ready
from runtime.vm import nocloud
from runtime.vm.domain import MIB, Firmware, Tuning
from runtime.vm.guest import Guest
from runtime.vm.plan import Plan, on_image
from runtime.vm.records import CONSOLE, EXITED, OUTPUT, PAUSED, RUNNING, Record, Records, own_keeper
from runtime.vm.room import room_for

DISK = ImageRef("disk")
"""Stands for a cloud image, which no store knows by name."""
DISK_MEMORY_BYTES = 1024 * MIB
OUTPUT_KEPT_BYTES = 1 << 20
_MACHINE = ImageRef.parse("tare/debian:bookworm")


class Kept:
    """A live guest, its record, and what its command has printed."""

    def __init__(self, guest: Guest, record: Record) -> None:
        self.guest = guest
        self.record = record
        self.lock = threading.Lock()
        self.ended = threading.Event()
        self.output = bytearray()
        self.main: Command | None = None
        """What it was started for, while that runs."""

    def note(self, _stream: int, data: bytes) -> None:
        """Keep the latest of a command's output."""
        self.output += data
        if len(self.output) > 2 * OUTPUT_KEPT_BYTES:
            del self.output[:-OUTPUT_KEPT_BYTES]

    def look(self) -> dict[str, Any]:
        """What only a look at the live guest tells."""
        guest, usage = self.guest, self.guest.usage()
        return {
            "xml": guest.xml(),
            "pids": list(guest.host_pids()),
            "timeline": [list(event) for event in guest.timeline],
            "usage": {name: value for name, value in vars(usage).items() if value is not None},
            "limits": [
                {"name": one.name, "asked": one.asked, "read": one.read, "source": one.source, "holds": one.holds}
                for one in guest.limit_readings()
            ],
            "disk": {
                "shared": [str(path) for path in guest.disk_paths().shared],
                "exclusive": [str(path) for path in guest.disk_paths().exclusive],
            },
            "console": guest.console(),
            "output": bytes(self.output),
        }


class Guests:
    """All guests of `host`. `driver_of` finds a driver of virtual machines by name."""

    def __init__(self, host: Host, driver_of: Callable[[str], Any]) -> None:
        self._host = host
        self._driver_of = driver_of
        self._records = Records(host)
        self._lock = threading.Lock()
        self._names: set[str] = set()
        self._drivers: dict[tuple[str, Tuning | None], Any] = {}
        self._drivers_lock = threading.Lock()
        self._kept: dict[str, Kept] = {}
        self._emptied_s = 0.0

    def emptied_s(self) -> float | None:
        """When (monotonic) the last one went; None as long as there are any."""
        with self._lock:
            return None if self._kept else self._emptied_s

    def close_drivers(self) -> None:
        """Give up what launching holds: there is no guest, nor will be."""
        for driver in self._drivers.values():
            driver.close()

    def find(self, guest_id: str) -> Kept:
        """A guest that runs. Raises TareError."""
        with self._lock:
            kept = self._kept.get(guest_id)
        if kept is None:
            raise TareError(f"virtual machine {guest_id}", "it does not run", "see: tare vm ls -a")
        return kept

    def launch(self, wanted: dict[str, Any]) -> Kept:
        """Launch what a request asks for and write it down. Raises TareError, leaving nothing."""
        spec, tuning = spec_of(wanted), Tuning(**wanted["tuning"]) if wanted["tuning"] else None
        with self._named(wanted["name"]):
            kept = self._launch(spec, tuning, wanted)
        threading.Thread(target=self._watch, args=(kept,), name="tare-watch", daemon=True).start()
        return kept

    @contextmanager
    def _named(self, name: str) -> Iterator[None]:
        """Nobody else takes the name meanwhile. Raises TareError when somebody has it."""
        with self._lock:
            if name in self._names or any(record.name == name for record in self._records.all()):
                raise TareError(f"name {name}", "taken by a virtual machine", "choose another, or remove that one")
            self._names.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._names.discard(name)

    def _launch(self, spec: InstanceSpec, tuning: Tuning | None, wanted: dict[str, Any]) -> Kept:
        name = wanted["driver"]
        with self._drivers_lock:  # preparing is quick once it was done; a launch, which is slow, holds nobody up
            if (name, tuning) not in self._drivers:
                self._drivers[name, tuning] = self._driver_of(name)(self._host, tuning)
            driver = self._drivers[name, tuning]
            # A cloud image's machine is like one of ours, on another disk.
            prepared: Any = driver.prepare(spec if wanted["disk"] is None else replace(spec, image=_MACHINE))
            chosen = prepared.accelerator
            if wanted["disk"] is not None:
                prepared = replace(prepared, plan=self._on_disk(prepared.plan, spec, wanted["disk"]))
        created_s = time.time()
        guest: Any = driver.launch(prepared)
        record = Record(
            id=guest.id,
            name=wanted["name"],
            image=wanted["image"],
            driver=name,
            argv=tuple(wanted["argv"]),
            accelerator=chosen.name,
            accelerator_reason=chosen.reason,
            created_s=created_s,
            address=guest.address or "",
            ports=tuple((port.host, port.host_port, port.port, port.protocol) for port in guest.ports),
            memory_bytes=prepared.plan.memory_bytes,
            vcpus=prepared.plan.vcpus,
            auto_remove=wanted["rm"],
            keeper=own_keeper(),
        )
        kept = Kept(guest, record)
        try:
            with room_for(self._host, "record of a virtual machine"):
                self._records.write(record)
        except BaseException:
            guest.close()
            raise
        with self._lock:
            self._kept[record.id] = kept
        return kept

    def _on_disk(self, plan: Plan, spec: InstanceSpec, disk: dict[str, Any]) -> Plan:
        """`plan` for a user's cloud image; without a limit with more memory, as such a system starts more."""
        assert isinstance(plan.boot, Firmware)  # the only driver for it boots so
        image = cloud.open(Path(disk["path"]))
        cloud.require_uefi(image)
        seed = nocloud.Seed(nocloud.agent_program(self._host), disk["user_data"], tuple(disk["ssh_keys"]))
        memory_bytes = DISK_MEMORY_BYTES if spec.limits.memory_bytes is None else plan.memory_bytes
        ours = replace(plan, spec=spec, env=spec.env, memory_bytes=memory_bytes)
        return on_image(ours, image, seed, plan.boot)

    def _watch(self, kept: Kept) -> None:
        """See the guest end by itself, or stand still for ever: a full disk of the host, a crash."""
        while kept.guest.alive() and kept.guest.trouble is None and not kept.ended.wait(0.2):
            pass
        with kept.lock:  # nobody closes it meanwhile
            mishap = "" if kept.ended.is_set() else kept.guest.mishap()
        self.close(kept, 0.0, error=mishap)

    def close(self, kept: Kept, timeout_s: float | None, *, code: int | None = None, error: str = "") -> None:
        """End the guest, within `timeout_s` (its driver's), and write down that it has; once."""
        with kept.lock:
            if kept.ended.is_set():
                return
            guest, record = kept.guest, kept.record
            killed = bool(record.argv or error)
            if timeout_s is not None:
                guest.stop_timeout_s = timeout_s
            try:
                guest.close()
            except TareError as failure:
                error = error or str(failure)
            timeline, console = guest.timeline, guest.console()
            kept.record = replace(
                record,
                status=EXITED,
                exit_code=code if code is not None else (137 if killed else 0),
                error=error,
                ended_s=time.time(),
                address="",
                ports=(),
                details={"timeline": [list(event) for event in timeline]},
            )
            with suppress(OSError):  # a full disk keeps nobody from ending
                self._records.write(kept.record)
                where = self._records.directory(kept.record)
                (where / CONSOLE).write_text(console)
                (where / OUTPUT).write_bytes(kept.output)
            if record.auto_remove:
                self._records.remove(record)
            with self._lock:
                self._kept.pop(record.id, None)
                self._emptied_s = time.monotonic()
            kept.ended.set()

    def pause(self, kept: Kept, pause: bool) -> None:
        """Pause or resume it. Raises TareError where there is nothing to do."""
        with kept.lock:
            if kept.ended.is_set() or (kept.record.status == PAUSED) is pause:
                state = "it does not run" if kept.ended.is_set() else f"it is {kept.record.status}"
                raise TareError(f"virtual machine {kept.record.name}", state, "see: tare vm ls -a")
            (kept.guest.pause if pause else kept.guest.resume)()
            kept.record = replace(kept.record, status=PAUSED if pause else RUNNING)
            self._records.write(kept.record)


def spec_of(wanted: dict[str, Any]) -> InstanceSpec:
    """The instance that a request asks for. Raises UsageError."""
    return InstanceSpec(
        image=ImageRef.parse(wanted["image"]) if wanted["disk"] is None else DISK,
        env=tuple(tuple(pair) for pair in wanted["env"]),
        limits=Limits(**wanted["limits"]),
        network=NetworkSpec(mode=NetworkMode(wanted["network"]), ports=tuple(tuple(p) for p in wanted["ports"])),
        ready=Ready.SERVICE,
        hostname=wanted["hostname"],
    )
