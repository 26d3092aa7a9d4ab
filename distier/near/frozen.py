"""The values of a module in the cache, which callers cannot change."""

from __future__ import annotations

from typing import Any, NoReturn


class FrozenDict(dict[str, Any]):
    """What `meta` is in a module that many callers share. Copies, also deep ones, are plain dicts."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a module's meta is shared by all who read it: change a copy (copy.deepcopy(module.meta))")

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
    """Plain JSON as values that refuse to change; they compare, print and encode as before."""
    if isinstance(value, dict):
        return FrozenDict((k, frozen_meta(v)) for k, v in value.items()) if value else _NO_META
    return FrozenList(map(frozen_meta, value)) if isinstance(value, list) else value
