"""The user's own terminal while it is a container's: raw mode and back, its size, and the keys that let go of it."""

from __future__ import annotations

import fcntl
import os
import struct
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.errors import UsageError

DETACH_KEYS = "ctrl-p,ctrl-q"
_NAMED = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def size(descriptor: int) -> tuple[int, int] | None:
    """(rows, columns), or None when it is no terminal, does not say, or is none at all (-1)."""
    if descriptor < 0:
        return None
    try:
        rows, columns, _, _ = struct.unpack("HHHH", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(8)))
    except OSError:
        return None
    return (rows, columns) if rows and columns else None


def resize(descriptor: int, to: tuple[int, int]) -> None:
    """Give a terminal another size; its foreground processes get SIGWINCH."""
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", *to, 0, 0))


@contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Pass every key on unseen, as long as this lasts; what is no terminal stays as it is."""
    if not os.isatty(descriptor):
        yield
        return
    before = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def parse_keys(text: str) -> bytes:
    """The bytes of a key sequence as Docker writes it: `ctrl-p,ctrl-q`, `a,b`. Raises UsageError."""
    found = bytearray()
    for key in filter(None, text.split(",")):
        letter = key.removeprefix("ctrl-")
        if letter != key and len(letter) == 1 and ((letter.isascii() and letter.isalpha()) or letter in _NAMED):
            found.append(_NAMED.get(letter, ord(letter.lower()) & 0x1F))
        elif len(key) == 1 and key.isascii():
            found.append(ord(key))
        else:
            raise UsageError(f"key {key!r}", "not a key", "write ctrl-x or a character, with commas between")
    return bytes(found)


class KeyWatch:
    """Looks for a key sequence in what is typed; an empty one never comes."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._seen = 0

    def filter(self, data: bytes) -> tuple[bytes, bool]:
        """What of `data` goes on, and whether the sequence was completed. Keys that may begin it are held back."""
        if not self._keys:
            return data, False
        passed = bytearray()
        for byte in data:
            if byte == self._keys[self._seen]:
                self._seen += 1
                if self._seen == len(self._keys):
                    self._seen = 0
                    return bytes(passed), True
                continue
            passed += self._keys[: self._seen]
            self._seen = 1 if byte == self._keys[0] else 0
            if not self._seen:
                passed.append(byte)
        return bytes(passed), False
