"""Values that say clearly that they cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def frozen(cls: type[T]) -> type[T]:
    """Stands above `@dataclass(frozen=True, slots=True)`. What that combination itself raises for a name that is no field (a
    property, a typing error) is a `TypeError` about `super`."""
    for name in ("__setattr__", "__delattr__"):
        setattr(cls, name, _refuse)
    return cls


def _refuse(self: object, name: str, value: Any = None) -> NoReturn:
    kind = type(self).__name__
    raise FrozenInstanceError(f"{kind}.{name} cannot be changed: a {kind} is a value; to change a module, put it")
