"""`get_range`: a part of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from distier.domain.ids import check_id
from distier.domain.module import Part
from distier.plans.get.part import check_range, get_part, part_of

if TYPE_CHECKING:
    from distier.client.aio import AsyncStore
    from distier.client.store import Store


class Ranges:
    """The part of `Store` that reads parts of modules."""

    def get_range(self, id: str, start: int = 0, length: int | None = None) -> Part | None:
        """Read some bytes of a module.

        If the module is hot and has 64 KiB or more, only these bytes are sent. Otherwise it is read whole, as by `get`, and the
        next call finds it in the near cache. Parts of different calls fit together if their `version` is the same. The digest
        of a part is not checked.

        Args:
            id: the module id.
            start: the first byte, from 0. There is nothing behind the end: then the part is empty.
            length: the number of bytes; None for all up to the end.

        Returns:
            The part, with the size and version of the module; None if the module does not exist.

        Raises:
            Invalid: `id` is not a module id, or there is no such range.
            Corrupt: every copy that was found is damaged.
        """
        store = cast("Store", self)
        check_range(start, length)
        if (near := store.near.get(check_id(id))) is not None:
            return part_of(near, start, length)
        part = store.run(get_part(store.space, id, start, length))
        if part is not None:
            return part
        module = store.get(id)
        return None if module is None else part_of(module, start, length)


class AsyncRanges:
    """The part of `AsyncStore` that reads parts of modules."""

    async def get_range(self, id: str, start: int = 0, length: int | None = None) -> Part | None:
        """As `Store.get_range`."""
        store = cast("AsyncStore", self)
        check_range(start, length)
        if (near := store.near.get(check_id(id))) is not None:
            return part_of(near, start, length)
        part = await store.run(get_part(store.space, id, start, length))
        if part is not None:
            return part
        module = await store.get(id)
        return None if module is None else part_of(module, start, length)
