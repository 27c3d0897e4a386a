"""Frozen values that cost little to declare: `record` in place of `dataclass(frozen=True, kw_only=True)`.

A dataclass compiles six methods for each class when it is imported, half a millisecond each here; a command that
starts a container has a hundred and fifty classes, and pays for all of them before it has begun. These share their
methods. In all else they are dataclasses: `fields`, `replace`, `asdict` and type checkers take them for such. Not for
values of which very many are made: making, comparing and hashing one costs somewhat more.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

_T = TypeVar("_T")
_MISSING = dataclasses.MISSING
_set = object.__setattr__


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[_T]) -> type[_T]:
    """Make a class of annotated fields a frozen value, given by name, equal where all of it is equal."""
    return _made(cls, _initialise)


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def ordered_record(cls: type[_T]) -> type[_T]:
    """The same, given by position or by name."""
    return _made(cls, _initialise_in_order)


def _made(cls: type[_T], initialise: Any) -> type[_T]:
    cls.__doc__ = cls.__doc__ or cls.__name__  # else dataclass writes one, and looks long for what to say
    made = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type] # it has just become one
    shared: dict[str, Any] = {
        "_names": tuple(field.name for field in fields),
        "_initial": {field.name: field.default for field in fields},
        "_factories": tuple(
            (field.name, field.default_factory) for field in fields if field.default_factory is not _MISSING
        ),
        "_required": tuple(field.name for field in fields if field.default is field.default_factory is _MISSING),
        "_check": getattr(made, "__post_init__", None),
        "__init__": initialise,
        "__repr__": _represent,
        "__eq__": _equals,
        "__hash__": _hash,
        "__setattr__": _refuse,
        "__delattr__": _refuse,
    }
    for name, value in shared.items():
        if not (name in ("__repr__", "__eq__", "__hash__") and name in vars(cls)):
            setattr(made, name, value)
    return made


def _initialise_in_order(self: Any, *given: Any, **values: Any) -> None:
    names = type(self)._names
    if len(given) == len(names) and not values:
        _fill(self, dict(zip(names, given, strict=True)))
        return
    if len(given) > len(names):
        raise TypeError(f"{type(self).__name__} has {len(names)} fields, not {len(given)}")
    if given and values:
        for name in names[: len(given)]:
            if name in values:
                raise TypeError(f"{type(self).__name__} is given {name!r} twice")
    if given:
        values |= zip(names, given, strict=False)
    _complete(self, values)


def _initialise(self: Any, **values: Any) -> None:
    _complete(self, values)


def _complete(self: Any, values: dict[str, Any]) -> None:
    cls = type(self)
    content = {**cls._initial, **values}
    for name, factory in cls._factories:
        if name not in values:
            content[name] = factory()
    if len(content) > len(cls._names):
        unknown = next(name for name in values if name not in cls._initial)
        raise TypeError(f"{cls.__name__} has no field {unknown!r}")
    for name in cls._required:
        if content[name] is _MISSING:
            raise TypeError(f"{cls.__name__} needs {name!r}")
    _fill(self, content)


def _fill(self: Any, content: dict[str, Any]) -> None:
    _set(self, "__dict__", content)
    if type(self)._check is not None:
        self.__post_init__()


def _represent(self: Any) -> str:
    content = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
    return f"{type(self).__qualname__}({content})"


def _equals(self: Any, other: object) -> Any:
    return vars(self) == vars(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash((type(self), *vars(self).values()))


def _refuse(self: Any, name: str, *_: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"{type(self).__name__} cannot change: {name!r}")
