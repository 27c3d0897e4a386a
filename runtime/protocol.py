"""What is said between a command and the keeper: messages of one tag byte, and words as marshal writes them. Lean.

A connection begins with the keeper's `hello`; then one request, and what follows from it:

    start, exec   → waits (the caller must say `go`) → running (with a pidfd and a terminal) or failed
    attach        → attached (the same), or refused
    wait          → ended, or refused; at once, or when the last output is in the log, too
    kept          → kept, with the ids
    forgo         → forgone: a container is not started again by itself
    change        → changed: limits or the restart policy of one that runs
    gave-up       → forgone: the start that was to follow an end has failed, and why
    ended         comes last to whoever is attached or waits: the exit code, and whether memory ran out
"""

from __future__ import annotations

import marshal
from typing import Any, Final

VERSION: Final = 3
SOCKET: Final = "keeper.sock"
MESSAGE_BYTES: Final = 1 << 20

WORDS: Final = b"w"
INPUT: Final = b"i"
INPUT_END: Final = b"e"
OUTPUT: Final = {b"1": 1, b"2": 2}


def encoded(words: tuple[Any, ...]) -> bytes:
    """Plain values as bytes."""
    return marshal.dumps(words)


def decoded(message: bytes) -> tuple[Any, ...]:
    """The words of `encoded`."""
    words: tuple[Any, ...] = marshal.loads(message)  # noqa: S302 - the socket is root's own
    return words
