"""What must hold after any plan has been stopped anywhere, and at every other moment."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from distier.domain.archived import object_key
from distier.domain.module import parse_record
from distier.plans.fleet.maintain import recount
from distier.plans.get.one import get
from tests.fakes import World, ids_of

BUDGETS = {"hot_tokens": "hot_tokens", "hot_bytes": "hot_bytes", "warm_count": "warm_modules",
           "warm_frame_bytes": "warm_bytes"}  # fmt: skip


def audit(world: World) -> None:
    """The state is whole: sums equal a recount, budgets are kept, sets fit the records, only clean copies have a TTL."""
    state, shard = world.dump(), world.shard
    usage, limits = numbers(state, shard.usage), numbers(state, shard.limits)
    assert usage == world.run(recount(world.space, shard))
    for name, limit in BUDGETS.items():
        assert usage.get(name, 0) <= limits.get(limit, 0), f"{name} exceeds its budget: {usage}, {limits}"
    records = {shard.id_of(k.encode()): (v, ttl) for k, (_, v, ttl) in state.items() if ":module:" in k}
    for key, score_of in ((shard.hot, b"hot"), (shard.warm, b"warm")):
        assert members(state, key) == {id for id, (r, _) in records.items() if r[b"tier"] == score_of}
    assert members(state, shard.dirty) == {id for id, (r, _) in records.items() if r[b"clean"] == b"0"}
    for id, (record, ttl) in records.items():
        audit_copy(state, world, id, record, ttl)


def audit_copy(state: dict[str, Any], world: World, id: str, record: dict[bytes, bytes], ttl: int) -> None:
    clean, tier, frame = record[b"clean"] == b"1", record[b"tier"], state.get(world.shard.frame(id))
    assert ttl == -1 or (tier == b"deleted" and clean), f"the record of {id} has a TTL"
    assert (b"content" in record) == (tier == b"hot")
    assert frame is None or tier == b"warm", f"{id} is {tier!r} and still has a frame"
    if frame is not None:
        assert (frame[2] > 0) == clean, f"{id}: TTL {frame[2]}, clean {clean}"
    if not clean:
        assert tier in (b"hot", b"deleted") or frame is not None, f"the only copy of {id} is gone"
    elif tier != b"deleted":
        known = parse_record(id, record)
        assert known is not None
        key = object_key(world.space.namespace, known)
        assert world.archive.get(key, max_bytes=1 << 20) is not None, f"{id} is called clean, the archive has no {key}"


def numbers(state: dict[str, Any], key: str) -> dict[str, int]:
    fields = state[key][1] if key in state else {}
    return {k.decode(): int(v) for k, v in fields.items() if int(v)}


def members(state: dict[str, Any], key: str) -> set[str]:
    return set(ids_of(state[key][1])) if key in state else set()


def audit_contents(world: World, expected: Mapping[str, Iterable[bytes | None]]) -> None:
    """Each module reads back, by a process that knows nothing, as one of the contents that it may have."""
    for id, allowed in expected.items():
        module = world.run(get(world.space, id), "reader")
        assert (module.content if module else None) in allowed, f"{id} reads back wrong"
