"""Moving quotas between shards, without ever exceeding the total.

The *ledger*, a hash on the first shard, has the quota of each shard. The scripts of a shard check its own `limits`. A move
is

    begin     the ledger notes the quotas as they will be (`next`); until the end, a shard counts with the greater one
    lower     each shard that loses gets its smaller limits, evicts, and confirms that it holds no more than that
    commit    the ledger: `next` are the quotas now
    raise     each shard that gains gets its greater limits

A move may stop at any line, and any process can finish or undo it. Each change of the ledger is one script that compares its
version, and the limits of each shard carry the version that set them. So a process that slept can neither commit what was
undone nor bring old limits back. After a failover of the first shard its ledger may be an old copy: then it is rebuilt from
the limits of the shards, under a version that is greater than all before. docs/PROTOCOL.md has the invariant.

With one shard there is no ledger, and nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from distier.domain.keys import Shard
from distier.domain.schema import BUDGETS
from distier.effects import HINT_S, Command, Count, NewToken, Parallel, Pipeline, Plan, collect
from distier.errors import DistierError, Full, Unavailable
from distier.lua import Over, Refused, demote, limit
from distier.lua import ledger as ledger_script
from distier.plans.common.commands import numbers, server_ms
from distier.plans.common.namespace import Namespace
from distier.plans.tier.room import find_room
from distier.policy.quotas import Amounts, Floors, Ledger, ShardHoldings, enlarged, scaled, sum_of, valued

EPOCH = 2**32
"""Versions of the ledger are `epoch * 2**32 + n`, with the epoch of the first shard."""
TRIES_MAX = 6
LOWER_ROUNDS_MAX = 256


class Contended(Unavailable):
    """Other processes change the quotas all the time."""


def _amounts(text: bytes) -> Amounts:
    return Amounts(*(int(n) for n in text.split()))


def packed(amounts: Amounts) -> str:
    return " ".join(map(str, amounts))


def parse_ledger(fields: Mapping[bytes, bytes]) -> Ledger:
    """Parse the hash of the ledger; version 0 where there is none."""
    quotas = {int(name): _amounts(value) for name, value in fields.items() if name.isdigit()}
    coming = {int(name[5:]): _amounts(value) for name, value in fields.items() if name.startswith(b"next.")}
    total = _amounts(fields.get(b"total", b"0 0 0 0"))
    made = () if b"making" in fields else tuple(quotas[i] for i in range(len(quotas)))
    return Ledger(int(fields.get(b"version", 0)), total, made, coming)


def read_ledger(space: Namespace) -> Plan[tuple[Ledger, bool]]:
    """Return the ledger, and whether it is valid: complete, and of the epoch that the first shard is in."""
    first = space.keys.shards[0]
    calls: list[Command[Any]] = [
        Command(first, ("HGETALL", first.quotas), parse_ledger),
        Command(first, ("HGET", first.epoch, "epoch"), lambda reply: int(reply or 0)),
    ]
    ledger, epoch = (collect(r) for r in (yield from Pipeline(calls)))
    return ledger, bool(ledger.quotas) and ledger.version >= epoch * EPOCH


def change(
    space: Namespace, ledger: Ledger, fields: Mapping[str, str], *, fence: str = "", above: int | None = None
) -> Plan[int | None]:
    """Change the ledger that was read. Returns its new version, None where another process was first."""
    write_id = yield from NewToken()
    reply = yield from ledger_script(space.keys.shards[0], ledger.version, write_id, fields, fence=fence, above=above)
    return None if isinstance(reply, Refused) else reply


def limits_now(space: Namespace) -> Plan[list[tuple[Amounts, int]]]:
    """Return the limits of each shard, and the version of the ledger that set them."""

    def parse(reply: Sequence[bytes | None]) -> tuple[Amounts, int]:
        *amounts, version = numbers(reply)
        return Amounts(*amounts), version

    calls = [Command(s, ("HMGET", s.limits, *Amounts._fields, "shares"), parse) for s in space.keys.shards]
    return [collect(r) for r in (yield from Pipeline(calls))]


def settled(space: Namespace, *, fence: str = "") -> Plan[Ledger]:
    """Return a valid ledger with no change under way. Raises `Unavailable`.

    A ledger is made where there is no valid one. A change that somebody began is finished, or undone where it cannot be.
    """
    for _ in range(TRIES_MAX):
        ledger, holds = yield from read_ledger(space)
        if not holds:
            yield from make_ledger(space, ledger)
        elif ledger.next:
            yield from _finish(space, ledger, fence)
        else:
            return ledger
    raise Contended("the quotas of the shards change too often; retry")


def make_ledger(space: Namespace, ledger: Ledger) -> Plan[None]:
    """Make the ledger from the limits of the shards.

    First every shard takes a version of this ledger: from then on nothing that was begun before can change its limits.
    """
    if ledger.quotas or not ledger.version or not (yield from _being_made(space, ledger)):
        # Limits with a version that is greater than any of this epoch: somebody deleted the ledger.
        above = max(version for _, version in (yield from limits_now(space)))
        version = yield from change(space, ledger, {"making": "1"}, above=above)
        if version is None:
            return
        ledger = Ledger(version, ledger.total)
    replies = yield from Pipeline([limit(shard, ledger.version) for shard in space.keys.shards])
    found = [collect(reply) for reply in replies]
    if any(isinstance(reply, Refused) for reply in found):
        return  # another process has made it
    kept = [Amounts(*reply) for reply in found]
    total = ledger.total if any(ledger.total) else sum_of(kept)
    quotas = scaled(kept, total)
    fields = {"making": "", "total": packed(total)} | {str(i): packed(quota) for i, quota in enumerate(quotas)}
    version = yield from change(space, ledger, fields)
    if version is not None:
        yield from apply_limits(space, Ledger(version, total, quotas))


def _being_made(space: Namespace, ledger: Ledger) -> Plan[bool]:
    """Return whether another process began to make it in this epoch."""
    first = space.keys.shards[0]
    epoch = yield from Command(first, ("HGET", first.epoch, "epoch"), lambda reply: int(reply or 0))
    return ledger.version >= epoch * EPOCH


def apply_limits(space: Namespace, ledger: Ledger, shards: Sequence[int] | None = None) -> Plan[None]:
    """Give shards (all, if none are named) the limits that the ledger has for them.

    They may hold more; the worker's head-room, or `lower`, takes it away.
    """
    wanted = range(len(ledger.quotas)) if shards is None else shards
    calls = [limit(space.keys.shards[i], ledger.version, ledger.limit(i)) for i in wanted]
    for reply in (yield from Pipeline(calls)):
        collect(reply)


def move_quotas(space: Namespace, ledger: Ledger, changes: Mapping[int, Amounts], *, fence: str = "") -> Plan[bool]:
    """Give shards other quotas, whose sum is not greater.

    Returns False where another process changed the ledger, or where a shard that has to lose cannot evict what it takes;
    then nothing has changed.
    """
    fields = {f"next.{i}": packed(quota) for i, quota in changes.items()}
    version = yield from change(space, ledger, fields, fence=fence)
    if version is None:
        return False
    return (yield from _finish(space, replace(ledger, version=version, next=dict(changes)), fence))


def _finish(space: Namespace, ledger: Ledger, fence: str) -> Plan[bool]:
    """Finish the change that is under way, or undo it."""
    shards = space.keys.shards
    lowering = [lower(space, shards[i], ledger.version, ledger.limit(i)) for i in ledger.losing]
    confirmed = yield from Parallel(lowering)
    failure = next((c for c in confirmed if isinstance(c, DistierError) and not isinstance(c, Full)), None)
    done = all(c is True for c in confirmed)
    cleared = {f"next.{i}": "" for i in ledger.next}
    coming = {str(i): packed(quota) for i, quota in ledger.next.items()} if done else {}
    version = yield from change(space, ledger, cleared | coming, fence=fence)
    if version is not None:
        quotas = ledger.moved() if done else ledger.quotas
        yield from apply_limits(space, Ledger(version, ledger.total, quotas), list(ledger.next))
        yield from Count("shares.moved" if done else "shares.undone")
    if failure:
        raise failure
    return done and version is not None


def lower(space: Namespace, shard: Shard, version: int, amounts: Amounts) -> Plan[bool]:
    """Give a shard smaller limits and evict until it holds no more. Returns whether that was reached."""
    for _ in range(LOWER_ROUNDS_MAX):
        reply = yield from limit(shard, version, amounts)
        if not isinstance(reply, Over):
            return not isinstance(reply, Refused)
        room = yield from find_room(space, shard, reply)
        if not room.moves:
            return False
        yield from demote(shard, "share", room.moves)
    return False


def enlarge_quota(space: Namespace, shard: Shard, tokens: int, size_bytes: int) -> Plan[bool]:
    """Enlarge this shard's quota of hot so that a module of this size fits, plus the head-room that the worker keeps free.

    Returns False where the budget of the namespace is too small, where the others cannot evict what it takes, or where one
    of them does not reply. The last is no fault of a call whose own shard replies: the module goes where it can go without.
    """
    if space.config.shards == 1:
        return False
    try:
        yield from all_answer(space)
        return (yield from _enlarge_quota(space, shard, tokens, size_bytes))
    except Unavailable:
        yield from Count("shares.refused")
        return False


def all_answer(space: Namespace) -> Plan[None]:
    """Raise `Unavailable` at the first sign that a shard does not reply.

    Waiting for it would take the time that the call needs to continue without it.
    """
    look = [Command(s, ("EXISTS", s.epoch), int, retry=False, hint=HINT_S) for s in space.keys.shards]
    for reply in (yield from Pipeline(look)):
        collect(reply)


def _enlarge_quota(space: Namespace, shard: Shard, tokens: int, size_bytes: int) -> Plan[bool]:
    free = 1 - space.config.worker.headroom
    for _ in range(TRIES_MAX):
        ledger = yield from settled(space)
        total, mine = ledger.total, ledger.quotas[shard.index]
        need = Amounts(min(total.hot_tokens, int(tokens / free) + 1), min(total.hot_bytes, int(size_bytes / free) + 1))
        if tokens > total.hot_tokens or size_bytes > total.hot_bytes:
            return False
        if need.fits(mine):
            yield from apply_limits(space, ledger, [shard.index])
            return True
        changes = enlarged(ledger, shard.index, need, [seen.used for seen in (yield from read_holdings(space))])
        if changes is None:
            return False
        yield from Count("shares.asked")
        yield from move_quotas(space, ledger, changes)
    return False


def read_holdings(space: Namespace) -> Plan[list[ShardHoldings]]:
    """Return what each shard holds, and how old its next victims are."""
    calls: list[Command[Any]] = []
    for s in space.keys.shards:
        calls += [
            Command(
                s,
                ("HMGET", s.usage, *BUDGETS.values(), "hot_count"),
                numbers,
            ),
            Command(s, ("ZRANGE", s.hot, 0, 0, "WITHSCORES"), _score),
            Command(s, ("ZRANGE", s.warm, 0, 0, "WITHSCORES"), _score),
            Command(s, ("HGET", s.limits, "warm_ttl_ms"), lambda reply: int(reply or 0)),
            server_ms(s),
            Command(s, ("HMGET", s.epoch, "hot_floor", "warm_floor"), lambda r: tuple(float(n or 0) for n in r)),
        ]
    replies = [collect(r) for r in (yield from Pipeline(calls))]
    seen, floors = [], []
    for used, last_use_ms, due_ms, ttl_ms, now_ms, floor in zip(*(replies[n::6] for n in range(6)), strict=True):
        hot_age_ms = None if last_use_ms is None else now_ms - last_use_ms
        warm_age_ms = None if due_ms is None else now_ms + ttl_ms - due_ms
        seen.append(ShardHoldings(Amounts(*used[:4]), used[4], used[2], hot_age_ms, warm_age_ms))
        floors.append(Floors(now_ms, *floor))
    return valued(seen, space.process.note_floors(floors), floors)


def _score(reply: Any) -> int | None:
    return int(float(reply[0][1])) if reply else None
