"""Settings of the host that are changed for a while and put back, also after a crash.

What is about to change is noted durably before the first change; the note is locked while its owner runs,
and whoever finds it unlocked puts back what it says. Which settings, and why, is the caller's business
(`harness.tune`).
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from runtime.command import run as run_command
from runtime.errors import TareError
from runtime.ledger import boot_id

NOTE = "tuning.json"
SWAP = "swap"
_SWAP_S = 600.0  # what lies in swap is read back page by page


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One setting, `before` and `during`.

    `path` is the kernel's file. Of kind SWAP it is a swap area's device or file, `before` its priority.
    """

    name: str
    path: str
    before: str
    during: str
    kind: str = "file"

    def __str__(self) -> str:
        return f"{self.name}: {self.before} → {self.during}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """What a note says: the changes in force, and whether their owner still runs."""

    changes: tuple[Change, ...]
    live: bool


def reading(path: Path) -> str:
    """The setting as it is: of a choice among several (`always [madvise] never`) the one chosen."""
    text = path.read_text().strip()
    marked = re.search(r"\[(\S+)\]", text)
    return marked.group(1) if marked else text


@contextmanager
def changed(
    run: Path, changes: Sequence[Change], *, proc: Path = Path("/proc"), sys: Path = Path("/sys")
) -> Iterator[None]:
    """Make `changes` for the length of the block and put them back, however it ends; the note lies below `run`.

    Raises TareError, everything put back, when one cannot be made, when another process has settings of this
    host changed, or when what a killed one changed is not put back yet.
    """
    with _only_one(sys):
        if (run / NOTE).exists():
            raise TareError("host settings", "what a killed run changed is not put back", "tare clean")
        lock = _write_note(run, changes, boot_id(proc))
        try:
            for change in changes:
                _make(change)
            yield
        finally:
            failed = _put_back(run, changes, proc).failed
            os.close(lock)
        if failed:
            raise TareError("host settings", f"not put back: {'; '.join(failed)}", "try again with: tare clean")


def note(run: Path) -> Note | None:
    """What is changed now, or None. Raises TareError for a note that cannot be read."""
    path = run / NOTE
    try:
        with path.open("rb") as file:
            raw = json.loads(file.read())
            live = not _lock(file.fileno(), fcntl.LOCK_SH)
        return Note(changes=tuple(Change(**each) for each in raw["changes"]), live=live)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        do = "put the settings back by hand and remove it"
        raise TareError(f"note {path}", f"cannot be read: {error}", do) from error


@dataclass(frozen=True, slots=True)
class PutBack:
    """One line for each setting that was put back, was left to whoever changed it since, or resisted."""

    done: list[str]
    left: list[str]
    failed: list[str]


def put_back(run: Path, *, proc: Path = Path("/proc")) -> PutBack:
    """Put back what a killed owner changed; nothing where there is no note or its owner runs."""
    found = note(run)
    if found is None or found.live:
        return PutBack([], [], [])
    same_boot = json.loads((run / NOTE).read_text()).get("boot") == boot_id(proc)
    return _put_back(run, found.changes if same_boot else (), proc)  # a reboot has put everything back


def _put_back(run: Path, changes: Sequence[Change], proc: Path) -> PutBack:
    result = PutBack([], [], [])
    for change in reversed(changes):
        try:
            present = _present(change, proc)
            if present == change.during:
                _restore(change)
                result.done.append(f"{change.name}: {change.before}")
            elif present != change.before:
                result.left.append(f"{change.name}: {present} by now, was {change.before}")
        except (OSError, TareError) as error:
            result.failed.append(f"{change.name}: {error}")
    if not result.failed:
        for name in (NOTE, f".{NOTE}"):
            (run / name).unlink(missing_ok=True)
    return result


def _present(change: Change, proc: Path) -> str:
    if change.kind != SWAP:
        return reading(Path(change.path))
    return change.before if change.path in _areas(proc) else change.during


def swap_areas(proc: Path = Path("/proc")) -> list[Change]:
    """What would turn swapping off: a change for each area in use."""
    return [
        Change(name=f"swap {path}", path=path, before=priority, during="off", kind=SWAP)
        for path, priority in _areas(proc).items()
    ]


def _areas(proc: Path) -> dict[str, str]:
    with suppress(OSError):
        rows = [line.split() for line in (proc / "swaps").read_text().splitlines()[1:]]
        return {row[0].replace("\\040", " "): row[-1] for row in rows if row}
    return {}


def _make(change: Change) -> None:
    if change.kind == SWAP:
        run_command(["swapoff", change.path], timeout_s=_SWAP_S)
        return
    path = Path(change.path)
    try:
        path.write_text(change.during)
        present = reading(path)
    except OSError as error:
        raise TareError(f"setting {change.name}", f"{path}: {error.strerror}", "leave out --tune") from error
    if present != change.during:
        raise TareError(f"setting {change.name}", f"{path} stays at {present}", "leave out --tune")


def _restore(change: Change) -> None:
    if change.kind != SWAP:
        Path(change.path).write_text(change.before)
        return
    own = [] if change.before.startswith("-") else ["--priority", change.before]  # the kernel draws negative ones
    run_command(["swapon", *own, change.path], timeout_s=_SWAP_S)


def _write_note(run: Path, changes: Sequence[Change], boot: str) -> int:
    """Put the note on the disk, locked; returns the descriptor that holds the lock."""
    path, temporary = run / NOTE, run / f".{NOTE}"
    content = json.dumps({"boot": boot, "changes": [asdict(each) for each in changes]}, indent=1)
    try:
        run.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, fcntl.LOCK_EX)
            with open(descriptor, "w", closefd=False) as file:
                file.write(content)
            os.fsync(descriptor)
            temporary.replace(path)
            directory = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException:
            os.close(descriptor)
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise TareError(f"note {path}", error.strerror or str(error), "free some space") from error
    return descriptor


def _lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _only_one(sys: Path) -> Iterator[None]:
    """Hold the host's lock: settings are the host's, whatever the state root. It dies with its process."""
    descriptor = os.open(sys / "kernel", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            raise TareError("host settings", "another process has them changed", "wait for it, or end it")
        yield
    finally:
        os.close(descriptor)
