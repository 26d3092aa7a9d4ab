"""The invariants that hold after any plan was stopped anywhere, and at every other moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distier.domain.archived import object_key
from distier.domain.dictionary import dictionary_key
from distier.domain.module import parse_record
from distier.domain.schema import BUDGETS, State, state_of
from distier.plans.fleet.maintain import recount
from distier.plans.get.one import get
from tests.fakes import World, ids_of


def audit(world: World) -> None:
    """The state is consistent: accounts equal a recount, budgets are kept, sets fit the records, only clean copies expire."""
    state, shard = world.dump(), world.shard
    usage, limits = numbers(state, shard.usage), numbers(state, shard.limits)
    assert usage == world.run(recount(world.space, shard))
    for limit, name in BUDGETS.items():
        assert usage.get(name, 0) <= limits.get(limit, 0), f"{name} exceeds its budget: {usage}, {limits}"
    records = {shard.id_of(k.encode()): (v, ttl) for k, (_, v, ttl) in state.items() if ":module:" in k}
    states = {id: state_in(id, record) for id, (record, _) in records.items()}
    for name, key in (("hot", shard.hot), ("warm", shard.warm), ("dirty", shard.dirty)):
        assert members(state, key) == {id for id, s in states.items() if name in s.sets}, f"the set {name}"
    for name in state.get(shard.dictionaries, ("hash", {}, -1))[1]:
        key = dictionary_key(world.space.namespace, name.decode())
        assert world.archive.get(key, max_bytes=1 << 20) is not None, f"{key} is in Redis only"
    for id, (record, ttl) in records.items():
        audit_copy(state, world, id, states[id], record, ttl)


def state_in(id: str, record: dict[bytes, bytes]) -> State:
    found = state_of(record[b"tier"].decode(), clean=record[b"clean"] == b"1")
    assert found is not None, f"{id} is in no state of the lifecycle: {record}"
    return found


def audit_copy(
    state: dict[str, Any], world: World, id: str, is_in: State, record: dict[bytes, bytes], ttl: int
) -> None:
    """The copies and TTLs of a module fit its state."""
    frame = state.get(world.shard.frame(id))
    assert (ttl > 0) == (is_in.ttl_ms is not None), f"the record of {id} ({is_in}) has a TTL of {ttl}"
    assert (b"content" in record) == is_in.content, f"{id}: {is_in}"
    if not is_in.frame:
        assert frame is None, f"{id} is {is_in} and still has a frame"
    elif is_in.frame == "lasting":
        assert frame is not None, f"the only copy of {id} is gone"
        assert frame[2] == -1, f"{id} is dirty, and its frame has a TTL of {frame[2]}"
        assert not record[b"codec"].startswith(b"lz4d:"), f"{id} is dirty, and its frame needs a dictionary"
    elif frame is not None:
        assert frame[2] > 0, f"{id} is clean, and its frame has no TTL"
    if is_in.is_module and is_in.clean:
        known = parse_record(id, record)
        assert known is not None
        key = object_key(world.space.namespace, known)
        assert world.archive.get(key, max_bytes=1 << 20) is not None, (
            f"{id} is marked clean, but the archive has no {key}"
        )


def numbers(state: dict[str, Any], key: str) -> dict[str, int]:
    fields = state[key][1] if key in state else {}
    return {k.decode(): int(v) for k, v in fields.items() if int(v)}


def members(state: dict[str, Any], key: str) -> set[str]:
    return set(ids_of(state[key][1])) if key in state else set()


def audit_contents(world: World, expected: Mapping[str, Iterable[bytes | None]]) -> None:
    """A process that knows nothing reads each module, and gets one of the contents that it may have."""
    for id, allowed in expected.items():
        module = world.run(get(world.space, id), "reader")
        assert (module.content if module else None) in allowed, f"{id} reads back wrong"
