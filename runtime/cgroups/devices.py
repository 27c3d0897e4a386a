"""Which device nodes a group may make, read and write: rules, and what cgroup v1's controller is told of them.

A rule list is read as the OCI specification says: everything is denied to begin with, and of the rules that
match an access the last one decides, for each of its letters. v1 knows a default and exceptions only, which
cannot say everything; what it cannot is refused. The same rules for v2 become a program: `filter`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product

from runtime.cgroups.resources import DeviceRule
from runtime.errors import TareError, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final

ACCESS: Final = "rwm"
TYPES: Final = "bc"

Cell = tuple[str, int | None, int | None]
"""Type b or c, major and minor number; None stands for all numbers that no rule names."""


def _usual() -> Iterator[DeviceRule]:
    yield DeviceRule(allow=False, access=ACCESS)
    yield DeviceRule(allow=True, type="c", access="m")
    yield DeviceRule(allow=True, type="b", access="m")
    for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (136, None)):
        yield DeviceRule(allow=True, type="c", major=major, minor=minor, access=ACCESS)


USUAL: Final[tuple[DeviceRule, ...]] = tuple(_usual())
"""What a container may open: null, zero, full, random, urandom, tty, console, ptmx, its terminals. All may be made."""


def check_rules(rules: Sequence[DeviceRule]) -> None:
    """Refuse what is no rule. Raises UsageError naming it."""
    for index, rule in enumerate(rules):
        name = f"limit devices[{index}]"
        if rule.type not in (None, "a", "b", "c", "u", "p"):
            raise UsageError(name, f"{rule.type!r} is no type of device", "use a, b or c")
        if set(rule.access or ACCESS) - set(ACCESS):
            raise UsageError(name, f"{rule.access!r} is no access", "use letters of rwm")
        if any(number is not None and number >= 1 << 32 for number in (rule.major, rule.minor)):
            raise UsageError(name, "a device number has 32 bits", "correct it")


def numbers(rule: DeviceRule) -> tuple[int | None, int | None]:
    """Major and minor of a rule; -1 is one more way to write "any"."""
    return tuple(None if number is None or number < 0 else number for number in (rule.major, rule.minor))  # type: ignore[return-value]


def types(rule: DeviceRule) -> str:
    """The types that a rule is about. u is an unbuffered c; p is no device, and nothing controls pipes."""
    return {None: TYPES, "a": TYPES, "b": "b", "c": "c", "u": "c"}.get(rule.type, "")


def allowed(rules: Sequence[DeviceRule], cell: Cell) -> str:
    """The letters of access that `rules` grant to a device (or to a cell of devices), in the order of ACCESS."""
    kind, major, minor = cell
    granted: set[str] = set()
    for rule in rules:
        wanted_major, wanted_minor = numbers(rule)
        if kind in types(rule) and wanted_major in (None, major) and wanted_minor in (None, minor):
            letters = set(rule.access or ACCESS)
            granted = granted | letters if rule.allow else granted - letters
    return "".join(letter for letter in ACCESS if letter in granted)


@lru_cache(maxsize=64)
def v1_lists(rules: tuple[DeviceRule, ...]) -> tuple[bool, tuple[str, ...]]:
    """What to write for v1: whether all is allowed to begin with, and then the exceptions, `c 1:3 rwm`.

    Raises TareError when a default with exceptions cannot say what `rules` do.
    """
    check_rules(rules)
    majors = sorted({major for rule in rules if (major := numbers(rule)[0]) is not None})
    minors = sorted({minor for rule in rules if (minor := numbers(rule)[1]) is not None})
    cells = {cell: allowed(rules, cell) for cell in product(TYPES, (None, *majors), (None, *minors))}
    unnamed_are_allowed = all(cells[kind, None, None] == ACCESS for kind in TYPES)
    for default in (unnamed_are_allowed, not unnamed_are_allowed):
        exceptions = {cell: _without(letters) if default else letters for cell, letters in cells.items()}
        if _covers_itself(exceptions):
            return default, tuple(_text(cell, letters) for cell, letters in _narrowest(exceptions))
    raise TareError(
        "limit devices",
        "cgroup v1 cannot take back for some numbers what it gave for all",
        "name the devices that are allowed",
    )


def _without(letters: str) -> str:
    return "".join(letter for letter in ACCESS if letter not in letters)


def _wider(cell: Cell) -> Iterator[Cell]:
    """The cells whose exceptions v1 applies to `cell` too, as their None is written `*`."""
    kind, major, minor = cell
    yield from {(kind, None, minor), (kind, major, None), (kind, None, None)} - {cell}


def _covers_itself(exceptions: dict[Cell, str]) -> bool:
    return all(set(exceptions[wider]) <= set(letters) for cell, letters in exceptions.items() for wider in _wider(cell))


def _narrowest(exceptions: dict[Cell, str]) -> Iterator[tuple[Cell, str]]:
    """Without those that a wider one says already."""
    for cell, letters in exceptions.items():
        if letters and not any(exceptions[wider] == letters for wider in _wider(cell)):
            yield cell, letters


def _text(cell: Cell, letters: str) -> str:
    kind, major, minor = cell
    return f"{kind} {'*' if major is None else major}:{'*' if minor is None else minor} {letters}"


def v1_shown(rules: tuple[DeviceRule, ...]) -> str:
    """What `devices.list` shows for `rules`, its lines sorted and joined by commas."""
    default, exceptions = v1_lists(rules)
    # With a default of allowed the kernel lists no exceptions.
    return "a *:* rwm" if default else ",".join(sorted(exceptions))


def v1_sorted(text: str) -> str:
    """The text of `devices.list` in the form of `v1_shown`."""
    return ",".join(sorted(text.splitlines()))
