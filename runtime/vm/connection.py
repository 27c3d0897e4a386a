"""The way to libvirt: one connection for all VM drivers of this process, what it can do, its errors made readable.

By default QEMU is driven inside this process (`qemu:///embed`); another libvirt of this host is used where its URI is
given (see `uri`). libvirt is imported here and only when a connection is made.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from runtime.driver import Host
from runtime.errors import TareError
from runtime.ledger import make_directory, process_start
from runtime.vm import uri as uris
from runtime.vm.events import Events, Loop, Watch
from runtime.vm.faults import fault

_SOCKET_PATH_MAX = 107  # sun_path without its NUL, unix(7)
_MONITOR = "lib/qemu/domain-99999-tare-0123456789ab/monitor.sock"
_KEEP_ALIVE_S, _KEEP_ALIVE_COUNT = 5, 6  # a daemon that hangs is noticed after half a minute
_LOG_TAIL_BYTES = 600
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

_DATED = re.compile(r"\d{4}-\d\d-\d\d [\d:.]+\+\d{4}: ")  # how libvirt begins its own lines in QEMU's log

_lock = threading.Lock()
_open: Connection | None = None
_loop = Loop()


class Connection:
    """An open connection to libvirt; `libvirt` is the module, `handle` its virConnect. Use `connect()`."""

    def __init__(self, libvirt: Any, uri: str, embedded_root: Path | None) -> None:
        self.libvirt = libvirt
        self.uri = uris.shown(uri)
        self.users = 0
        self._embedded_root = embedded_root
        with self.explained(f"connection to {self.uri}", "start its daemon, or leave --connect out"):
            self.handle = libvirt.open(uri)
            if embedded_root is None:
                with suppress(libvirt.libvirtError):  # a connection without a daemon in between has none
                    self.handle.setKeepAlive(_KEEP_ALIVE_S, _KEEP_ALIVE_COUNT)
            self._events = Events(libvirt, self.handle)

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
            raise TareError(what, *fault(self.libvirt, error, do)) from error

    def facts(self) -> dict[str, str]:
        """The versions of libvirt and of the QEMU that it found, and what it thinks of this host."""
        with self.explained(f"connection to {self.uri}"):
            facts = {
                "libvirt": _version(self.handle.getLibVersion()),
                "uri": self.uri,
                "hypervisor": str(self.handle.getType()),
            }
            # Embedded, both would have libvirt ask the host's QEMU for its abilities, beside our own emulator.
            if not self.embedded:
                facts["libvirt's qemu"] = _version(self.handle.getVersion())
                model = _parsed(self.handle.getCapabilities()).findtext("host/cpu/model")
                facts |= {"host cpu model": model} if model else {}
        return facts

    def abilities(self, emulator: Path, accelerator: str) -> dict[str, str]:
        """What libvirt says of `emulator`: the full name of what `q35` means, the CPUs it takes.

        The first time libvirt asks the emulator for its abilities: some 8 s.
        """
        root = self._abilities(emulator, accelerator)
        modes = [mode.get("name", "") for mode in root.findall("cpu/mode") if mode.get("supported") == "yes"]
        model = root.findtext("cpu/mode[@name='host-model']/model")
        facts = {"machine type": root.findtext("machine") or "", "cpu modes": ", ".join(modes)}
        return facts | ({"host cpu model": model} if model else {})

    def machine_type(self, emulator: Path, accelerator: str) -> str:
        """The full name of what `q35` means; slow the first time, see `abilities`."""
        return self._abilities(emulator, accelerator).findtext("machine") or ""

    def _abilities(self, emulator: Path, accelerator: str) -> ET.Element:
        kind = "kvm" if accelerator == "kvm" else "qemu"
        with self.explained(f"emulator {emulator}", "install qemu-system-x86 with ./bootstrap"):
            return _parsed(self.handle.getDomainCapabilities(str(emulator), "x86_64", "q35", kind, 0))

    def security_models(self) -> tuple[str, ...]:
        """What a daemon would confine QEMU with (`dac`, `apparmor`, `selinux`); embedded, that is off."""
        if self.embedded:
            return ()
        with self.explained(f"connection to {self.uri}"):
            capabilities = _parsed(self.handle.getCapabilities())
        names = [model.text or "" for model in capabilities.findall("host/secmodel/model")]
        return tuple(name for name in names if name not in ("", "none"))

    def find(self, name: str) -> Any | None:
        """The domain called `name`, or None."""
        try:
            return self.handle.lookupByName(name)
        except self.libvirt.libvirtError as error:
            if error.get_error_code() == self.libvirt.VIR_ERR_NO_DOMAIN:
                return None
            raise TareError(f"domain {name}", *fault(self.libvirt, error)) from error

    def names(self) -> list[str]:
        """The names of all domains, running or not."""
        with self.explained("list of domains"):
            return [domain.name() for domain in self.handle.listAllDomains(0)]

    def watch(self, name: str, on_trouble: Callable[[str], None]) -> Watch:
        """Begin to listen to what libvirt reports of the domain `name`, which need not exist yet; see `Watch`."""
        return self._events.watch(name, on_trouble)

    def forget(self, name: str) -> None:
        """Listen no more, and remove the log that libvirt keeps of the domain, which is gone."""
        self._events.forget(name)
        with suppress(OSError):
            self._log(name).unlink(missing_ok=True)

    def last_words(self, name: str) -> str:
        """What QEMU said last on its stderr, as far as libvirt's log has it."""
        try:
            text = self._log(name).read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
        except OSError:
            return ""
        ours = ("LC_ALL=", "-", "XDG_", "HOME=", "char device redirected")  # the command line and what follows it
        killed = f"terminating on signal 15 from pid {os.getpid()} "  # embedded libvirt, at the guest's own wish
        lines = [line.strip() for line in text.splitlines()[-6:] if killed not in line]
        return " | ".join(line for line in lines if line and not line.startswith(ours) and not _DATED.match(line))

    def _log(self, name: str) -> Path:
        above = Path("/var/log/libvirt") if self._embedded_root is None else self._embedded_root / "log"
        return above / "qemu" / f"{name}.log"

    def alive(self) -> bool:
        """Whether the daemon, if there is one, still answers."""
        try:
            return bool(self.handle.isAlive())
        except self.libvirt.libvirtError:
            return False

    def release(self) -> None:
        """Give up one use; the last one closes."""
        global _open  # noqa: PLW0603 - libvirt's embedded driver exists once per process
        with _lock:
            self.users -= 1
            if self.users > 0:
                return
            if _open is self:
                _open = None
            try:
                with suppress(self.libvirt.libvirtError):  # of a daemon that has gone before
                    self._events.close()
                with suppress(self.libvirt.libvirtError):
                    self.handle.close()
            finally:
                _loop.let_go(self.libvirt)
                if self._embedded_root is not None:
                    remove_root(self._embedded_root)


def connect(host: Host) -> Connection:
    """This process's connection, opened at need; every call must be paired with `release()`.

    Raises TareError when libvirt cannot be imported or reached, UsageError for a URI of no use.
    """
    global _open  # noqa: PLW0603 - libvirt's embedded driver exists once per process
    with _lock:
        if _open is None or not _open.alive():
            uri = uris.chosen()
            libvirt = import_libvirt()
            root = _embedded_root(host) if uri == uris.EMBEDDED else None
            _loop.hold(libvirt)
            try:
                _open = Connection(libvirt, uri if root is None else f"{uri}?root={root}", root)
            except BaseException:
                _loop.let_go(libvirt)
                if root is not None:
                    remove_root(root)
                raise
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


def _embedded_root(host: Host) -> Path:
    """A state directory of this process's own, named by its pid and start, with the cache that all share."""
    root = embedded_roots(host) / f"{os.getpid()}-{process_start(os.getpid())}"
    longest = len(os.fsencode(root / _MONITOR))
    if longest > _SOCKET_PATH_MAX:
        why = f"sockets below {host.run} would have names of {longest} bytes"
        raise TareError("state directory", why, f"choose one at least {longest - _SOCKET_PATH_MAX} bytes shorter")
    cache = host.root / "cache/libvirt"
    cache.mkdir(parents=True, exist_ok=True, mode=0o700)
    make_directory(root / "etc")
    make_directory(root / "lib/qemu")  # libvirt makes it once per process, and close() removes it
    (root / "etc/qemu.conf").write_text(_QEMU_CONF)
    (root / "cache").unlink(missing_ok=True)
    (root / "cache").symlink_to(cache.resolve())
    return root


def embedded_roots(host: Host) -> Path:
    """Where the state directories of all processes lie, one each: PID-START."""
    return host.run / "libvirt"


def remove_root(root: Path) -> None:
    """Remove an embedded libvirt's state directory, and the one that holds them all if it was the last."""
    shutil.rmtree(root, ignore_errors=True)
    with suppress(OSError):
        root.parent.rmdir()


def _parsed(text: Any) -> ET.Element:
    return ET.fromstring(str(text))  # noqa: S314 - libvirt's own words


def _version(number: int) -> str:
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
