"""What every step of a child is: it can say what it does, and do it. The steps themselves are in `steps` and beside it.

Made and tested without root; carried out in order by `child`. Paths are bytes, ready for the kernel.
After `PivotRoot` an absolute path means the new root and a relative one the host's tree, which stays the
working directory, mounted over the root, until `LeaveHost`. What an image may have prepared is opened by `targets`
until then: no link in it can lead a mount out.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import Any, Protocol, TypeAlias
else:
    Protocol = object

Call: TypeAlias = "tuple[Callable[..., int], tuple[Any, ...]]"
"""A function of the C library, which answers -1 for a failure, and its arguments."""
JOINED = b"joined "
"""Begins a word to the parent: another child of its own is cloned. Its number follows, its pidfd comes with it."""


class Step(Protocol):
    """One thing to do. `describe()` says it in a line; `execute()` does it or raises OSError."""

    def describe(self) -> str:
        """What it does, in a line."""

    def execute(self) -> None:
        """Do it."""


class Context:
    """What a child knows beside its steps.

    `report` is the socket to its parent, `target` the process whose namespaces it may join (a pidfd or -1),
    `trees` the detached mounts that the parent made for it, `hold` the FIFO it will wait at (or -1).
    """

    __slots__ = ("hold", "report", "target", "trees")

    def __init__(self, report: socket, target: int = -1, trees: tuple[int, ...] = (), hold: int = -1) -> None:
        self.report = report
        self.target = target
        self.trees = trees
        self.hold = hold


class Talking:
    """A step that needs the context: `talk()` stands for `execute()`."""

    __slots__ = ()

    def describe(self) -> str:
        """What it does, in a line."""
        raise NotImplementedError

    def execute(self) -> None:
        """Never called."""
        raise TypeError(f"{type(self).__name__} needs its context")

    def talk(self, context: Context) -> None:
        """Do it."""
        raise NotImplementedError


class Bare:
    """A step that can be told as calls of the C library alone, ready to be made: see `program`."""

    __slots__ = ()

    def calls(self) -> tuple[Call, ...]:
        """The calls, each of which answers -1 for a failure. Empty where it takes more.

        When one fails, `recover()` is what follows.
        """
        raise NotImplementedError

    def execute(self) -> None:
        """Do it."""
        raise NotImplementedError

    def recover(self) -> None:
        """Make up for what is missing when a call has just failed, or say what is wrong.

        By itself it begins anew, which is right for whatever can be done twice.
        """
        self.execute()


def shown(text: bytes) -> str:
    """Bytes as text for `describe()`."""
    return os.fsdecode(text)
