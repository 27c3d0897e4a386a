"""One control: a file, what is written to it, and what it shows when that is in force.

The two versions describe their limits as controls (`v1_controls`, `v2_controls`); writing them, in an order
that works whatever was there before, undoing it, and reading them back is the same for both and is here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from runtime.cgroups.files import write
from runtime.errors import TareError
from runtime.instance import LimitReading
from runtime.record import ordered_record


@ordered_record
class Control:
    """Limit `name` as text for the file `path`: `value` to write, `shown` to read when it holds.

    `parse` picks out of the file's text what `shown` is compared with. `undo` makes of the text before the
    write the value that brings it back; None where nothing can.
    """

    name: str
    path: Path
    value: str
    shown: str
    parse: Callable[[str], str] = str.strip
    undo: Callable[[str], str] | None = str.strip

    def reading(self) -> LimitReading:
        """The file read back, compared with what was asked."""
        try:
            read = self.parse(self.path.read_text())
        except OSError as error:
            read = error.strerror or str(error)
        return LimitReading(
            name=self.name, asked=self.shown, read=read, source=str(self.path), holds=read == self.shown
        )


Batch = tuple[Control, ...]
"""Controls that bound one another (memory, and memory with swap), so that their order depends on what is there."""


def plain(name: str, path: Path, value: str) -> Control:
    """A control whose file shows what was written."""
    return Control(name, path, value, value)


def demand(batches: Iterable[Batch]) -> None:
    """Refuse, before anything is written, the first control whose file the host lacks. Raises TareError naming it."""
    for control in (control for batch in batches for control in batch):
        if not present(control.path):
            raise lacking(control.name, control.path.name)


def present(path: Path) -> bool:
    """Whether the group of control file `path` has it; of a group not yet made, whether the next above that is has.

    That may be the root of the hierarchy, which lacks some that every other group has.
    """
    if path.exists():
        return True
    above = path.parent
    if above.is_dir():
        return False
    while not above.is_dir():
        above = above.parent
    if above.joinpath(path.name).exists():
        return True
    if above.joinpath("release_agent").exists():  # of v1
        return path.name == "pids.max" or ".bfq." in path.name
    return above.joinpath("cgroup.controllers").exists() and not above.joinpath("cgroup.events").exists()


def lacking(name: str, file: str) -> TareError:
    """Why limit `name` cannot be set: the kernel offers no such file."""
    return TareError(f"limit {name}", f"this host has no {file}", "leave it out, or enable it")


def put(batches: Iterable[Batch]) -> None:
    """Write all controls. Raises TareError naming the first that the host lacks or rejects."""
    for batch in batches:
        _put(batch)


def replace_all(batches: Iterable[Batch]) -> None:
    """Write all controls of a group in use, or, when one fails, none: what was there before comes back."""
    before: list[tuple[Control, str]] = []
    try:
        for batch in batches:
            before += [(control, _text(control.path)) for control in batch]
            _put(batch)
    except TareError:
        _undo(before)
        raise


def _undo(before: list[tuple[Control, str]]) -> None:
    """Write the old values back: twice, the second time for one that had to wait for another."""
    for control, text in (*reversed(before), *before):
        if control.undo is not None:
            with suppress(OSError):
                write(control.path, control.undo(text))


def _put(batch: Batch) -> None:
    try:
        for control in batch:
            _set(control)
    except TareError as error:
        cause = error.__cause__
        if len(batch) == 1 or not isinstance(cause, OSError) or cause.errno not in (errno.EINVAL, errno.EBUSY):
            raise
        # Both bounds grow, or both shrink: only one order keeps the kernel's condition all the way.
        try:
            for control in reversed(batch):
                _set(control)
        except TareError:
            raise error from cause


def _set(control: Control) -> None:
    try:
        write(control.path, control.value)
    except FileNotFoundError as error:
        raise lacking(control.name, control.path.name) from error
    except OSError as error:
        raise TareError(
            f"limit {control.name}", f"{control.path}: {error.strerror}", "choose a value this host accepts"
        ) from error


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


def line_of_device(device: str | None) -> Callable[[str], str]:
    """A parser that finds what a per-device control file says about `device`; empty if nothing."""

    def parse(text: str) -> str:
        rows = (line.split(None, 1) for line in text.splitlines())
        return next((row[1].strip() for row in rows if len(row) == 2 and row[0] == device), "")

    return parse


def word_of_device(device: str, key: str) -> Callable[[str], str]:
    """A parser that finds `key=…` in the line of `device`; empty if there is none."""
    of_device = line_of_device(device)
    return lambda text: next((word for word in of_device(text).split() if word.startswith(f"{key}=")), "")


def first_line(text: str) -> str:
    """The first line: the default of a file that then lists devices."""
    return next(iter(text.splitlines()), "").strip()


def scheduler(device: str, sys: Path = Path("/sys")) -> str:
    """The I/O scheduler of `MAJOR:MINOR`, the one in brackets; empty when the disk tells none."""
    try:
        text = (sys / f"dev/block/{device}/queue/scheduler").read_text()
    except OSError:
        return ""
    return text.partition("[")[2].partition("]")[0]


def schedulers(sys: Path = Path("/sys")) -> Iterator[str]:
    """The I/O scheduler of every disk of the host."""
    for path in sys.glob("block/*/dev"):
        with suppress(OSError):
            yield scheduler(path.read_text().strip(), sys)


def refuse_weight(name: str, device: str, found: str) -> TareError:
    """Why an I/O weight cannot be enforced: its file exists in every group, whether or not anything reads it."""
    return TareError(
        f"limit {name}",
        f"the scheduler of disk {device} is {found or 'unknown'}, which obeys no weights",
        f"leave it out, or: echo bfq > /sys/dev/block/{device}/queue/scheduler",
    )


class Names:
    """What a limit is called in messages and readings: as whoever asked wrote it."""

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self._names = names or {}

    def __call__(self, name: str) -> str:
        """The caller's word for control `name`."""
        return self._names.get(name, name)

    def refuse(self, name: str, why: str, do: str = "leave it out") -> TareError:
        """A refusal of limit `name`."""
        return TareError(f"limit {self(name)}", why, do)
