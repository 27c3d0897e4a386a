"""A plan's steps as one flat list of calls: what a child goes through, made by its parent, once for many children.

A child is a copy whose every page that it touches must be copied first, and to look at a step, its class and its
attributes touches a good many. Here are only a function of the C library and its arguments. What is more than that
stays a step.
"""

from __future__ import annotations

import marshal

from runtime.container.stepping import Bare, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import Any, TypeAlias

Entry: TypeAlias = "tuple[Callable[..., int] | None, Any]"
"""A call, or None and a step."""


def program(steps: Iterable[Step]) -> tuple[Entry, ...]:
    """The steps in their order."""
    entries = [entry for step in steps for entry in entries_of(step)]
    # Copied in one go, the arguments lie side by side, on few pages.
    arguments = marshal.dumps([given for function, given in entries if function is not None])
    copied = iter(marshal.loads(arguments))  # noqa: S302 - written a line above
    return tuple([(function, given if function is None else next(copied)) for function, given in entries])


def position(steps: Sequence[Step], at: int) -> int:
    """The index of the step whose entry stands at `at` in the program of `steps`; -1 before the first."""
    if at < 0:
        return -1
    for index, step in enumerate(steps):
        at -= len(entries_of(step))
        if at < 0:
            return index
    raise IndexError(at)


def entries_of(step: Step) -> tuple[Entry, ...]:
    """One step of one launch alone."""
    calls = step.calls() if isinstance(step, Bare) else ()
    return calls or ((None, step),)
