"""Renaming: the module is put under its new id, and then deleted under the old one."""

from __future__ import annotations

from contextlib import suppress

from distier.domain.module import Landed, Module
from distier.effects import Plan
from distier.errors import Conflict, Invalid, NotFound
from distier.plans.common.clock import ttl_left
from distier.plans.common.namespace import Namespace
from distier.plans.get.describe import describe
from distier.plans.get.one import get
from distier.plans.put.delete import delete
from distier.plans.put.one import put
from distier.plans.put.prepare import Durability, Expected, expected_of, item_again
from distier.plans.put.refused import conflict


def rename(
    space: Namespace, old: str, new: str, if_version: Expected = None, durability: Durability | None = None
) -> Plan[Landed]:
    """Put the module `old` as `new`, which must not exist, and delete `old`.

    The ids are in different shards, so this is not one step, and both are there meanwhile. The old one is deleted only if it
    still has the version that was copied; otherwise the copy is deleted again. If the call ends between the two steps, another
    one finishes it: it finds `new` with the same content and description.

    Where the old version is in the archive, the new one is archived too before the old one is deleted. Otherwise a loss of one
    shard of Redis could lose the module, because the deletion might be archived and the copy not.
    """
    if old == new:
        raise Invalid(f"module {old!r} has that name already")
    module = yield from get(space, old)
    if module is None:
        raise NotFound(f"module {old!r} does not exist")
    expected = expected_of(if_version)
    if expected and expected != str(module.version):
        raise conflict(old, str(module.version), expected)
    described = (yield from describe(space, [old]))[old]
    is_archived = described is not None and described.clean
    level = durability or ("archived" if is_archived else None)
    try:
        ttl = yield from ttl_left(space, old, module.expires_ms)
        landed = yield from put(space, item_again(space, module, new, 0, level, ttl))
    except Conflict:
        there = yield from get(space, new)
        if there is None or not _are_alike(there, module):
            raise Conflict(
                f"module {new!r} exists: nothing was renamed; delete it first, or choose another id"
            ) from None
        landed = Landed(new, there.tier, there.version, there.tokens, len(there.content), replayed=True)
    try:
        yield from delete(space, old, module.version, durability)
    except Conflict:
        if not landed.replayed:
            with suppress(Conflict):  # somebody has written the copy meanwhile, and so wants it
                yield from delete(space, new, landed.version, durability)
        raise Conflict(f"module {old!r} was changed meanwhile: nothing was renamed; do it again") from None
    return landed


def _are_alike(one: Module, other: Module) -> bool:
    return all(getattr(one, name) == getattr(other, name) for name in ("content", "content_type", "keywords", "meta"))
