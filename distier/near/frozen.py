"""Immutable values for modules in the near cache, which callers share."""

from __future__ import annotations

from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """The type of `meta` in a shared module. Its copies, also deep ones, are plain dicts."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("the meta of a module is shared by all its readers: change a copy (copy.deepcopy(module.meta))")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class FrozenList(list[Any]):
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = FrozenDict._refuse
    insert = pop = remove = reverse = sort = FrozenDict._refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


_NO_META = FrozenDict()


def frozen_meta(value: Any) -> Any:
    """Return JSON data as immutable values, which compare, print and encode like the original."""
    if isinstance(value, dict):
        return FrozenDict((k, frozen_meta(v)) for k, v in value.items()) if value else _NO_META
    return FrozenList(map(frozen_meta, value)) if isinstance(value, list) else value
