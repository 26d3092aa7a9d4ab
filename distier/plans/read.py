"""Reading: get, get_many, exists, where, list.

    hot       one plain HGETALL, and the content is in the reply
    warm      one more round trip: the frame, together with the gathered uses; none more where this process has lately
              found the module there, and asked for both at once
    cold      one process fetches the object (a lease per module keeps the others waiting for its result), checks it,
              and leaves a warm copy behind

A miss is answered from the record alone: while a module exists, its record does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.ids import encode_prefix
from distier.domain.keys import Shard
from distier.domain.module import TIERS, Module, Placement, Record, Tier, parse_copy, parse_hot, parse_record
from distier.effects import (  # fmt: skip
    ArchiveGet,
    Cancelled,
    Command,
    Count,
    LocalGet,
    LocalPut,
    NewToken,
    Offload,
    Parallel,
    Pipeline,
    Plan,
    RunScript,
    Sleep,
    Used,
    collect,
)
from distier.errors import (
    ArchiveUnavailable,
    Corrupt,
    DeadlineExceeded,
    DistierError,
    Full,
    Invalid,
    NotFound,
    Recovering,
    RedisUnavailable,
    Unavailable,
)
from distier.lua import Applied, Move, Opened, Over, Refused, Seen, install, promote, release, state, where

from .peers import ask_content, holders_of, holds_command, others
from .records import (
    UNPACKING,
    check_content,
    chunks,
    content_of,
    fields_command,
    frame_command,
    is_current,
    lease_command,
    make_frame,
    record_command,
)
from .recover import list_epochs, newest_record, settle_record, settle_records, shard_state, verify
from .rescue import rescue_if_needed
from .room import with_room
from .shares import make_share
from .space import Space

AT_ONCE_BYTES = 64 * 1024
"""To open the frame of as much takes less time than handing that to a thread."""
LEASE_MS = 10_000
"""The longest that a lease lasts; see `patience_ms`."""
WAIT_FIRST_S = 0.002
WAIT_MAX_S = 0.05
LOST_MAX = 5
"""How often a dirty copy must be missing beside the same record: once or twice it was promoted and demoted between our
reads."""
REREADS_MAX = 20
"""A module that changes its place between every two reads of one `get` this often is not moving, it is broken."""
PART_MAX = 500
PART_MAX_BYTES = 8 * 1024 * 1024
"""The frames of so many modules, and of so much content, are asked for and opened at once; of one that is larger alone."""


def read(space: Space, id: str) -> Plan[Module | None]:
    """The module, from the nearest copy; None if there is none."""
    shard, states = space.shard(id), space.states
    known = states.get(shard)  # what proves a read is known before it: see `read_record`
    frame: bytes | None = None
    if id in space.warm and space.node is None:
        replies = yield from Pipeline([fields_command(shard, id), frame_command(shard, id)])
        fields, frame = map(collect, replies)
    else:
        fields = yield from fields_command(shard, id)
    if states is not space.states:
        known = None
    module = parse_hot(id, fields, known.epoch, known.verified) if known else None
    if module is not None:
        return (yield from serve_hot(space, shard, module))
    if known and frame is not None and (module := open_warm(id, fields, frame, known)) is not None:
        return (yield from _serve_warm(space, shard, module, fields))
    record = yield from settle_record(space, shard, id, parse_record(id, fields), known)
    if record is None:
        yield Count("misses")
        return None
    if record.content is not None:
        return (yield from serve_hot(space, shard, record.hot_module()))
    return (yield from read_below(space, shard, record, frame))


def serve_hot(space: Space, shard: Shard, module: Module) -> Plan[Module]:
    space.warm.pop(module.id, None)
    yield Count("hits.hot")
    touch = yield Used(shard, module.id)
    if touch is not None:
        yield from send_touch(space, [touch])
    return module


def open_warm(id: str, fields: Mapping[bytes, bytes], frame: bytes, known: Opened) -> Module | None:
    """The module of a small warm record, with the content of the frame that was read along: the short way, as `parse_hot` is
    for hot ones. None for anything else; the long way then says what it is."""
    try:
        size_bytes = int(fields[b"bytes"])
        if fields[b"tier"] != b"warm" or size_bytes > AT_ONCE_BYTES:
            return None
        content = codec.decompress_frame(fields[b"codec"].decode(), frame, size_bytes=size_bytes)
    except (KeyError, ValueError, Corrupt):
        return None
    if hashlib.sha256(content).hexdigest().encode() != fields.get(b"sha256"):
        return None
    return parse_copy(id, fields, content, "warm", known.epoch, known.verified)


def _serve_warm(space: Space, shard: Shard, module: Module, fields: Mapping[bytes, bytes]) -> Plan[Module]:
    yield Count("hits.warm")
    touch = yield from _use(space, shard, module.id)
    if touch is not None:
        counts = yield from send_touch(space, [touch])
        if counts.get(module.id, 0.0) >= space.config.storage_tiers.promotion_threshold:
            yield from keep(_fields_to_hot(space, shard, module, fields))
    return module


def _fields_to_hot(space: Space, shard: Shard, module: Module, fields: Mapping[bytes, bytes]) -> Plan[str]:
    record = parse_record(module.id, fields)
    assert record is not None
    return (yield from to_hot(space, shard, record, module.content, "uses"))


def send_touch(space: Space, touches: Sequence[Any]) -> Plan[dict[str, float]]:
    """Send gathered uses; answers the counts. Recency is a hint: a batch that cannot be sent is dropped, the read goes on."""
    counts: dict[str, float] = {}
    for reply in (yield from Pipeline(touches)) if touches else ():
        if isinstance(reply, DistierError):
            yield Count("touches.lost")
        else:
            counts |= reply
    space.learn_uses(counts)
    return counts


def read_below(space: Space, shard: Shard, record: Record, frame: bytes | None = None) -> Plan[Module | None]:
    """The module from its warm or cold copy; promotes it where it has been used often enough. `frame`: read after the
    record, if it was."""
    lost = 0
    for _ in range(REREADS_MAX):
        if space.node is not None and record.clean:
            module = yield from read_local(space, shard, record)
            if module is not None:
                return module
        if record.tier == "cold" and record.clean:
            found = yield from _fetch_alone(space, shard, record, (yield from _use(space, shard, record.id)))
        else:
            found = yield from _content_below(space, shard, record, frame)
        frame = None
        if found is not None:
            content, tier = found
            yield Count(f"hits.{tier}")
            return record.module(content, tier)
        # It moved between our reads: look again.
        again = yield from newest_record(space, shard, record.id)
        if again is None:
            yield Count("misses")
            return None
        if again.content is not None:
            return (yield from serve_hot(space, shard, again.hot_module()))
        lost += again == record and not record.clean
        if lost >= LOST_MAX:
            raise Corrupt(
                f"module {record.id!r} ({record.order}) is not archived yet and its only copy is gone or damaged; "
                "was a key changed by hand? Run `distier doctor`"
            )
        record = again
    raise DeadlineExceeded(f"module {record.id!r} moved {REREADS_MAX} times while it was read; try again")


def read_local(space: Space, shard: Shard, record: Record) -> Plan[Module | None]:
    """The module from this node's disk, with nothing sent to Redis: its use goes with the next batch, and where Redis then
    counts enough of them, the next read here promotes it. None where this version is not on the disk."""
    content = yield LocalGet(record)
    if content is None:
        return None
    yield Count("hits.warm")
    uses = space.warm.get(record.id, 0.0)
    space.guess_warm(record.id, uses + 1)
    touch = yield Used(shard, record.id)
    if touch is not None:
        yield from send_touch(space, [touch])
    if uses >= space.config.storage_tiers.promotion_threshold:
        space.guess_warm(record.id, 0.0)  # where there is no room now, not before as many reads more
        yield from keep(to_hot(space, shard, record, content, "uses"))
    return record.module(content, "warm")


def _use(space: Space, shard: Shard, id: str) -> Plan[RunScript[Any] | None]:
    """Note a use. Answers the script that tells Redis where uses are due, or where this one may be the one that promotes, as
    far as this process knows."""
    touch: RunScript[Any] | None = yield Used(shard, id, flush=_may_promote(space, id))
    return touch


def _may_promote(space: Space, id: str) -> bool:
    """Guess one use more. Whether this one may be the one that promotes, as far as this process knows."""
    threshold = space.config.storage_tiers.promotion_threshold
    guess = space.warm.get(id, threshold) + 1
    space.guess_warm(id, guess)
    return guess >= threshold


def _use_many(space: Space, used: Mapping[Shard, Sequence[str]], *, below_hot: bool = False) -> Plan[dict[str, float]]:
    """Note one use of each. Answers the counts of those that were told to Redis: in a round trip of its own, if it is time, or
    if one of them, being `below_hot`, may be promoted."""
    touches = []
    for shard, ids in used.items():
        flush = below_hot and True in [_may_promote(space, id) for id in ids]
        while (touch := (yield Used(shard, ids, flush))) is not None:
            touches.append(touch)
            ids = ()
    return (yield from send_touch(space, touches))


def _is_hot_now(space: Space, id: str, touched: Any) -> bool:
    """Whether the use that was told made enough of them for hot; `touched` is what the script answered, None if it was not
    sent."""
    if not isinstance(touched, dict):
        return False
    space.learn_uses(touched)
    return bool(touched.get(id, 0.0) >= space.config.storage_tiers.promotion_threshold)


def _content_below(space: Space, shard: Shard, record: Record, frame: bytes | None) -> Plan[tuple[bytes, Tier] | None]:
    """The content from the frame or the archive, promoted if there are uses enough. None where neither is there (any
    more)."""
    touch = yield from _use(space, shard, record.id)
    calls: list[Any] = [touch] if touch is not None else []
    if frame is None:
        calls.append(frame_command(shard, record.id))
    replies = (yield from Pipeline(calls)) if calls else []
    if frame is None:
        frame = collect(replies[-1])
    hot_now = _is_hot_now(space, record.id, replies[0] if touch is not None else None)
    damaged = None
    if frame is not None and record.tier == "warm":
        damaged = frame  # unless it opens
        content = yield from _try_frame(record, frame)
        if content is not None:
            if space.node is not None and record.clean:
                yield from LocalPut(record, content)
            if hot_now:
                yield from keep(to_hot(space, shard, record, content, "uses"))
            return content, "warm"
    if not record.clean:
        return None
    return (yield from _fetch_alone(space, shard, record, None, hot_now, damaged))


def _try_frame(record: Record, frame: bytes) -> Plan[bytes | None]:
    """The frame's content, None if it is not the record's: damaged, or of another version, because the record was read
    before it. The archive has a clean version whole; of a dirty one the caller reads the record again."""
    content = yield from _opened(record, frame)
    if content is None and record.clean:
        yield Count("healed.warm")
    return content


def _opened(record: Record, frame: bytes) -> Plan[bytes | None]:
    try:
        return (yield from content_of(record, frame))
    except Corrupt:
        return None


def keep(plan: Plan[str]) -> Plan[str]:
    """`to_hot` or `to_warm` beside a read that has its content: where there is no room for a copy (Redis is at
    maxmemory, or a victim cannot leave), or Redis does not answer any more, the read succeeds without."""
    try:
        return (yield from plan)
    except (Full, Corrupt) as e:
        yield Count("keeps.refused")
        return f"no room: {e}"
    except Unavailable as e:
        yield Count("keeps.failed")
        return f"unavailable: {e}"


def to_hot(
    space: Space, shard: Shard, record: Record, content: bytes, reason: str, keep: Collection[str] = ()
) -> Plan[str]:
    """Make this version hot if there is room: `hot`, or why not. Modules in `keep` are not evicted for it."""

    def attempt(moves: Sequence[Move]) -> RunScript[Applied | Over | Refused]:
        return promote(shard, record.id, record.order.tok, content, reason, moves)

    reply = yield from with_room(space, shard, attempt, keep=keep)
    if is_too_large(reply) and (yield from make_share(space, shard, record.tokens, len(content))):
        reply = yield from with_room(space, shard, attempt, keep=keep)
    if isinstance(reply, Over):
        return "no room"
    word = promoted_word(reply)
    yield Count("moves.promoted", 1 if word == "hot" else 0)
    return word


def is_too_large(reply: object) -> bool:
    """Whether it does not fit into hot, however empty: of one shard among several, that means its share."""
    return isinstance(reply, Refused) and reply.word == "TOO_LARGE"


def promoted_word(reply: Applied | Refused) -> str:
    """What the answer to a promotion means: `hot`, or why not."""
    if isinstance(reply, Applied):
        return "hot"
    return {"ALREADY": "already", "CHANGED": "changed", "TOO_LARGE": "too large for hot"}[reply.word]


def to_warm(
    space: Space, shard: Shard, record: Record, content: bytes, reason: str, also: Sequence[RunScript[Any]] = ()
) -> Plan[str]:
    """Leave a warm copy of this clean version if there is room: `warm`, or why not. `also` is sent along."""
    kind, frame = yield from make_frame(space, content, fast=True)

    def attempt(moves: Sequence[Move]) -> RunScript[Applied | Over | Refused]:
        return install(shard, record.id, record.order.tok, kind, frame, reason, moves)

    first = collect((yield from Pipeline([attempt(()), *also]))[0])
    reply = yield from with_room(space, shard, attempt, first)
    if isinstance(reply, Over):
        return "no room"
    word = getattr(reply, "word", "OK")
    return {"OK": "warm", "CHANGED": "changed", "TOO_LARGE": "too large for warm"}[word]


def keep_warm(
    space: Space, shard: Shard, record: Record, content: bytes, reason: str, also: Sequence[RunScript[Any]] = ()
) -> Plan[str]:
    """Leave a warm copy of this clean version where this node has them: on its disk, in Redis, or both. `also` is sent
    along."""
    kept = space.node is not None and (yield from LocalPut(record, content))
    if not space.local_only:
        return (yield from keep(to_warm(space, shard, record, content, reason, also)))
    if also:
        yield from Pipeline(also)
    return "warm" if kept else "no room"


def patience_ms(space: Space) -> int:
    """How long one holder of the lease of a fetch keeps others waiting: a third of what the archive or the call may take.
    So who takes over from a holder that was killed or hangs has twice that time left for its own fetch, also where the
    archive is slow and not the holder."""
    return min(space.config.storage_tiers.cold.timeout_ms // 3, space.config.deadline_ms // 3, LEASE_MS)


def _fetch_alone(
    space: Space,
    shard: Shard,
    record: Record,
    touch: RunScript[Any] | None,
    hot_now: bool = False,
    damaged: bytes | None = None,
) -> Plan[tuple[bytes, Tier] | None]:
    """Fetch a cold version, once in the fleet: who has the lease fetches, the others wait for what it leaves. `touch` is sent
    along; `damaged` is a frame that is not worth waiting for.

    The lease saves work and guards nothing: two fetches of one immutable object do no harm. A holder that dies or hangs is
    overtaken when its lease ends, or when somebody has waited for it as long as its own patience lasts (the holder's may be
    longer): that one ends the lease, by the holder's name, and again one of all takes it. So an archive that is slow, too,
    gets one more GET for each such time, and not one from everybody. None where the module changed while waiting.
    """
    lease, me = shard.lease(record.id), (yield from NewToken())
    patience_s = patience_ms(space) / 1000
    wait_s, waited_s, waited_for = WAIT_FIRST_S, 0.0, b""
    while True:
        take = lease_command(shard, lease, me, patience_ms(space))
        nodes = yield from others(space)
        calls: list[Any] = [take, record_command(shard, record.id), frame_command(shard, record.id)]
        calls += [holds_command(shard, node, record.id) for node in nodes]
        try:
            replies = yield from Pipeline([*calls, touch] if touch is not None else calls)
        except Cancelled:  # it may be this one's by now
            yield from give_back(shard, lease, me)
            raise
        if touch is not None:
            hot_now, touch = _is_hot_now(space, record.id, replies.pop()), None
        # Where Redis refuses writes (maxmemory, no replica, no disk) there are no leases: then everybody fetches.
        holder = None if isinstance(replies[0], Full | RedisUnavailable) else collect(replies[0])
        now, frame = collect(replies[1]), collect(replies[2])
        is_warm = now is not None and now.tier == "warm" and frame not in (None, damaged)
        if now is None or now.order != record.order or now.content is not None or is_warm:
            if holder is None:
                yield from give_back(shard, lease, me)
            return None
        if space.node is not None:  # another process of this node may have fetched it since this one looked
            content = yield from LocalGet(record)
            if content is not None:
                if holder is None:
                    yield from give_back(shard, lease, me)
                return content, "warm"
        if holder is None:
            holding = holders_of(nodes, replies[3:])
            return (yield from _fetch_and_keep(space, shard, record, hot_now, lease, me, holding))
        if holder != waited_for:
            waited_s, waited_for = 0.0, holder
        elif waited_s >= patience_s:
            yield from give_back(shard, lease, holder.decode(errors="replace"))
            continue
        yield Count("waits.lease")
        yield Sleep(wait_s)
        waited_s += wait_s
        wait_s = min(wait_s * 2, WAIT_MAX_S)


def _fetch_and_keep(
    space: Space, shard: Shard, record: Record, hot_now: bool, lease: str, holder: str, holding: Sequence[str]
) -> Plan[tuple[bytes, Tier] | None]:
    try:
        content = yield from ask_content(space, shard, record, holding)
        tier: Tier = "cold" if content is None else "warm"
        if content is None:
            content = yield from fetch_unless_moved(space, shard, record)
        if content is not None:
            hot = hot_now and (yield from keep(to_hot(space, shard, record, content, "uses"))) in ("hot", "already")
            if not hot:
                done = release(shard, lease, holder)
                yield from keep_warm(space, shard, record, content, "get", [done])
                return content, tier
    except (DistierError, Cancelled):
        yield from give_back(shard, lease, holder)
        raise
    yield from give_back(shard, lease, holder)
    return None if content is None else (content, tier)


def give_back(shard: Shard, lease: str, holder: str) -> Plan[None]:
    """Release a lease. If that fails the lease ends by itself; it must not hide what the caller has to say."""
    try:
        yield from release(shard, lease, holder)
    except DistierError:
        yield Count("leases.left")


class ObjectGone(Corrupt):
    """The archive says that it does not have what a record rests on."""


def fetch_unless_moved(space: Space, shard: Shard, record: Record) -> Plan[bytes | None]:
    """`fetch_cold`; None where the object is gone because a newer version has come and the sweep was quick, or where a
    newer one is in the archive that nobody has applied: its writer died between the two."""
    try:
        return (yield from fetch_cold(space, record))
    except Corrupt as e:
        if not (yield from is_current(shard, record)):
            return None
        if isinstance(e, ObjectGone):
            yield from verify(space, shard, record.id)
        if (yield from is_current(shard, record)):
            known = yield from shard_state(space, shard)
            if isinstance(e, ObjectGone) and (yield from list_epochs(space, shard, known.epoch)):
                raise Recovering(
                    f"what module {record.id!r} rests on was swept in a newer epoch: this Redis is not the primary of its "
                    "shard any more. Connect to the one that is"
                ) from e
            raise
        return None


def fetch_cold(space: Space, record: Record) -> Plan[bytes]:
    """The content of a clean version from the archive, checked. Raises `ArchiveUnavailable` or `Corrupt`."""
    key = names.object_key(space.namespace, record)
    got = yield from ArchiveGet(key, max_bytes=record.size_bytes + record.size_bytes // 2 + 4096)
    if got is None:
        raise ObjectGone(
            f"the archive has no object {key!r}, which module {record.id!r} ({record.order}) rests on; "
            "was it deleted by hand? `distier fsck` lists what is missing"
        )
    yield Count("archive.bytes_read", len(got.data))
    try:
        content = yield from Offload(
            record.size_bytes * 4, lambda: codec.decompress_xz(got.data, max_bytes=record.size_bytes), UNPACKING
        )
    except Corrupt as e:
        raise Corrupt(f"the archived object {key!r} of module {record.id!r} is damaged: {e}") from e
    return check_content(record, content, "archived")


# -- many --------------------------------------------------------------------------------------------------------


def read_many(space: Space, ids: Sequence[str]) -> Plan[dict[str, Module | None]]:
    """Modules by id, None for misses. Hot ones in one round trip per 500; after it warm ones in one per 500 or 8 MiB, and one
    more where their uses are due; then cold ones in parallel.

    Raises what any one of them raises: a fault is not a miss.
    """
    found: dict[str, Module | None] = dict.fromkeys(ids)
    below: list[tuple[Shard, Record]] = []
    for chunk in chunks(list(found), 500):
        below += yield from _read_hot(space, chunk, found)
    if space.node is not None:
        below = yield from _read_local_many(space, below, found)
    below = yield from _read_warm_many(space, below, found)
    modules = yield from Parallel([read_below(space, shard, record) for shard, record in below])
    for (_, record), module in zip(below, modules, strict=True):
        found[record.id] = collect(module)
    return found


def _read_local_many(
    space: Space, below: list[tuple[Shard, Record]], found: dict[str, Module | None]
) -> Plan[list[tuple[Shard, Record]]]:
    """Puts those that this node's disk has into `found`; answers the others."""
    rest = []
    for shard, record in below:
        module = (yield from read_local(space, shard, record)) if record.clean else None
        if module is None:
            rest.append((shard, record))
        else:
            found[record.id] = module
    return rest


def _read_warm_many(
    space: Space, below: list[tuple[Shard, Record]], found: dict[str, Module | None]
) -> Plan[list[tuple[Shard, Record]]]:
    """Puts those that have a frame in Redis into `found`; answers the others, and those that moved meanwhile."""
    rest = [(shard, record) for shard, record in below if record.tier != "warm"]
    promoted: list[Plan[str]] = []
    for part in by_bytes([(shard, record) for shard, record in below if record.tier == "warm"]):
        read: dict[Shard, list[tuple[Record, bytes]]] = {}
        for (shard, record), content in zip(part, (yield from open_frames(part)), strict=True):
            if content is None:  # the long way says why
                rest.append((shard, record))
                continue
            found[record.id] = record.module(content, "warm")
            read.setdefault(shard, []).append((record, content))
            if space.node is not None and record.clean:
                yield from LocalPut(record, content)
        yield Count("hits.warm", sum(map(len, read.values())))
        used = {shard: [record.id for record, _ in some] for shard, some in read.items()}
        counts = yield from _use_many(space, used, below_hot=True)
        promoted += [
            keep(to_hot(space, shard, record, content, "uses"))
            for shard, some in read.items()
            for record, content in some
            if counts.get(record.id, 0.0) >= space.config.storage_tiers.promotion_threshold
        ]
    for result in (yield Parallel(promoted)):  # at the end: those may push frames out that are still to be read
        collect(result)
    return rest


def open_frames(part: Sequence[tuple[Shard, Record]]) -> Plan[list[bytes | None]]:
    """The contents of some warm records, in one round trip; None where the frame is gone, damaged or of another version."""
    frames = yield from Pipeline([frame_command(shard, record.id) for shard, record in part])
    contents = []
    for (_, record), reply in zip(part, frames, strict=True):
        frame = collect(reply)
        contents.append(None if frame is None else (yield from _opened(record, frame)))
    return contents


def by_bytes(warm: Sequence[tuple[Shard, Record]]) -> Iterator[list[tuple[Shard, Record]]]:
    """Parts of what `open_frames` takes at once."""
    part: list[tuple[Shard, Record]] = []
    size_bytes = 0
    for shard, record in warm:
        if part and (len(part) >= PART_MAX or size_bytes + record.size_bytes > PART_MAX_BYTES):
            yield part
            part, size_bytes = [], 0
        part.append((shard, record))
        size_bytes += record.size_bytes
    if part:
        yield part


def _read_hot(space: Space, ids: Sequence[str], found: dict[str, Module | None]) -> Plan[list[tuple[Shard, Record]]]:
    """Puts the hot ones among these into `found`; answers the records of those that are further down."""
    shards = [space.shard(id) for id in ids]
    used: dict[Shard, list[str]] = {shard: [] for shard in shards}
    states, known = space.states, {shard: space.states.get(shard) for shard in used}
    replies = yield from Pipeline([fields_command(shard, id) for shard, id in zip(shards, ids, strict=True)])
    same = states is space.states
    rest: dict[str, Record | None] = {}
    for id, shard, reply in zip(ids, shards, replies, strict=True):
        fields, before = collect(reply), known[shard]
        module = parse_hot(id, fields, before.epoch, before.verified) if same and before else None
        if module is not None:
            found[id] = module
            used[shard].append(id)
        else:
            rest[id] = parse_record(id, fields)
    below = []
    settled = yield from settle_records(space, list(rest), list(rest.values()), known, states)
    for id, record in zip(rest, settled, strict=True):
        if record is None:
            yield Count("misses")
        elif record.content is not None:
            found[id] = record.hot_module()
            used[space.shard(id)].append(id)
        else:
            below.append((space.shard(id), record))
    yield Count("hits.hot", sum(map(len, used.values())))
    yield from _use_many(space, used)
    return below


# -- looking without touching ------------------------------------------------------------------------------------


def exists(space: Space, id: str) -> Plan[bool]:
    shard, states = space.shard(id), space.states
    known = states.get(shard)
    words = ("HMGET", shard.module(id), "tier", "seen")
    tier, seen = yield from Command(shard, words, lambda reply: (reply[0], int(reply[1] or 0)))
    if tier is not None and known and states is space.states and max(seen, known.verified) >= known.epoch:
        return bool(tier != b"deleted")
    return (yield from newest_record(space, shard, id)) is not None


def place(space: Space, id: str) -> Plan[Placement | None]:
    """Where the module is, in one consistent look; None if it does not exist."""
    shard = space.shard(id)
    for _ in range(REREADS_MAX):
        states = space.states
        known = states.get(shard)
        seen = yield from where(shard, id)
        record = parse_record(id, seen.fields) if seen else None
        proven = record and known and states is space.states and max(record.seen, known.verified) >= known.epoch
        if seen and record and proven:
            return None if record.deleted else _placement(space, seen, record)
        if (yield from newest_record(space, shard, id)) is None:
            return None
        yield from shard_state(space, shard)
    raise Recovering(f"the shard of module {id!r} changes hands too often; try again")


def _placement(space: Space, seen: Seen, record: Record) -> Placement:
    tier: Tier = "cold" if record.tier == "warm" and record.clean and seen.pttl_ms == -2 else _tier(record)
    stored = {"hot": record.size_bytes, "warm": record.frame_bytes, "cold": record.archived_bytes}[tier]
    archived_key = names.object_key(space.namespace, record) if record.clean else None
    return Placement(
        record.id, tier, record.order, record.tokens, record.size_bytes, stored, record.clean, archived_key,
        record.archived_bytes if record.clean else None, seen.uses, seen.last_use_ms, seen.due_ms,
        seen.pttl_ms if seen.pttl_ms >= 0 else None, seen.dirty_since_ms, seen.pinned_until_ms,
        record.created_ms, record.updated_ms, record.content_type, record.sha256,
    )  # fmt: skip


def _tier(record: Record) -> Tier:
    for tier in TIERS:
        if record.tier == tier:
            return tier
    raise Corrupt(f"the record of module {record.id!r} names no tier but {record.tier!r}; run `distier fsck`")


def need_record(space: Space, id: str) -> Plan[Record]:
    record = yield from newest_record(space, space.shard(id), id)
    if record is None:
        raise NotFound(f"there is no module {id!r} in namespace {space.namespace!r}")
    return record


class Scanned(NamedTuple):
    """The next cursor (0 at the end), the shard's epoch, and (id, tier) of what was found."""

    cursor: int
    epoch: int
    found: list[tuple[str, Tier]]


def scan(space: Space, shard: Shard, prefix: str, tier: str | None, cursor: int, epoch: int = 0) -> Plan[Scanned]:
    """One step through the ids of a shard.

    As Redis' SCAN: what exists all the time is found at least once; what comes or goes meanwhile may be or not. A cursor is
    good for one life of one server, and SCAN names no key that would be refused elsewhere: so the epoch is asked before and
    after it, and where it is not `epoch` all the time, the shard begins anew.
    """
    pattern = shard.module_pattern(encode_prefix(prefix))
    look: Command[Any] = Command(shard, ("SCAN", cursor, "MATCH", pattern, "COUNT", 1000), lambda reply: reply)
    before, scanned, after = [collect(r) for r in (yield from Pipeline([state(shard), look, state(shard)]))]
    if before.epoch != after.epoch or (cursor and before.epoch != epoch):
        return (yield from scan(space, shard, prefix, tier, 0))
    next_cursor, keys = scanned
    ids = [id for id in _ids_of(shard, keys) if id.startswith(prefix)]
    tiers = yield from Pipeline(
        [Command(shard, ("HGET", shard.module(id), "tier"), lambda r: r and r.decode()) for id in ids]
    )
    found = [(id, collect(t)) for id, t in zip(ids, tiers, strict=True)]
    kept = [(id, t) for id, t in found if t and t != "deleted" and tier in (None, t)]
    return Scanned(int(next_cursor), before.epoch, kept)


def _ids_of(shard: Shard, keys: Sequence[bytes]) -> Iterator[str]:
    """The ids of record keys; keys that distier never wrote are passed over."""
    for key in keys:
        with suppress(Invalid):
            yield shard.id_of(key)


def complete(space: Space) -> Plan[None]:
    """Records of all that is archived, as far as it can be read: after a loss of Redis some have none before a rescue, and a
    listing would lack them without a word. Raises `Recovering` where that takes longer than this call has time for."""
    try:
        yield from rescue_if_needed(space)
    except (ArchiveUnavailable, DeadlineExceeded) as e:
        raise Recovering(
            f"Redis was restarted or lost, and namespace {space.namespace!r} is not compared with its archive yet: a listing "
            "might lack modules. Run `distier rescue`, or a worker, which does it"
        ) from e


class Listing:
    """A walk through all shards, a step at a time: `step()` is a plan that answers the next (id, tier) pairs."""

    def __init__(self, space: Space, prefix: str, tier: str | None, limit: int | None) -> None:
        if tier is not None and tier not in TIERS:
            raise Invalid(f"tier is hot, warm or cold, not {tier!r}")
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 0):
            raise Invalid(f"limit is a whole number from 0, not {limit!r}")
        self._space, self._prefix, self._tier = space, prefix, tier
        self._left = limit
        self._shards = list(space.keys.shards)
        self._cursor = self._epoch = 0
        self._seen: set[str] = set()  # SCAN may show a key twice
        self._complete = False

    @property
    def done(self) -> bool:
        return not self._shards or self._left == 0

    def step(self) -> Plan[list[tuple[str, Tier]]]:
        if not self._complete:
            yield from complete(self._space)
            self._complete = True
        shard = self._shards[0]
        self._cursor, self._epoch, found = yield from scan(
            self._space, shard, self._prefix, self._tier, self._cursor, self._epoch
        )
        fresh = [(id, tier) for id, tier in found if id not in self._seen][: self._left]
        self._seen.update(id for id, _ in fresh)
        if self._left is not None:
            self._left -= len(fresh)
        if not self._cursor:
            self._shards.pop(0)
            self._seen.clear()
        return fresh
