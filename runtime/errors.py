"""The one exception a user is meant to read: what failed, why, and what to do about it.

Not for programming errors (those stay ordinary exceptions) nor for failing system calls
(those stay `OSError` with errno, call and path until something that knows the user's intent
turns them into a sentence).
"""

from __future__ import annotations


def printable(text: str) -> str:
    """`text` in one line that does nothing to a terminal: what others wrote may hold anything."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else " " if char.isspace() else ascii(char)[1:-1] for char in text)


class TareError(Exception):
    """A failure explained in one line.

    `what` failed (a noun phrase), `why` (the cause as far as it is known), `do` (what the
    reader can do; empty only when there is nothing to do). `exit_code` is what a command
    line that ends on it returns: 1, or 2 for usage, or 125/126/127 as Docker's `run`.
    """

    exit_code = 1

    def __init__(self, what: str, why: str, do: str = "") -> None:
        self.what = what
        self.why = why
        self.do = do
        super().__init__(f"{what}: {why}" + (f" ({do})" if do else ""))


class UsageError(TareError):
    """The command line, a configuration or a name given by the user is wrong."""

    exit_code = 2
