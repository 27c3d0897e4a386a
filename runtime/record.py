"""Frozen values that cost little to declare: `record` in place of `dataclass(frozen=True, kw_only=True)`.

A dataclass compiles six methods for each class when it is imported, half a millisecond each here; a configuration has
fifty classes, and a command that starts a container pays for all of them. These share their methods. In all else they
are dataclasses: `fields`, `replace`, `asdict` and type checkers take them for such. Not for values of which many are
made in a hurry, nor for those given by position: making one costs about what a dataclass costs, comparing and hashing
a little more.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar, dataclass_transform

_T = TypeVar("_T")
_MISSING = dataclasses.MISSING


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
def record(cls: type[_T]) -> type[_T]:
    """Make a class of annotated fields a frozen value, given by name, equal where all of it is equal."""
    cls.__doc__ = cls.__doc__ or cls.__name__  # else dataclass writes one, and looks long for what to say
    made = dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False, kw_only=True)(cls)
    fields = dataclasses.fields(made)  # type: ignore[arg-type] # it has just become one
    shared: dict[str, Any] = {
        "_initial": {field.name: field.default for field in fields},
        "_factories": {field.name: field.default_factory for field in fields if field.default_factory is not _MISSING},
        "__init__": _initialise,
        "__repr__": _represent,
        "__eq__": _equals,
        "__hash__": _hash,
        "__setattr__": _refuse,
        "__delattr__": _refuse,
    }
    for name, value in shared.items():
        setattr(made, name, value)
    return made


def _initialise(self: Any, **values: Any) -> None:
    cls = type(self)
    content = {**cls._initial, **values}
    for name, factory in cls._factories.items():
        if name not in values:
            content[name] = factory()
    if len(content) > len(cls._initial):
        unknown = next(name for name in values if name not in cls._initial)
        raise TypeError(f"{cls.__name__} has no field {unknown!r}")
    if _MISSING in content.values():
        missing = next(name for name, value in content.items() if value is _MISSING)
        raise TypeError(f"{cls.__name__} needs {missing!r}")
    object.__setattr__(self, "__dict__", content)


def _represent(self: Any) -> str:
    content = ", ".join(f"{name}={value!r}" for name, value in vars(self).items())
    return f"{type(self).__qualname__}({content})"


def _equals(self: Any, other: object) -> Any:
    return vars(self) == vars(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash((type(self), *vars(self).values()))


def _refuse(self: Any, name: str, *_: Any) -> None:
    raise dataclasses.FrozenInstanceError(f"{type(self).__name__} cannot change: {name!r}")
