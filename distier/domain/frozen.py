"""Values whose error says clearly that they cannot be changed."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")


def frozen(cls: type[T]) -> type[T]:
    """Decorate a class above `@dataclass(frozen=True, slots=True)`.

    Without it, that combination raises a `TypeError` about `super` for a name that is not a field (a property, a typo).
    """
    for name in ("__setattr__", "__delattr__"):
        setattr(cls, name, _refuse)
    return cls


def _refuse(self: object, name: str, value: Any = None) -> NoReturn:
    kind = type(self).__name__
    raise FrozenInstanceError(f"cannot set {kind}.{name}: a {kind} is immutable; to change a module, put a new version")
