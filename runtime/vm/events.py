"""What libvirt reports of domains without being asked: its event loop in one thread, and what was heard of each domain.

Not what follows from it: that is the guest's business (`guest`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

BY_ITSELF = "the guest ended by itself"
_PAUSED_BY_DISK = {"enospc": "the host's disk is full", "": "its disk failed"}


class Watch:
    """What was heard of one domain. `end` and `trouble` are None until there is something to say.

    `on_trouble` is called once, from the thread that sees that the guest stands still: QEMU has stopped it over a disk
    (the event loop), or it has crashed by the word of its console.
    """

    def __init__(self, on_trouble: Callable[[str], None]) -> None:
        self.end: str | None = None
        self.trouble: str | None = None
        self.ended = threading.Event()
        self._on_trouble = on_trouble

    def stopped(self, how: str) -> None:
        """The domain is no more."""
        self.end = how
        self.ended.set()

    def troubled(self, what: str) -> None:
        """The domain stands still, and not because it was asked to."""
        if self.trouble is None:
            self.trouble = what
            self._on_trouble(what)


class Events:
    """The events of all domains of one connection, whose loop must run."""

    def __init__(self, libvirt: Any, handle: Any) -> None:
        self._handle = handle
        self._watches: dict[str, Watch] = {}
        self._stopped = libvirt.VIR_DOMAIN_EVENT_STOPPED
        self._paused = libvirt.VIR_DOMAIN_EVENT_IO_ERROR_PAUSE
        self._ends = {
            libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: BY_ITSELF,
            libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: "it was destroyed through libvirt",
            libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: "the guest crashed",
            libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: "it was saved",
            libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: "QEMU was killed or failed",
        }
        wanted = (
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle),
            (libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR_REASON, self._io_error),
        )
        self._registered = [handle.domainEventRegisterAny(None, kind, heard, None) for kind, heard in wanted]

    def watch(self, name: str, on_trouble: Callable[[str], None]) -> Watch:
        """Listen for the domain `name`, which need not exist yet."""
        return self._watches.setdefault(name, Watch(on_trouble))

    def forget(self, name: str) -> None:
        """Listen no more."""
        self._watches.pop(name, None)

    def close(self) -> None:
        """Tell libvirt that nobody listens. Raises libvirtError on a connection that is lost."""
        for number in self._registered:
            self._handle.domainEventDeregisterAny(number)
        self._registered = []

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: Any) -> None:
        watch = self._watches.get(domain.name())
        if watch is not None and event == self._stopped:
            watch.stopped(self._ends.get(detail, f"libvirt says that it stopped ({detail})"))

    def _io_error(
        self, _connection: Any, domain: Any, path: str, _alias: str, action: int, reason: str, _opaque: Any
    ) -> None:
        watch = self._watches.get(domain.name())
        if watch is not None and action == self._paused:
            watch.troubled(f"{_PAUSED_BY_DISK.get(reason, reason)}: QEMU has paused the guest, writing {path}")


class Loop:
    """libvirt's default event loop, in a thread while anybody holds it. One a process: libvirt knows no other."""

    def __init__(self) -> None:
        self._holders = 0
        self._registered = False
        self._thread: threading.Thread | None = None

    def hold(self, libvirt: Any) -> None:
        """Run. Without a loop, there before the first connection is opened, libvirt does not hear QEMU's monitor."""
        if not self._registered:
            libvirt.virEventRegisterDefaultImpl()
            self._registered = True
        self._holders += 1
        if self._thread is None:
            self._thread = threading.Thread(target=self._turn, args=(libvirt,), name="tare-libvirt", daemon=True)
            self._thread.start()

    def let_go(self, libvirt: Any) -> None:
        """The last to let go waits for the thread, so that none is in libvirt when the interpreter ends."""
        self._holders -= 1
        if self._holders or self._thread is None:
            return
        wake = libvirt.virEventAddTimeout(0, lambda *_: None, None)
        self._thread.join()
        libvirt.virEventRemoveTimeout(wake)
        self._thread = None

    def _turn(self, libvirt: Any) -> None:
        while self._holders:
            libvirt.virEventRunDefaultImpl()
