"""Saved states of guests: how libvirt writes one, where they are kept, and who may remove which.

A state is found by a key over all that it depends on, so a stale one is never used: it is not found. Not how
a guest comes to be saved, nor what a restored one must be told.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import TareError

KEPT = 4
"""So many saved states stay; each holds a guest's memory and the disk that belongs to it."""
_MAGIC = b"LibvirtQemudSave"  # a file that libvirt has not finished says LibvirtQemudPart
_VERSION = 2
_RUNNING = 1
_HEADER = struct.Struct("=16s5I56x")  # magic, version, length of what follows, running, compression, cookie
_HALF = ".half"
_STATE, _DISK, _RECORD = "state", "disk.qcow2", "record.json"


def header(xml: str) -> bytes:
    """What stands before QEMU's own bytes in a file that libvirt is to restore as the domain `xml`."""
    data = xml.encode() + b"\0"
    return _HEADER.pack(_MAGIC, _VERSION, len(data), _RUNNING, 0, 0) + data


def state_offset(head: bytes) -> int:
    """Where QEMU's own bytes begin in a file that libvirt saved and that begins with `head`.

    Raises TareError for what no finished, uncompressed save of a known version begins with.
    """
    if len(head) < _HEADER.size:
        raise TareError("saved state", f"{len(head)} bytes, less than its header", "it is to be made anew")
    magic, version, length, _, compression, _ = _HEADER.unpack_from(head)
    if (magic, version, compression) != (_MAGIC, _VERSION, 0):
        raise TareError("saved state", "libvirt's header is not one of a finished save", "it is to be made anew")
    return _HEADER.size + int(length)


def key(parts: Mapping[str, str]) -> str:
    """The name of the state that depends on `parts` and nothing else, whatever their order."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Saved:
    """One saved state in its `directory`: the memory, and the disk as the guest had left it."""

    directory: Path
    size_bytes: int
    sha256: str
    offset: int

    @property
    def state(self) -> Path:
        """What libvirt wrote: its header, then QEMU's bytes from `offset` on."""
        return self.directory / _STATE

    @property
    def disk(self) -> Path:
        """The overlay that the guest wrote before it was saved; it lies below every restored guest's own."""
        return self.directory / _DISK

    def require_intact(self) -> None:
        """Raise TareError, by name, unless the state is what was saved."""
        what = f"saved state {self.directory.name}"
        try:
            size = self.state.stat().st_size
            found = _sha256(self.state) if size == self.size_bytes else ""
            there = self.disk.is_file()
        except OSError as error:
            raise TareError(what, str(error), "it is to be made anew") from error
        if not there or found != self.sha256:
            raise TareError(what, "corrupt: not what was saved", "it is to be made anew")


class SavedStates:
    """The saved states below a state directory; any number of processes may use and make them at once."""

    def __init__(self, root: Path) -> None:
        self._home = root / "cache/saved"

    @contextmanager
    def using(self, name: str) -> Iterator[Saved | None]:
        """The state called `name`, which nobody removes within; None when it is not there."""
        directory = self._home / name
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            yield None
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield _read(directory) if _is_open(directory, descriptor) else None
        finally:
            os.close(descriptor)

    def make(self, name: str, save: Callable[[Path, Path], None]) -> None:
        """Have `save` write a state and its disk to the two paths, unless another has made `name` meanwhile.

        One maker at a time. It is there whole or not at all; the oldest beyond KEPT go, if nobody uses them.
        """
        with self._making():
            final = self._home / name
            if final.exists():
                return
            half = self._home / (name + _HALF)
            half.mkdir(mode=0o700)
            try:
                save(half / _STATE, half / _DISK)
                (half / _RECORD).write_text(json.dumps(_describe(half / _STATE)))
                half.rename(final)
            except BaseException:
                shutil.rmtree(half, ignore_errors=True)
                raise
            for old in self._finished()[KEPT:]:
                self.remove(old.name)

    def remove(self, name: str) -> bool:
        """Remove a state; False when it is in use, or not there."""
        directory = self._home / name
        try:
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _is_open(directory, descriptor):
                return False
            shutil.rmtree(directory)
        except BlockingIOError:
            return False
        finally:
            os.close(descriptor)
        return True

    def half_written(self) -> list[str]:
        """What `sweep` would remove."""
        return [str(half) for half in sorted(self._home.glob(f"*{_HALF}"))]

    def sweep(self) -> list[str]:
        """Remove what makers left half written; nothing while one is at work."""
        if not self._home.exists():
            return []
        try:
            with self._making(wait=False) as swept:
                return swept
        except BlockingIOError:
            return []

    @contextmanager
    def _making(self, *, wait: bool = True) -> Iterator[list[str]]:
        """Be the only maker. What is half written then is a dead one's, and goes: its paths are yielded."""
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(self._home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            dead = sorted(self._home.glob(f"*{_HALF}"))
            for half in dead:
                shutil.rmtree(half)
            yield [str(half) for half in dead]
        finally:
            os.close(descriptor)

    def _finished(self) -> list[Path]:
        """Every whole state, the youngest first."""
        found = [path for path in self._home.iterdir() if path.is_dir() and path.suffix != _HALF]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _is_open(directory: Path, descriptor: int) -> bool:
    """Whether `directory` is what was opened, and not another that took its place before the lock was had."""
    return directory.exists() and os.path.samestat(directory.stat(), os.fstat(descriptor))


def _describe(state: Path) -> dict[str, object]:
    with state.open("rb") as file:
        offset = state_offset(file.read(_HEADER.size))
    size = state.stat().st_size
    if size <= offset:
        raise TareError("saved state", "it holds no memory", "it is to be made anew")
    return {"size_bytes": size, "sha256": _sha256(state), "offset": offset}


def _read(directory: Path) -> Saved:
    try:
        record = json.loads((directory / _RECORD).read_text())
        return Saved(directory, int(record["size_bytes"]), str(record["sha256"]), int(record["offset"]))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise TareError(
            f"saved state {directory.name}", "corrupt: its record cannot be read", "it is to be made anew"
        ) from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
