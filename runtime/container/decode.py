"""JSON documents to the values of `config`, and back: the shape of a config.json, field by field.

Strict in types (true is no number), lenient in what the specification wants lenient: unknown fields are passed over,
null and "" are as good as absent where Go's omitted zero is. Every fault is found and named by its JSON path, not the
first alone. What the fields of a value mean to one another `checks` says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from runtime.cgroups.resources import Resources
from runtime.container import checks
from runtime.container.bounds import ANY, BOUNDS, S64
from runtime.container.config import Config, Process, Seccomp
from runtime.errors import UsageError
from runtime.record import Field, fields, is_record, ordered_record, replace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias, TypeVar

    Reader: TypeAlias = "Callable[[object, str, Faults], Any]"
    _T = TypeVar("_T")

LARGEST_BYTES = 16 << 20
_SHOWN_FAULTS = 64
_TUPLE, _OF_ANY_LENGTH, _MAPPING, _OR_NONE = "tuple[", ", ...]", "Mapping[str, ", " | None"
_BAD = object()  # stands where a value could not be made; what holds it cannot be made either
# What the specification wants written even where it is what we take for granted.
_ALWAYS_TOLD = frozenset({("Process", "cwd"), ("Process", "user"), ("User", "uid"), ("User", "gid")})
# What the specification knows and this runtime does not do: refused by name, not dropped.
_NOT_DONE = {
    "Linux": ("intelRdt", "memoryPolicy", "netDevices"),
    "Process": ("scheduler", "execCPUAffinity"),
}

Faults = list[str]


def load(path: Path) -> Config:
    """The configuration in a file. Raises UsageError for what is unreadable, too large, no JSON or not valid."""
    return parse(read_json(path), path.name)


def read_json(path: Path) -> Mapping[str, Any]:
    """The JSON object in a file of at most LARGEST_BYTES. Raises UsageError."""
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise UsageError(str(path), error.strerror or str(error), "name a file that can be read") from error
    if len(content) > LARGEST_BYTES:
        raise UsageError(str(path), f"larger than {LARGEST_BYTES >> 20} MiB", "no configuration needs that")
    import json

    try:
        document = json.loads(content, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise UsageError(str(path), f"not JSON: {error}", "correct it") from error
    if not isinstance(document, dict):
        raise UsageError(str(path), "not a JSON object", "correct it")
    return document


def parse(document: Mapping[str, Any], name: str = "config.json") -> Config:
    """A whole configuration. Raises UsageError naming every bad field by its path.

    A mount's destination may be relative, which the specification deprecates and wants taken from the root.
    """
    config = _parse(Config, document, name)
    if all(mount.destination.startswith("/") for mount in config.mounts):
        return config
    absolute = (replace(mount, destination=f"/{mount.destination.lstrip('/')}") for mount in config.mounts)
    return replace(config, mounts=tuple(absolute))


def parse_process(document: Mapping[str, Any], name: str = "process.json") -> Process:
    """A process to run in a container that is there, as for `exec`. Raises UsageError."""
    return _parse(Process, document, name)


def parse_resources(document: Mapping[str, Any], name: str = "resources.json") -> Resources:
    """What a control group is to give, as for `update`. Raises UsageError."""
    return _parse(Resources, document, name)


def parse_seccomp(document: Mapping[str, Any], name: str = "seccomp profile") -> Seccomp:
    """A filter as `linux.seccomp` has it. Raises UsageError."""
    return _parse(Seccomp, document, name)


def parse_as(cls: type[_T], document: object, name: str) -> _T:
    """A value of any dataclass of configuration. Raises UsageError."""
    return _parse(cls, document, name)


def document(value: Any) -> dict[str, Any]:
    """The JSON object of a configuration or a part of one; what is at its default is left out."""
    return _write(value)  # type: ignore[no-any-return]


def _parse(cls: type[_T], document: object, name: str) -> _T:
    faults: Faults = []
    target: type = cls
    value = _reader_of(target)(document, "", faults)
    if faults:
        more = len(faults) - _SHOWN_FAULTS
        shown = [*faults[:_SHOWN_FAULTS], *([f"and {more} more"] if more > 0 else [])]
        raise UsageError(name, "; ".join(shown), "correct these fields")
    return value  # type: ignore[no-any-return]


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


@ordered_record
class _Field:
    name: str
    json_name: str
    read: Reader
    required: bool


def json_name(field: Field) -> str:
    """What a field is called in JSON: its camel case, if its metadata say nothing else."""
    head, *tail = field.name.split("_")
    return str(field.metadata.get("name") or head + "".join(word.capitalize() for word in tail))


@cache
def _fields(cls: type) -> tuple[_Field, ...]:
    scope = vars(sys.modules[cls.__module__])
    return tuple(
        _Field(
            name=field.name,
            json_name=json_name(field),
            read=_reader(field.type, scope, (cls.__name__, field.name)),
            required=field.required,
        )
        for field in fields(cls)
    )


@cache
def _reader_of(cls: type) -> Reader:
    """A reader of objects that become a `cls`."""
    refused = _NOT_DONE.get(cls.__name__, ())

    def read(value: object, path: str, faults: Faults) -> Any:
        if not isinstance(value, Mapping):
            return _fault(path, value, "an object", faults)
        found: dict[str, Any] = {}
        complete = True
        for field in _fields(cls):
            given = value.get(field.json_name)
            where = f"{path}.{field.json_name}" if path else field.json_name
            if given is not None:
                found[field.name] = inner = field.read(given, where, faults)
                complete = complete and inner is not _BAD
            elif field.required:
                faults.append(f"{where}: missing")
                complete = False
        faults += [f"{path}.{name}: this runtime does not do that" for name in refused if value.get(name)]
        if not complete:
            return _BAD
        made = cls(**found)
        for name, why in checks.check(made):
            faults.append(f"{path}{'.' if path and name else ''}{name}: {why}")
        return made

    return read


def _reader(annotation: str, scope: Mapping[str, Any], key: tuple[str, str]) -> Reader:
    """By a field's annotation, as it is written. Looking at the few forms there are is ten times evaluating them."""
    plain = annotation.removesuffix(_OR_NONE)
    if plain.startswith(_TUPLE):
        return _list_reader(_reader(plain[len(_TUPLE) : -len(_OF_ANY_LENGTH)], scope, key))
    if plain.startswith(_MAPPING):
        return _map_reader(_reader(plain[len(_MAPPING) : -1], scope, key))
    if plain == "str":
        return _read_text if plain == annotation else _read_optional_text
    if plain == "bool":
        return _read_flag
    if plain == "int":
        return _number_reader(BOUNDS.get(key, S64), any_is=-1 if key in ANY else None)
    return _reader_of(scope[plain])


def _list_reader(item: Reader) -> Reader:
    def read(value: object, path: str, faults: Faults) -> Any:
        if not isinstance(value, list | tuple):
            return _fault(path, value, "a list", faults)
        items = tuple([item(element, f"{path}[{index}]", faults) for index, element in enumerate(value)])
        return _BAD if _BAD in items else items

    return read


def _map_reader(item: Reader) -> Reader:
    def read(value: object, path: str, faults: Faults) -> Any:
        if not isinstance(value, Mapping):
            return _fault(path, value, "an object", faults)
        keys = [_read_text(key, f"{path}[{_shown(key)}]", faults) for key in value]
        items = {key: item(element, f"{path}[{_shown(key)}]", faults) for key, element in value.items()}
        return _BAD if _BAD in keys or _BAD in items.values() else items

    return read


def _number_reader(bounds: tuple[int, int], any_is: int | None = None) -> Reader:
    lowest, highest = bounds

    def read(value: object, path: str, faults: Faults) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return _fault(path, value, "a whole number", faults)
        if not lowest <= value <= highest:
            return _fault(path, value, f"between {lowest} and {highest}", faults)
        return None if value == any_is else value

    return read


def _read_flag(value: object, path: str, faults: Faults) -> Any:
    return value if isinstance(value, bool) else _fault(path, value, "true or false", faults)


def _read_text(value: object, path: str, faults: Faults) -> Any:
    if not isinstance(value, str):
        return _fault(path, value, "a string", faults)
    if "\0" in value:
        faults.append(f"{path}: holds a NUL byte")
        return _BAD
    if not value.isascii() and not _is_encodable(value):
        faults.append(f"{path}: holds half a character")
        return _BAD
    return value


def _read_optional_text(value: object, path: str, faults: Faults) -> Any:
    return None if value == "" else _read_text(value, path, faults)


def _is_encodable(value: str) -> bool:
    """Bytes that are no UTF-8 come as lone low surrogates, as in `os.fsdecode`; other halves are mistakes."""
    try:
        value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def _fault(path: str, value: object, wanted: str, faults: Faults) -> object:
    faults.append(f"{path or 'the document'}: {_shown(value)} is not {wanted}")
    return _BAD


def _shown(value: object) -> str:
    """A value in a message: short, on one line, in ASCII."""
    import json

    text = json.dumps(value, default=lambda other: type(other).__name__) if _is_scalar(value) else type(value).__name__
    text = {"dict": "an object", "list": "a list"}.get(text, text)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, str | int | float)


def _write(value: Any) -> Any:
    if is_record(value):
        return {name: _write(inner) for name, inner in _told(value)}
    if isinstance(value, tuple):
        return [_write(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _write(item) for key, item in value.items()}
    return value


def _told(value: Any) -> list[tuple[str, Any]]:
    """The fields of a value that are not at their default, by JSON name."""
    kind: type = type(value)
    told = []
    for field, (always, default) in zip(_fields(kind), _defaults(kind), strict=True):
        inner = getattr(value, field.name)
        if always or inner != default:
            told.append((field.json_name, inner))
    return told


@cache
def _defaults(cls: type) -> tuple[tuple[bool, Any], ...]:
    """Per field, whether it is written whatever it is, and its default."""
    return tuple((field.required or field.name in _always(cls), field.first()) for field in fields(cls))


def _always(cls: type) -> frozenset[str]:
    return frozenset(name for kind, name in _ALWAYS_TOLD if kind == cls.__name__)
