"""The templates of `--format`, as Go's text/template writes them: paths, functions, `if`, `range`, `with`, variables.

What Docker's users write is understood; any other word is refused by name. Not what a listing offers (`listing`).
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from runtime.errors import UsageError

_ACTION = re.compile(r"\{\{(?P<left>- )?(?P<words>(?:\"(?:\\.|[^\"\\])*\"|`[^`]*`|.)*?)(?P<right> -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""\s*(?: (?P<text>"(?:\\.|[^"\\])*"|`[^`]*`) | (?P<number>-?\d+) | (?P<path>(?:\$\w*)?(?:\.\w+)+|\$\w*|\.)
    | (?P<word>\w+) | (?P<sign>:=|\)(?:\.\w+)*|[(|,=]) )""",
    re.VERBOSE,
)
_BLOCKS = ("if", "range", "with")
_VERB = re.compile(r"%(%|-?\d*[svdqt])")
_CONSTANTS = {"true": True, "false": False, "nil": None}
_ORDER = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "ne": operator.ne}

_Node = str | tuple[str, list[str], "list[_Node]", "list[_Node]"]
"""Text as it is, or (kind, tokens, body, else); kind is "" for what is shown or assigned."""
_Scope = dict[str, Any]


class Template:
    """One template, read. Raises UsageError for what no template is."""

    def __init__(self, text: str) -> None:
        self._text = text
        pieces = list(_pieces(text))
        self._nodes, ended = self._block(pieces, within=False)
        assert not ended

    def render(self, document: Any) -> str:
        """The template with `document` as its dot. Raises UsageError for a field that is not there."""
        return "".join(self._shown(self._nodes, document, {"$": document}))

    def _refuse(self, why: str) -> UsageError:
        return UsageError(f"--format {self._text}", why, "see the whole with --format json")

    # --- reading

    def _block(self, pieces: list[str | list[str]], *, within: bool) -> tuple[list[_Node], list[str]]:
        """Nodes up to `end` or `else`, which is given too; to the end of all where nothing is open."""
        nodes: list[_Node] = []
        while pieces:
            piece = pieces.pop(0)
            if isinstance(piece, str):
                nodes.append(piece)
            elif piece[:1] in (["end"], ["else"]):
                if not within:
                    raise self._refuse(f"{piece[0]} of nothing")
                return nodes, piece
            elif piece[:1] and piece[0] in _BLOCKS:
                nodes.append(self._opened(piece[0], piece[1:], pieces))
            elif piece:
                nodes.append(("", piece, [], []))
        if within:
            raise self._refuse("an end is missing")
        return nodes, []

    def _opened(self, kind: str, words: list[str], pieces: list[str | list[str]]) -> _Node:
        body, ended = self._block(pieces, within=True)
        other: list[_Node] = []
        if ended[:2] == ["else", "if"]:
            other = [self._opened("if", ended[2:], pieces)]
        elif ended[0] == "else":
            other, ended = self._block(pieces, within=True)
        return kind, words, body, other

    # --- carrying out

    def _shown(self, nodes: Iterable[_Node], dot: Any, scope: _Scope) -> Iterator[str]:
        for node in nodes:
            if isinstance(node, str):
                yield node
                continue
            kind, tokens, body, other = node
            names, tokens = _assigned(tokens)
            value = self._pipeline(list(tokens), dot, scope)
            if kind == "range":
                pairs = _pairs(value)
                for key, one in pairs:
                    given = dict(zip(names, (key, one) if len(names) == 2 else (one,), strict=False))
                    yield from self._shown(body, one, {**scope, **given})
                if not pairs:
                    yield from self._shown(other, dot, scope)
            elif kind:
                inner = {**scope, **dict.fromkeys(names, value)}
                inside = value if kind == "with" else dot
                yield from self._shown(body, inside, inner) if value else self._shown(other, dot, scope)
            elif names:
                scope.update(dict.fromkeys(names, value))
            else:
                yield text_of(value)

    def _pipeline(self, tokens: list[str], dot: Any, scope: _Scope) -> Any:
        """`command | command`: what comes of one is the last argument of the next."""
        piped: list[Any] = []
        while True:
            value = self._command(tokens, dot, scope, piped)
            if not tokens or tokens[0] != "|":
                return value
            tokens.pop(0)
            piped = [value]

    def _command(self, tokens: list[str], dot: Any, scope: _Scope, piped: list[Any]) -> Any:
        if not tokens:
            raise self._refuse("a value is missing")
        first = tokens[0]
        if re.fullmatch(r"[A-Za-z_]\w*", first) and first not in _CONSTANTS:
            function = _FUNCTIONS.get(tokens.pop(0))
            if function is None:
                raise self._refuse(f"there is no function {first}")
            return self._called(first, function, [*self._values(tokens, dot, scope), *piped])
        values = [*self._values(tokens, dot, scope), *piped]
        if values and callable(values[0]):
            return self._called(first, values[0], values[1:])
        if len(values) != 1:
            raise self._refuse(f"{first} is no function")
        return values[0]

    def _called(self, name: str, function: Callable[..., Any], arguments: list[Any]) -> Any:
        try:
            return function(*arguments)
        except (TypeError, IndexError, AttributeError, ValueError):
            shown = ", ".join(map(text_of, arguments)) or "nothing"
            raise self._refuse(f"{name} does not go with {shown}") from None

    def _values(self, tokens: list[str], dot: Any, scope: _Scope) -> Iterator[Any]:
        while tokens and tokens[0][0] not in "|)":
            yield self._value(tokens, dot, scope)

    def _value(self, tokens: list[str], dot: Any, scope: _Scope) -> Any:
        word = tokens.pop(0)
        if word == "(":
            value = self._pipeline(tokens, dot, scope)
            if not tokens or tokens[0][0] != ")":
                raise self._refuse("a ) is missing")
            return self._member(value, tokens.pop(0)[1:])
        if word in _CONSTANTS:
            return _CONSTANTS[word]
        if word[0] == '"':
            return json.loads(word)
        if word[0] == "`":
            return word[1:-1]
        if word.lstrip("-").isdigit():
            return int(word)
        if word[0] in ".$":
            return self._field(word, dot, scope)
        raise self._refuse(f"{word} is out of place")

    def _field(self, path: str, dot: Any, scope: _Scope) -> Any:
        variable, point, names = path.partition(".")
        if variable and variable not in scope:
            raise self._refuse(f"there is no variable {variable}")
        return self._member(scope[variable] if variable else dot, point + names)

    def _member(self, found: Any, path: str) -> Any:
        for name in filter(None, path.split(".")):
            if not isinstance(found, Mapping) or name not in found:
                raise self._refuse(f"there is no {path}")
            found = found[name]
        return found


def _pieces(text: str) -> Iterator[str | list[str]]:
    """Text, and the tokens of each action; `{{-` and `-}}` have taken the white space beside them away."""
    end, trimmed = 0, False
    for match in _ACTION.finditer(text):
        before = text[end : match.start()]
        before = before.lstrip() if trimmed else before
        yield before.rstrip() if match["left"] else before
        words = match["words"].strip()
        yield [] if words.startswith("/*") else _tokens(text, words)
        end, trimmed = match.end(), bool(match["right"])
    rest = text[end:].lstrip() if trimmed else text[end:]
    if "{{" in rest:
        raise UsageError(f"--format {text}", "an action is not closed", "end it with }}")
    yield rest


def _tokens(text: str, words: str) -> list[str]:
    tokens, at = [], 0
    while at < len(words):
        match = _TOKEN.match(words, at)
        if match is None:
            raise UsageError(f"--format {text}", f"{words[at:]!r} is not understood", "see Go's text/template")
        tokens.append(str(match[match.lastgroup or 0]))
        at = match.end()
    return tokens


def _assigned(tokens: list[str]) -> tuple[list[str], list[str]]:
    """`$a, $b := pipeline` as its names and the pipeline."""
    for sign in (":=", "="):
        if sign in tokens:
            at = tokens.index(sign)
            return [word for word in tokens[:at] if word != ","], tokens[at + 1 :]
    return [], tokens


def _pairs(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return sorted(value.items())
    return list(enumerate(value)) if isinstance(value, list | tuple) else []


def text_of(value: Any) -> str:
    """A value as Go prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if value is None:
        return "<no value>"
    if isinstance(value, Mapping):
        return f"map[{' '.join(f'{key}:{text_of(one)}' for key, one in sorted(value.items()))}]"
    if isinstance(value, list | tuple):
        return f"[{' '.join(map(text_of, value))}]"
    return str(value)


def _printf(form: str, *values: Any) -> str:
    left = list(values)

    def one(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        width, verb, value = match[1][:-1], match[1][-1], left.pop(0)
        shown = json.dumps(str(value)) if verb == "q" else text_of(value)
        return shown.ljust(int(width[1:])) if width.startswith("-") else shown.rjust(int(width or 0))

    return _VERB.sub(one, form)


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key, "") if isinstance(value, Mapping) else value[key]
    return value


def _first(values: Sequence[Any], *, holding: bool) -> Any:
    return next((value for value in values if bool(value) is holding), values[-1])


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "json": lambda value: json.dumps(value, separators=(",", ":")),
    "index": _index,
    "len": len,
    "print": lambda *values: "".join(map(text_of, values)),
    "println": lambda *values: " ".join(map(text_of, values)) + "\n",
    "printf": _printf,
    "join": lambda values, between: between.join(map(text_of, values or ())),
    "split": lambda text, between: text.split(between),
    "lower": lambda text: text.lower(),
    "upper": lambda text: text.upper(),
    "title": lambda text: text.title(),
    "truncate": lambda text, most: text[:most],
    "pad": lambda text, before, after: " " * before + text + " " * after if text else text,
    "eq": lambda value, *others: value in others,
    "not": lambda value: not value,
    "and": lambda *values: _first(values, holding=False),
    "or": lambda *values: _first(values, holding=True),
    **_ORDER,
}
