"""LangGraph's long-term memory in distier: `DistierStore`, a `BaseStore`. Needs the extra `langgraph`.

    store = DistierStore(distier.connect())
    graph = builder.compile(store=store)

There is no vector search: `index` and `query` are ignored, as in LangGraph's own stores without an index.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from typing import Any, TypeVar

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    MatchCondition,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    validate_op_namespace,
)

from distier.client import AsyncStore, Store
from distier.domain.module import Module
from distier.errors import Conflict
from distier.integrations.shared import Bridge, Ids, Steps, again, delete_all, get_all, list_paths, list_rows, put_all

READ_AT_ONCE = 100
"""How many items a search with a filter reads at a time."""
Kind = TypeVar("Kind", bound=Item)


class DistierStore(BaseStore):
    """A LangGraph store whose items are modules of distier.

    The item with the key K of the namespace (A, B) is the module `ROOT/A/B/K`, with the item's value as JSON.

    Args:
        store: what `distier.connect()` returned; then asyncio methods work in a thread. With what `connect_async()`
            returned, only asyncio methods work.
        root: the first segments of the ids.
        ttl: LangGraph's settings of TTLs: `default_ttl` in minutes, and `refresh_on_read`. Expired items are always omitted,
            and the worker deletes them. A read that refreshes a TTL writes the item again once a tenth of it has passed.
    """

    supports_ttl = True

    __slots__ = ("_bridge", "_ids", "ttl_config")

    def __init__(self, store: Store | AsyncStore, *, root: str = "langgraph", ttl: TTLConfig | None = None) -> None:
        self._bridge, self._ids = Bridge(store), Ids(root)
        self.ttl_config = ttl

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """Run operations. Reads see what was there before the batch; of several puts of one key, the last one is done.

        Raises:
            InvalidNamespaceError: a label is empty, is no string, or contains a period.
            distier.DistierError: what distier raises, `Unavailable` if a server does not answer.
        """
        return self._bridge.run(self._steps(*_checked(ops)))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """As `batch`."""
        return await self._bridge.arun(self._steps(*_checked(ops)))

    def _steps(self, ops: list[Op], puts: Collection[PutOp]) -> Steps[list[Result]]:
        ids = [self._id(op) for op in ops if isinstance(op, GetOp)]
        modules, gets = (yield from get_all(ids)), iter(ids)
        results: list[Result] = []
        for op in ops:
            if isinstance(op, GetOp):
                module = modules[next(gets)]
                results.append(None if module is None else _item(Item, tuple(op.namespace), op.key, module))
                if op.refresh_ttl:
                    yield from _refresh([module])
            elif isinstance(op, SearchOp):
                results.append((yield from self._search(op)))
            elif isinstance(op, ListNamespacesOp):
                results.append((yield from self._namespaces(op)))
            elif isinstance(op, PutOp):
                results.append(None)
            else:
                raise ValueError(f"unknown operation: {type(op).__name__}")
        yield from put_all([
            self._ids.item((*op.namespace, op.key), json.dumps(op.value), "application/json", ttl=op.ttl and op.ttl * 60)
            for op in puts if op.value is not None
        ])  # fmt: skip
        yield from delete_all([self._id(op) for op in puts if op.value is None])
        return results

    def _id(self, op: GetOp | PutOp) -> str:
        return self._ids.id((*op.namespace, op.key))

    def _search(self, op: SearchOp) -> Steps[list[SearchItem]]:
        """Read items in the order of their ids until there are enough, so that pages of a search follow each other."""
        prefix = tuple(op.namespace_prefix)
        left = [row.id for row in (yield from list_rows(self._ids.prefix(prefix)))]
        found: list[SearchItem] = []
        while left and len(found) < op.offset + op.limit:
            ids, left = left[:READ_AT_ONCE], left[READ_AT_ONCE:]
            modules = yield from get_all(ids)
            refreshed: list[Module | None] = []
            for id, module in modules.items():
                path = None if module is None else self._ids.parts(id, module.meta)
                if module is None or path is None or len(path) <= len(prefix) or path[: len(prefix)] != prefix:
                    continue
                item = _item(SearchItem, path[:-1], path[-1], module)
                if all(_matches(item.value, name, wanted) for name, wanted in (op.filter or {}).items()):
                    refreshed += [module] if op.offset <= len(found) < op.offset + op.limit else []
                    found.append(item)
            if op.refresh_ttl:
                yield from _refresh(refreshed)
        return found[op.offset : op.offset + op.limit]

    def _namespaces(self, op: ListNamespacesOp) -> Steps[list[tuple[str, ...]]]:
        conditions = op.match_conditions or ()
        fixed = next((_before_star(c.path) for c in conditions if c.match_type == "prefix"), ())
        paths = (yield from list_paths(self._ids, fixed)).values()
        namespaces = {path[:-1] for path in paths if len(path) > 1}
        kept = {
            namespace[: op.max_depth] for namespace in namespaces if all(_does_match(c, namespace) for c in conditions)
        }
        return list(islice(sorted(kept), op.offset, op.offset + op.limit))


def _checked(ops: Iterable[Op]) -> tuple[list[Op], Collection[PutOp]]:
    """Return the operations, and the last put of each key. Raises for what no operation may be, before any is done."""
    checked, puts = list(ops), {}
    for op in checked:
        validate_op_namespace(op)
        if isinstance(op, PutOp):
            puts[tuple(op.namespace), op.key] = op
    return checked, puts.values()


def _refresh(modules: Iterable[Module | None]) -> Steps[None]:
    """Steps that let the TTLs of these modules begin again, where a tenth of them has passed by the clock of this machine."""
    for module in modules:
        if module is None or module.expires_ms is None:
            continue
        ttl_ms = module.expires_ms - module.updated_ms
        if time.time() * 1000 < module.updated_ms + ttl_ms / 10:
            continue
        with suppress(Conflict):  # somebody else has written it meanwhile
            yield from put_all([again(module, ttl_ms / 1000)])


def _item(kind: type[Kind], namespace: tuple[str, ...], key: str, module: Module) -> Kind:
    created, updated = (datetime.fromtimestamp(ms / 1000, UTC) for ms in (module.created_ms, module.updated_ms))
    return kind(value=json.loads(module.content), key=key, namespace=namespace, created_at=created, updated_at=updated)


def _before_star(path: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(path[: path.index("*")] if "*" in path else path)


def _does_match(condition: MatchCondition, namespace: tuple[str, ...]) -> bool:
    path = tuple(condition.path)
    if condition.match_type not in ("prefix", "suffix"):
        raise ValueError(f"unsupported match type: {condition.match_type}")
    if len(namespace) < len(path):
        return False
    part = namespace[: len(path)] if condition.match_type == "prefix" else namespace[len(namespace) - len(path) :]
    return all(wanted in ("*", label) for label, wanted in zip(part, path, strict=True))


def _matches(value: Mapping[str, Any], name: str, wanted: Any) -> bool:
    """Return whether a field has the wanted value. `a.b` is the field `b` of `a`, unless there is a field `a.b`."""
    found: Any = value.get(name)
    if name not in value and "." in name:
        found = value
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    return _equals(found, wanted)


def _equals(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        if any(str(name).startswith("$") for name in wanted):
            return all(_compares(found, operator, operand) for operator, operand in wanted.items())
        return isinstance(found, Mapping) and all(_equals(found.get(name), inner) for name, inner in wanted.items())
    if isinstance(wanted, list | tuple):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_equals, found, wanted))
    return bool(found == wanted)


def _compares(found: Any, operator: str, operand: Any) -> bool:
    if operator in ("$eq", "$ne"):
        return bool(found == operand) is (operator == "$eq")
    if operator not in ("$gt", "$gte", "$lt", "$lte"):
        raise ValueError(f"unsupported operator: {operator}")
    # Values of different kinds have no order: an item without the field is not a match, and not an error.
    if not all(isinstance(v, int | float) for v in (found, operand)) and not all(
        isinstance(v, str) for v in (found, operand)
    ):
        return False
    return bool(
        {"$gt": found > operand, "$gte": found >= operand, "$lt": found < operand, "$lte": found <= operand}[operator]
    )
