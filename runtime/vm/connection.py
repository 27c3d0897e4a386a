"""The way to libvirt: one connection for all VM drivers of this process, its event loop, its errors made readable.

By default QEMU is driven inside this process (`qemu:///embed`): no daemon, nothing to install as a service.
TARE_LIBVIRT_URI names another (`qemu:///system`). libvirt is imported here and only when a connection is made.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.driver import Host
from runtime.errors import TareError
from runtime.ledger import process_start

URI_VARIABLE = "TARE_LIBVIRT_URI"
_SOCKET_PATH_MAX = 107  # sun_path without its NUL, unix(7)
_MONITOR = "lib/qemu/domain-99999-tare-0123456789ab/monitor.sock"
# No log daemon, no users and labels of its own, and no control groups: those are ours (see `guest`).
_QEMU_CONF = """\
stdio_handler = "file"
user = "root"
group = "root"
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
namespaces = []
cgroup_controllers = []
"""

_lock = threading.Lock()
_open: Connection | None = None
_event_loop: threading.Thread | None = None


class Connection:
    """An open connection to libvirt; `libvirt` is the module, `handle` its virConnect. Use `connect()`."""

    def __init__(self, libvirt: Any, uri: str, embedded_root: Path | None) -> None:
        self.libvirt = libvirt
        self.uri = uri
        self.users = 0
        self._embedded_root = embedded_root
        with self.explained(f"connection to {uri}", f"start its daemon, or unset {URI_VARIABLE}"):
            self.handle = libvirt.open(uri)

    @property
    def embedded(self) -> bool:
        """Whether QEMU is driven from this process, without a daemon."""
        return self._embedded_root is not None

    @contextmanager
    def explained(self, what: str, do: str = "") -> Iterator[None]:
        """Turn libvirt's errors inside the block into a TareError about `what`."""
        try:
            yield
        except self.libvirt.libvirtError as error:
            raise TareError(what, " ".join(str(error).split()), do) from error

    def facts(self) -> dict[str, str]:
        """The versions of libvirt and of the QEMU that it found."""
        with self.explained(f"connection to {self.uri}"):
            qemu = self.handle.getVersion() if not self.embedded else None
            facts = {"libvirt": _version(self.handle.getLibVersion()), "uri": self.uri.partition("?")[0]}
        return facts | ({"libvirt's qemu": _version(qemu)} if qemu else {})

    def machine_type(self, emulator: Path, accelerator: str) -> str:
        """The full name of what `q35` means. The first time libvirt asks the emulator for its abilities: some 8 s."""
        kind = "kvm" if accelerator == "kvm" else "qemu"
        with self.explained(f"emulator {emulator}", "install qemu-system-x86 with ./bootstrap"):
            text = self.handle.getDomainCapabilities(str(emulator), "x86_64", "q35", kind, 0)
        return str(text).partition("<machine>")[2].partition("</machine>")[0]

    def find(self, name: str) -> Any | None:
        """The domain called `name`, or None."""
        try:
            return self.handle.lookupByName(name)
        except self.libvirt.libvirtError as error:
            if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise TareError(f"domain {name}", str(error)) from error

    def names(self) -> list[str]:
        """The names of all domains, running or not."""
        with self.explained("list of domains"):
            return [domain.name() for domain in self.handle.listAllDomains(0)]

    def release(self) -> None:
        """Give up one use; the last one closes."""
        global _open  # noqa: PLW0603 - libvirt's embedded driver exists once per process
        with _lock:
            self.users -= 1
            if self.users > 0:
                return
            _open = None
            try:
                self.handle.close()
            finally:
                if self._embedded_root is not None:
                    shutil.rmtree(self._embedded_root, ignore_errors=True)


def connect(host: Host) -> Connection:
    """This process's connection, opened at need; every call must be paired with `release()`.

    Raises TareError when libvirt cannot be imported or reached.
    """
    global _open  # noqa: PLW0603 - libvirt's embedded driver exists once per process
    with _lock:
        if _open is None:
            libvirt = import_libvirt()
            _start_event_loop(libvirt)
            uri, root = os.environ.get(URI_VARIABLE), None
            if uri is None:
                root = _embedded_root(host)
                uri = f"qemu:///embed?root={root}"
            _open = Connection(libvirt, uri, root)
        _open.users += 1
        return _open


def import_libvirt() -> Any:
    """The libvirt module, its habit of printing errors switched off. Raises TareError when it cannot be imported."""
    # Read when the library is loaded; its warnings (that QEMU runs as root) would go to our stderr.
    os.environ.setdefault("LIBVIRT_DEBUG", "4")
    try:
        import libvirt
    except ImportError as error:
        raise TareError("libvirt", str(error), "run ./bootstrap to install it") from error
    libvirt.registerErrorHandler(lambda _context, _error: None, None)
    return libvirt


def _start_event_loop(libvirt: Any) -> None:
    """Without an event loop, there before the first open, libvirt does not hear QEMU's monitor."""
    global _event_loop  # noqa: PLW0603 - as above
    if _event_loop is None:
        libvirt.virEventRegisterDefaultImpl()

        def turn() -> None:
            while True:
                libvirt.virEventRunDefaultImpl()

        _event_loop = threading.Thread(target=turn, name="tare-libvirt", daemon=True)
        _event_loop.start()


def _embedded_root(host: Host) -> Path:
    """A state directory of this process's own, named by its pid and start, with the cache that all share."""
    root = embedded_roots(host) / f"{os.getpid()}-{process_start(os.getpid())}"
    longest = len(os.fsencode(root / _MONITOR))
    if longest > _SOCKET_PATH_MAX:
        why = f"sockets below {host.run} would have names of {longest} bytes"
        raise TareError("state directory", why, f"choose one at least {longest - _SOCKET_PATH_MAX} bytes shorter")
    cache = host.root / "cache/libvirt"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    (root / "etc").mkdir(parents=True, exist_ok=True, mode=0o700)
    (root / "etc/qemu.conf").write_text(_QEMU_CONF)
    (root / "cache").unlink(missing_ok=True)
    (root / "cache").symlink_to(cache.resolve())
    return root


def embedded_roots(host: Host) -> Path:
    """Where the state directories of all processes lie, one each: PID-START."""
    return host.run / "libvirt"


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
