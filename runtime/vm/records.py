"""The user's guests on disk: one directory each, readable by everybody, changed by their keeper alone.

A guest is what its record says as long as its keeper lives; one whose keeper is dead and wrote no end is `lost`, and
what is left of it is `tare clean`'s to remove. Of a guest that has ended, the record and what it printed remain.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from runtime.driver import Host
from runtime.errors import TareError, UsageError
from runtime.ledger import Ledger, boot_id, make_directory, process_start

CONSOLE = "console.log"
OUTPUT = "output.log"
_RECORD = "guest.json"
RUNNING, PAUSED, EXITED, LOST = "running", "paused", "exited", "lost"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One guest. Times are UTC, seconds since 1970; `keeper` is (pid, start, boot id) of the process that owns it."""

    id: str
    name: str
    image: str
    driver: str
    argv: tuple[str, ...] = ()
    accelerator: str = ""
    accelerator_reason: str = ""
    status: str = RUNNING
    exit_code: int | None = None
    error: str = ""
    created_s: float = 0.0
    ended_s: float | None = None
    address: str = ""
    ports: tuple[tuple[str, int, int, str], ...] = ()
    """(host address or "" for all, host port, port inside, protocol)"""
    memory_bytes: int = 0
    vcpus: int = 0
    auto_remove: bool = False
    keeper: tuple[int, int, str] = (0, 0, "")
    details: dict[str, Any] = field(default_factory=dict)
    """What only `inspect` shows."""

    @property
    def running(self) -> bool:
        """Whether there is a QEMU of it."""
        return self.status in (RUNNING, PAUSED)


class Records:
    """All of one state root. Construction touches nothing."""

    def __init__(self, host: Host, proc: Path = Path("/proc")) -> None:
        self.base = host.root / "guests"
        self._run = host.run
        self._proc = proc

    def all(self) -> list[Record]:
        """Every guest, the newest first."""
        found = list(self._read())
        return sorted(found, key=lambda record: record.created_s, reverse=True)

    def find(self, text: str) -> Record:
        """By name, id or the beginning of an id. Raises TareError when there is none, UsageError when several."""
        records = self.all()
        exact = [record for record in records if text in (record.name, record.id)]
        begun = [record for record in records if text and record.id.removeprefix("tare-").startswith(text)]
        chosen = exact or begun
        if not chosen:
            raise TareError(f"virtual machine {text}", "no such virtual machine", "see: tare vm ls -a")
        if len(chosen) > 1:
            raise UsageError(f"virtual machine {text}", "several ids begin like this", "give more of it")
        return chosen[0]

    def directory(self, record: Record) -> Path:
        """Where its record and what it printed lie."""
        return self.base / record.id

    def write(self, record: Record) -> None:
        """Replace the record in one step, or leave what was there."""
        directory = self.directory(record)
        make_directory(directory)
        partial = directory / f".{_RECORD}"
        try:
            partial.write_text(json.dumps(asdict(record)))
            partial.rename(directory / _RECORD)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
                directory.rmdir()
            raise

    def remove(self, record: Record) -> None:
        """Forget it: the record first, so that a torn removal leaves no guest."""
        with suppress(FileNotFoundError):
            (self.directory(record) / _RECORD).unlink()
        shutil.rmtree(self.directory(record), ignore_errors=True)

    def sweep(self) -> list[str]:
        """Remove the lost ones, and directories without a record; says what went."""
        removed = []
        for record in self.all():
            if record.status == LOST:
                self.remove(record)
                removed.append(f"record of virtual machine {record.name}, whose keeper is dead")
        living = {instance_id for instance_id, _ in Ledger(self._run, self._proc).live()}
        for directory in sorted(self.base.glob("tare-*")):
            if directory.name not in living and not (directory / _RECORD).exists():
                shutil.rmtree(directory, ignore_errors=True)
                removed.append(str(directory))
        return removed

    def _read(self) -> Iterator[Record]:
        for path in self.base.glob(f"tare-*/{_RECORD}"):
            try:
                words = json.loads(path.read_text())
                record = Record(**{item.name: _tuples(words[item.name]) for item in fields(Record)})
            except (OSError, ValueError, KeyError, TypeError):
                continue  # removed meanwhile, or of another version
            yield replace(record, status=LOST) if record.running and not self._kept(record) else record

    def _kept(self, record: Record) -> bool:
        pid, start, boot = record.keeper
        return boot == boot_id(self._proc) and process_start(pid, self._proc) == start


def own_keeper() -> tuple[int, int, str]:
    """This process as a keeper."""
    return os.getpid(), process_start(os.getpid()) or 0, boot_id()


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
