"""Keeping a copy of what was read further up: in hot, or as a frame in warm."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.outcome import MOVED, Outcome, Refusal
from distier.effects import Count, LocalPut, Pipeline, Plan, RunScript, Used
from distier.errors import Corrupt, DistierError, Full, Unavailable
from distier.lua import Applied, Installed, Move, Over, Refused, Released, install, promote
from distier.plans.common.content import make_frame
from distier.plans.common.leases import give_back
from distier.plans.common.namespace import Located, Namespace
from distier.plans.common.touches import send_touch
from distier.plans.tier.ledger import enlarge_quota
from distier.plans.tier.room import with_room
from distier.policy.admission import is_sampled


def keep(plan: Plan[Outcome]) -> Plan[Outcome]:
    """Run `to_hot` or `to_warm` for a read that has its content, and never fail.

    The read succeeds without a copy where there is no room for one (Redis is at maxmemory, or a victim cannot leave), and
    where Redis no longer replies.
    """
    try:
        outcome = yield from plan
        if outcome is Outcome.NOT_ADMITTED:
            yield Count("keeps.not_admitted")
        return outcome
    except (Full, Corrupt):
        yield Count("keeps.refused")
        return Outcome.NO_ROOM
    except Unavailable:
        yield Count("keeps.failed")
        return Outcome.UNAVAILABLE


def to_hot(
    space: Namespace, shard: Shard, record: Record, content: bytes, reason: str, keep: Collection[str] = ()
) -> Plan[Outcome]:
    """Make this version hot if there is room. Modules in `keep` are not evicted for it."""

    def attempt(moves: Sequence[Move]) -> RunScript[Applied | Over | Refused]:
        return promote(shard, record.id, record.order.write_id, content, reason, moves)

    bar, uses = space.process.bar(shard, "hot"), space.process.warm.get(record.id, 0.0)
    if reason == "uses" and bar.refuses(uses, len(content)):
        space.process.note_not_admitted(record.id)
        return Outcome.NOT_ADMITTED
    reply = yield from with_room(space, shard, attempt, keep=keep)
    if is_too_large(reply) and (yield from enlarge_quota(space, shard, record.tokens, len(content))):
        reply = yield from with_room(space, shard, attempt, keep=keep)
    if isinstance(reply, Over):
        return Outcome.NO_ROOM
    outcome = outcome_of(reply)
    if outcome in (Outcome.NOT_ADMITTED, Outcome.TOO_LARGE_FOR_HOT):
        space.process.note_not_admitted(record.id)
        bar.note_refused(uses, len(content))
    elif outcome is MOVED and reason == "uses":
        bar.note_admitted(uses, len(content))
    yield Count("moves.promoted", int(outcome is MOVED))
    return outcome


def is_refused(reply: object, why: Refusal) -> bool:
    """Return whether a script refused for this reason."""
    return isinstance(reply, Refused) and reply.why is why


def is_too_large(reply: object) -> bool:
    """Return whether a module does not fit into hot, however empty: of one shard among several, that means its quota."""
    return is_refused(reply, Refusal.TOO_LARGE)


_REFUSED = {
    Refusal.ALREADY: Outcome.ALREADY,
    Refusal.CHANGED: Outcome.CHANGED,
    Refusal.TOO_LARGE: Outcome.TOO_LARGE_FOR_HOT,
    Refusal.NOT_ADMITTED: Outcome.NOT_ADMITTED,
}


def outcome_of(reply: Applied | Refused) -> Outcome:
    """Return what the reply to a promotion means."""
    return MOVED if isinstance(reply, Applied) else _REFUSED[reply.why]


def to_warm(
    space: Namespace, shard: Shard, record: Record, content: bytes, holder: str, uses: int, likely: float = 0.0
) -> Plan[Outcome]:
    """Leave a warm copy of this clean version if there is room, release the lease that `holder` has, and record the uses.

    `likely` is the probability of a use that was predicted, which counts as that many uses in the admission.

    All of that is one script. Only where dirty modules would have to leave warm, more follow. Where warm will most likely not
    admit the copy, no frame is made, which costs more than all the rest.
    """
    at, id, write_id = Located(space, shard, record.id), record.id, record.order.write_id
    bar = space.process.bar(shard, "warm")
    expected = space.process.warm.get(id, 0.0) + uses + likely
    skipped = bar.refuses(expected, len(content)) and not is_sampled(id)
    if skipped and not (yield from _is_wanted(at, holder, uses)):
        space.process.guess_warm(id, expected)
        return Outcome.NOT_ADMITTED
    kind, frame = yield from make_frame(space, content, write_id, fast=True, clean_in=shard)
    attempt = install(shard, id, write_id, kind, frame, "get", holder=holder, uses=uses, likely=likely)
    first = yield from _end_fetch(at, attempt)
    reply = first.change
    if likely:
        pass  # the count of a prediction is a guess, and must refuse no copy of a read
    elif is_refused(reply, Refusal.NOT_ADMITTED):
        bar.note_refused(max(first.uses, expected), len(content))
    elif isinstance(reply, Applied):
        bar.note_admitted(max(first.uses, expected), len(content))

    def again(moves: Sequence[Move]) -> RunScript[Any]:
        call: RunScript[Any] = install(shard, id, write_id, kind, frame, "get", moves, likely=likely)
        parse = call.parse
        call.parse = lambda reply: parse(reply).change
        return call

    if isinstance(reply, Over):
        reply = yield from with_room(space, shard, again, reply)
    if isinstance(reply, Over):
        return Outcome.NO_ROOM
    if isinstance(reply, Refused):
        return Outcome.TOO_LARGE_FOR_WARM if reply.why is Refusal.TOO_LARGE else _REFUSED[reply.why]
    return MOVED


def _is_wanted(at: Located, holder: str, uses: int) -> Plan[bool]:
    """Release the lease of a fetch whose copy is not worth a frame, and note its use. Returns True where nothing was done,
    because readers wait for the copy."""
    space, shard, id = at
    if (yield from give_back(shard, shard.lease(id), holder, unless_waiting=True)) is Released.WANTED:
        return True
    if uses and (touch := (yield Used(shard, id))) is not None:
        yield from send_touch(space, [touch])
    return False


def _end_fetch(at: Located, call: RunScript[Installed]) -> Plan[Installed]:
    """Send the script that ends a fetch. The lease is released even where Redis refuses that script."""
    space, shard, id = at
    (reply,) = yield from Pipeline([call])
    if isinstance(reply, DistierError):
        yield from give_back(shard, shard.lease(id), str(call.args[5]))
        raise reply
    ended: Installed = reply
    space.process.dictionary[shard] = ended.dictionary
    if ended.uses >= 0:
        space.process.guess_warm(id, ended.uses)
    return ended


def keep_warm(
    space: Namespace, shard: Shard, record: Record, content: bytes, holder: str, uses: int, likely: float = 0.0
) -> Plan[None]:
    """Leave a warm copy of this clean version where this node has them: on its disk, in Redis, or both.

    Release the lease that `holder` has. `uses` are recorded together with a copy in Redis. `likely`: see `to_warm`.
    """
    if space.node is not None:
        yield from LocalPut(record, content)
    if space.local_only:
        yield from give_back(shard, shard.lease(record.id), holder)
    else:
        yield from keep(to_warm(space, shard, record, content, holder, uses, likely))
