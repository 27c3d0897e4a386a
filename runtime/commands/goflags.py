"""Command-line words as Go's flag package and urfave/cli take them, which is how runc's callers write them.

One or two dashes for any name, the value after `=` or in the next word, bool flags with no value or `=true|false`.
Lean, as an engine calls the runtime several times a container: that is also why this is not click.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from runtime.errors import UsageError

BOOL, TEXT, NUMBER, MANY = "bool", "text", "number", "many"
Value = bool | str | int | list[str] | None


class Flags:
    """What flags a command knows: `kinds` by every name they go by, `aliases` short names to long ones."""

    def __init__(self, kinds: Mapping[str, str], aliases: Mapping[str, str] | None = None) -> None:
        self._kinds = kinds
        self._aliases = aliases or {}

    def parse(self, words: Sequence[str], *, interspersed: bool = True) -> tuple[Values, list[str]]:
        """Take the flags out of `words`: their values, and the other words.

        Unless `interspersed`, the first other word ends the flags. Raises UsageError for a flag that is unknown,
        lacks its value, or has one of the wrong kind.
        """
        values, rest, left = Values(), [], list(words)
        while left:
            word = left.pop(0)
            if word == "--":
                rest += left
                break
            if not word.startswith("-") or word == "-":
                rest.append(word)
                if not interspersed:
                    rest += left
                    break
                continue
            self._take(word, left, values)
        return values, rest

    def _take(self, word: str, left: list[str], values: Values) -> None:
        name, equals, value = word.lstrip("-").partition("=")
        name = self._aliases.get(name, name)
        kind = self._kinds.get(name)
        if kind is None:
            raise UsageError(f"flag {word}", "not known here", "--help lists the flags")
        if kind == BOOL:
            values[name] = _bool(word, value) if equals else True
            return
        if not equals:
            if not left:
                raise UsageError(f"flag {word}", "needs a value", f"give it as {word} VALUE")
            value = left.pop(0)
        if kind == MANY:
            values.setdefault(name, [])
            values.many(name).append(value)
        else:
            values[name] = _number(word, value) if kind == NUMBER else value

    def names(self) -> list[str]:
        """Every flag, for a help text."""
        shorts = {long: short for short, long in self._aliases.items()}
        return [f"--{name}" + (f", -{shorts[name]}" if name in shorts else "") for name in self._kinds]


class Values(dict[str, Value]):
    """The flags that were given, each read as what it is."""

    def text(self, name: str, default: str = "") -> str:
        """A TEXT flag."""
        value = self.get(name, default)
        assert isinstance(value, str)
        return value

    def is_set(self, name: str) -> bool:
        """A BOOL flag."""
        return self.get(name, False) is True

    def number(self, name: str, default: int = 0) -> int:
        """A NUMBER flag."""
        value = self.get(name, default)
        assert isinstance(value, int)
        return value

    def many(self, name: str) -> list[str]:
        """A MANY flag: every value, in order."""
        value = self.get(name, [])
        assert isinstance(value, list)
        return value


def _bool(word: str, value: str) -> bool:
    if value.lower() not in ("true", "false", "1", "0", "t", "f"):
        raise UsageError(f"flag {word}", "is either true or false")
    return value.lower() in ("true", "1", "t")


def _number(word: str, value: str) -> int:
    try:
        return int(value)
    except ValueError:
        raise UsageError(f"flag {word} {value}".strip(), "needs a whole number") from None
