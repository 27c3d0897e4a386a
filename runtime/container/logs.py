# ruff: noqa: PTH104, PTH108, PTH116, PTH208
# Paths are strings here: the keeper is lean.
"""What a container printed: bounded files of JSON lines `{"time", "stream", "log"}`, much as Docker keeps them.

Bytes that are not UTF-8 are kept as surrogate escapes. `LogWriter` is the keeper's and lean; `read` and `follow`
are for everybody else. The newest file is `output.jsonl`, older ones carry a number.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

NAME: Final = "output.jsonl"
LINE_BYTES: Final = 16 << 10
"""A longer line is cut into entries of this size, of which only the last ends with a newline."""
STREAMS: Final = {1: "stdout", 2: "stderr"}


class Entry(NamedTuple):
    """A line, or a piece of one when it does not end with a newline."""

    time: str
    stream: str
    data: bytes


class LogWriter:
    """The log of one container; `directory` exists. Disk trouble ends the log, never the container."""

    def __init__(self, directory: str, max_bytes: int, files: int) -> None:
        self._path = f"{directory}/{NAME}"
        self._max_bytes, self._files = max_bytes, files
        self._pending = dict.fromkeys(STREAMS, b"")
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def write(self, stream: int, data: bytes) -> None:
        """Keep what came on `stream` (1 or 2), line by line; an unfinished line waits for its end."""
        lines = (self._pending[stream] + data).split(b"\n")
        rest = lines.pop()
        stamp = now()
        texts = [_entry(stamp, stream, line + b"\n") for line in lines if len(line) < LINE_BYTES]
        if len(texts) < len(lines):
            texts = [text for line in lines for text in _pieces(stamp, stream, line + b"\n")]
        while len(rest) >= LINE_BYTES:
            texts.append(_entry(stamp, stream, rest[:LINE_BYTES]))
            rest = rest[LINE_BYTES:]
        self._pending[stream] = rest
        self._append(texts)

    def finish(self) -> None:
        """Write unfinished lines as they are, and close."""
        for stream, rest in self._pending.items():
            if rest:
                self._append([_entry(now(), stream, rest)])
        self._close()

    def _append(self, texts: list[str]) -> None:
        if not texts or self._fd < 0:
            return
        try:
            start, size = 0, self._size
            for at, text in enumerate(texts):
                if size and size + len(text) > self._max_bytes:
                    self._put("".join(texts[start:at]))
                    self._rotate()
                    start, size = at, 0
                size += len(text)
            self._put("".join(texts[start:]))
        except OSError:
            self._close()

    def _put(self, text: str) -> None:
        data = text.encode()
        self._size += len(data)
        while data:
            data = data[os.write(self._fd, data) :]

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd, self._size = -1, 0
        for number in range(self._files - 2, -1, -1):
            older = f"{self._path}.{number}" if number else self._path
            if os.path.lexists(older):
                os.rename(older, f"{self._path}.{number + 1}")
        if self._files == 1:
            os.unlink(self._path)
        self._fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def now() -> str:
    """The time, UTC, ISO 8601 with nanoseconds, as Docker writes it."""
    seconds, fraction = divmod(time.time_ns(), 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


def read(directory: str, *, tail: int | None = None, since: str = "", until: str = "") -> Iterator[Entry]:
    """The entries kept in `directory`, oldest first: the last `tail` lines, from `since` to `until` (ISO, UTC)."""
    entries = (entry for path in _files(directory) for entry in _entries(path))
    wanted = (entry for entry in entries if entry.time >= since and (not until or entry.time <= until))
    return wanted if tail is None else _last_lines(wanted, tail)


def follow(
    directory: str, changed: Callable[[], bool], *, tail: int | None = None, since: str = "", until: str = ""
) -> Iterator[Entry]:
    """As `read`, and then what is added, whenever `changed()`, which waits, says True; until it says False.

    A rotation in between loses nothing as long as the reader is not slower by a whole set of files.
    """
    path = f"{directory}/{NAME}"
    try:
        current = open(path, "rb")  # noqa: SIM115, PTH123 - held across rotations
    except FileNotFoundError:
        return
    try:
        position = os.fstat(current.fileno()).st_size
        yield from _before(directory, current.fileno(), position, tail=tail, since=since, until=until)
        current.seek(position)
        more = True
        while more:
            more = changed()
            while True:
                for row in _whole_lines(current):
                    entry = _parsed(row)
                    if entry is not None and entry.time >= since and (not until or entry.time <= until):
                        yield entry
                fresh = _next_file(directory, current.fileno())
                if fresh is None:
                    break
                current.close()
                current = open(fresh, "rb")  # noqa: SIM115, PTH123
    finally:
        current.close()


def _before(directory: str, descriptor: int, size: int, *, tail: int | None, since: str, until: str) -> Iterator[Entry]:
    """What was there when following began: the older files, and the first `size` bytes of the open one."""
    inode = os.fstat(descriptor).st_ino

    def entries() -> Iterator[Entry]:
        for path in _files(directory):
            try:
                if os.stat(path).st_ino == inode:
                    break
            except FileNotFoundError:
                continue
            yield from _entries(path)
        with open(f"/proc/self/fd/{descriptor}", "rb") as file:  # noqa: PTH123
            for row in file.read(size).splitlines():
                entry = _parsed(row)
                if entry is not None:
                    yield entry

    wanted = (entry for entry in entries() if entry.time >= since and (not until or entry.time <= until))
    yield from wanted if tail is None else _last_lines(wanted, tail)


def _next_file(directory: str, descriptor: int) -> str | None:
    """The file after the open one, None while that is the newest."""
    inode = os.fstat(descriptor).st_ino
    newer = None
    for path in reversed(_files(directory)):
        try:
            if os.stat(path).st_ino == inode:
                return newer
        except FileNotFoundError:
            continue
        newer = path
    return newer


def _whole_lines(file: object) -> Iterator[bytes]:
    """Complete lines from where the file is read; an incomplete one is left for the next time."""
    while True:
        position = file.tell()  # type: ignore[attr-defined]
        row = file.readline()  # type: ignore[attr-defined]
        if not row.endswith(b"\n"):
            file.seek(position)  # type: ignore[attr-defined]
            return
        yield row


def _last_lines(entries: Iterator[Entry], count: int) -> Iterator[Entry]:
    """The entries of the last `count` lines; pieces of a long line count once."""
    if count <= 0:
        return iter(())
    kept: deque[list[Entry]] = deque(maxlen=count)
    whole = True
    for entry in entries:
        if whole or not kept:
            kept.append([])
        kept[-1].append(entry)
        whole = entry.data.endswith(b"\n")
    return (entry for line in kept for entry in line)


def _files(directory: str) -> list[str]:
    """The log's files, oldest first."""
    try:
        names = [name for name in os.listdir(directory) if name == NAME or name.startswith(f"{NAME}.")]
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in sorted(names, key=lambda name: int(name[len(NAME) + 1 :] or 0))][::-1]


def _entries(path: str) -> Iterator[Entry]:
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            for row in file:
                entry = _parsed(row)
                if entry is not None:
                    yield entry
    except FileNotFoundError:  # rotated away meanwhile
        return


def _parsed(row: bytes) -> Entry | None:
    """An entry; None for a line that a crash has torn."""
    try:
        words = json.loads(row)
        return Entry(words["time"], words["stream"], words["log"].encode(errors="surrogateescape"))
    except (ValueError, KeyError, TypeError):
        return None


def _pieces(stamp: str, stream: int, line: bytes) -> Iterator[str]:
    for start in range(0, len(line), LINE_BYTES):
        yield _entry(stamp, stream, line[start : start + LINE_BYTES])


def _entry(stamp: str, stream: int, data: bytes) -> str:
    text = json.dumps(data.decode(errors="surrogateescape"))
    return f'{{"time": "{stamp}", "stream": "{STREAMS[stream]}", "log": {text}}}\n'
