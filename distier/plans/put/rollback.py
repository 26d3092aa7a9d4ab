"""Going back to an older version: its content becomes a new version."""

from __future__ import annotations

from distier.domain.module import Landed
from distier.domain.order import Order
from distier.effects import Plan
from distier.errors import NotFound
from distier.plans.common.namespace import Namespace
from distier.plans.get.history import get_version
from distier.plans.put.one import put
from distier.plans.put.prepare import Durability, Expected, item_again


def rollback(
    space: Namespace, id: str, version: Order | str, if_version: Expected = None, durability: Durability | None = None
) -> Plan[Landed]:
    """Put the content, type, keywords, meta and TTL of an older version again.

    It is a put like any other one, so nothing is undone: the versions in between stay in the history. Raises `NotFound` where
    that version is gone, and what a put raises.
    """
    module = yield from get_version(space, id, version)
    if module is None:
        raise NotFound(
            f"module {id!r} has no version {version}: `distier history` lists those that the archive has, and "
            "cold.keep_versions says how many it keeps"
        )
    ttl = None if module.expires_ms is None else (module.expires_ms - module.updated_ms) / 1000
    return (yield from put(space, item_again(space, module, id, if_version, durability, ttl)))
