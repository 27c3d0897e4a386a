"""Writes a run's journal so that a crash loses at most the line being written, and reopens it to go on.

Each line is one write to a file opened for appending, then an fsync; a lock keeps a second process
out. What a line says is `harness.results`'s, how it is read back too.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from pathlib import Path
from typing import Any, Self

from harness.results import JOURNAL, Cell, Line, Run, RunHeader, to_json
from runtime.errors import TareError


class JournalError(TareError):
    """The journal cannot be written, or not by this run."""


class Journal:
    """The open journal of one run; a context manager. Made by `create` or `resume`."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, directory: Path, header: RunHeader) -> Self:
        """Begin a run in `directory` (made if absent). Raises JournalError if one already lies there."""
        path = directory / JOURNAL
        try:
            directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        except OSError as error:
            do = f"continue it with --resume {directory}" if error.errno == errno.EEXIST else "choose another --out"
            raise JournalError(f"journal {path}", error.strerror or str(error), do) from error
        journal = cls(path, fd)
        journal._lock()
        journal.append(header)
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)
        return journal

    @classmethod
    def resume(cls, directory: Path) -> tuple[Self, Run]:
        """Reopen the journal in `directory`, cut off a torn last line, and return it with what it holds.

        Raises ResultsError for a journal that cannot be read, JournalError for one in use.
        """
        path = directory / JOURNAL
        try:
            fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise JournalError(f"journal {path}", error.strerror or str(error), "make it writable") from error
        journal = cls(path, fd)
        journal._lock()
        try:
            run = Run.load(directory)  # under the lock: whoever held it until now may have gone on with the run
            _cut_torn_line(fd)
        except BaseException:
            journal.close()
            raise
        return journal, run

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise JournalError(
                f"journal {self.path}", "another process is writing it", "wait for it, or end it"
            ) from error

    def append(self, line: Line) -> None:
        """Write `line` and wait until it is on the disk.

        Raises JournalError if that fails; the journal then ends with the last whole line, as before.
        """
        data = json.dumps(to_json(line), separators=(",", ":"), allow_nan=False).encode() + b"\n"
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._fd)
        except OSError as error:
            os.ftruncate(self._fd, size)
            raise JournalError(
                f"journal {self.path}",
                f"could not be written: {error.strerror}",
                f"free some space, then go on with --resume {self.path.parent}",
            ) from error

    def close(self) -> None:
        """Close the file and give up the lock."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _cut_torn_line(fd: int) -> None:
    size = os.fstat(fd).st_size
    step = 1 << 16
    end = size
    while end > 0:
        start = max(0, end - step)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        os.ftruncate(fd, end)
        os.fsync(fd)


def done(run: Run) -> set[tuple[Cell, int]]:
    """Every (cell, block) that already has its record."""
    return {(record.cell, record.block) for record in run.records}


def check_same(run: Run, *, fingerprint: str, settings: dict[str, Any]) -> None:
    """Refuse to go on with `run` on another host or with a profile that means something else by now.

    `settings` is the profile as this Tare knows it. Raises JournalError naming the difference.
    """
    header = run.header
    if header.fingerprint != fingerprint:
        raise JournalError(
            f"run {run.directory}",
            f"measured on another host (fingerprint {header.fingerprint[:8]}, here {fingerprint[:8]})",
            "resume it there, or start a new run here",
        )
    if header.settings != json.loads(json.dumps(settings)):
        raise JournalError(
            f"run {run.directory}",
            f"profile {header.profile} has other settings in this version of Tare",
            "resume it with the version that began it, or start a new run",
        )
