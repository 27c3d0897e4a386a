"""Frozen values that cost little to declare: `record` in place of `dataclass(frozen=True, kw_only=True)`.

A dataclass compiles six methods for each class when it is imported, half a millisecond each here; a command that
starts a container has a hundred and fifty classes, and pays for all of them before it has begun. These share their
methods. In all else they are dataclasses: `fields`, `replace`, `asdict` and type checkers take them for such. Not for
values of which very many are made: making, comparing and hashing one costs somewhat more.
"""

from __future__ import annotations

import _thread

TYPE_CHECKING = False  # as typing's, which would be half a megabyte more to clone with each launch
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeVar, dataclass_transform

    _T = TypeVar("_T")
else:

    def dataclass_transform(**_: object) -> Callable[[type], type]:  # noqa: D103
        return lambda function: function


MISSING: Any = object()
"""Stands for the default of a field that has none."""
_set = object.__setattr__
_asking = _thread.RLock()


class Field:
    """A field of a record: `default` and `factory` are MISSING where there is none, `type` is its annotation."""

    __slots__ = ("default", "factory", "metadata", "name", "type")

    def __init__(self, default: Any, factory: Any, metadata: Mapping[str, Any] | None) -> None:
        self.name = self.type = ""
        self.default = default
        self.factory = factory
        self.metadata = metadata or {}

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is MISSING and self.factory is MISSING

    def first(self) -> Any:
        """Its value where it is not given."""
        return self.default if self.factory is MISSING else self.factory()

    def of_dataclass(self) -> Any:
        """The same as a dataclass has it."""
        import dataclasses

        if self.factory is not MISSING:
            return dataclasses.field(default_factory=self.factory, metadata=self.metadata)
        if self.default is not MISSING:
            return dataclasses.field(default=self.default, metadata=self.metadata)
        return dataclasses.field(metadata=self.metadata)


def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] = MISSING,
    metadata: Mapping[str, Any] | None = None,
) -> Any:
    """As `dataclasses.field`, for records: a default made anew each time, a name elsewhere."""
    return Field(default, default_factory, metadata)


def fields(kind: type) -> tuple[Field, ...]:
    """The fields of a record's class, in order: as `dataclasses.fields`, with nothing to import."""
    found: dict[str, Field] = kind._fields  # type: ignore[attr-defined]
    return tuple(found.values())


def is_record(value: object) -> bool:
    """Whether it is the value of a record's class."""
    return hasattr(type(value), "_fields")


def replace(value: _T, **changes: Any) -> _T:
    """As `dataclasses.replace`, for records: the same with some fields changed."""
    return type(value)(**{**vars(value), **changes})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[_T]) -> type[_T]:
    """Make a class of annotated fields a frozen value, given by name, equal where all of it is equal."""
    return _made(cls, _initialise)


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def ordered_record(cls: type[_T]) -> type[_T]:
    """The same, given by position or by name."""
    return _made(cls, _initialise_in_order)


def _made(cls: type[_T], initialise: Any) -> type[_T]:
    cls.__doc__ = cls.__doc__ or cls.__name__  # else dataclass writes one, and looks long for what to say
    found = _declared(cls)
    shared: dict[str, Any] = {
        "_fields": found,
        "_names": tuple(found),
        "_initial": {name: field.default for name, field in found.items()},
        "_factories": tuple((name, field.factory) for name, field in found.items() if field.factory is not MISSING),
        "_required": tuple(name for name, field in found.items() if field.required),
        "_check": getattr(cls, "__post_init__", None),
        "__match_args__": tuple(found),
        "__dataclass_fields__": _Fields(cls),
        "__init__": initialise,
        "__repr__": _represent,
        "__eq__": _equals,
        "__hash__": _hash,
        "__setattr__": _refuse,
        "__delattr__": _refuse,
    }
    for name, value in shared.items():
        if not (name in ("__repr__", "__eq__", "__hash__") and name in vars(cls)):
            setattr(cls, name, value)
    for name, value in tuple(vars(cls).items()):
        if isinstance(value, Field):
            if value.default is MISSING:
                delattr(cls, name)
            else:
                setattr(cls, name, value.default)
    return cls


def _declared(cls: type) -> dict[str, Field]:
    """The fields, those of the classes above first."""
    found: dict[str, Field] = {}
    for base in reversed(cls.__mro__[1:]):
        found |= vars(base).get("_fields", {})
    for name, kind in vars(cls).get("__annotations__", {}).items():
        value = vars(cls).get(name, MISSING)
        field = value if isinstance(value, Field) else Field(value, MISSING, None)
        field.name, field.type = name, kind
        found[name] = field
    return found


class _Fields:
    """The fields of a record as a dataclass has them, made when the first asks: what launches need not import that."""

    def __init__(self, cls: type) -> None:
        self._cls = cls

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        import dataclasses

        with _asking:  # two threads that ask at the same time must not both do it
            if vars(self._cls)["__dataclass_fields__"] is self:
                for name in vars(self._cls).get("__annotations__", ()):
                    setattr(self._cls, name, vars(self._cls)["_fields"][name].of_dataclass())
                dataclasses.dataclass(init=False, repr=False, eq=False, match_args=False)(self._cls)
        return vars(self._cls)["__dataclass_fields__"]  # no longer this


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
        if content[name] is MISSING:
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
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"{type(self).__name__} cannot change: {name!r}")
