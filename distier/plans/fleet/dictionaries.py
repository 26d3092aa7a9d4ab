"""What the worker does about dictionaries for warm copies: it learns them, copies them to all shards, and drops old ones.

    learn     a sample of hot and warm modules, once a day: most are learned from, the others show what that gains
    adopt     the dictionary goes into the archive, and then into each shard, in one script with its name: from then on the
              scripts take frames that were made with it, and none that was made with an earlier one
    drop      a search through the records of warm, some in each round, for names of earlier ones. One that nobody names is
              dropped from the shard; once a day, what no shard has is deleted from the archive

Dictionaries are named by their contents, so two workers that do the same do no harm, and every step may be the last one of a
worker that dies. A search that began after a dictionary was replaced sees every record that names it: no new ones come.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from distier.domain.codec import DICTIONARY_CONTENT_BYTES_MAX, WITH_DICTIONARY
from distier.domain.dictionary import (
    GAIN_MIN,
    SAMPLE_BYTES_MAX,
    SAMPLES_MAX,
    Dictionary,
    Enough,
    dictionaries_prefix,
    dictionary_key,
    divided,
    learning,
    name_in_key,
    name_of,
    ratio,
)
from distier.domain.ids import check_id
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.objects import Listed
from distier.effects import (
    ArchiveDelete,
    ArchiveList,
    ArchivePut,
    Command,
    Count,
    NewToken,
    Now,
    Offload,
    Pipeline,
    Plan,
    collect,
)
from distier.errors import Corrupt, DistierError, Full, Invalid
from distier.lua import drop_dictionary, use_dictionary
from distier.plans.common.commands import chunks, frame_command, numbers, record_command, server_ms, sizes_command
from distier.plans.common.content import content_or_none
from distier.plans.common.dictionaries import current_command, find_dictionary
from distier.plans.common.leases import cut_lease, take_lease
from distier.plans.common.namespace import Namespace
from distier.plans.common.process_state import Naming

EVERY_MS = 24 * 3_600_000
AGAIN_MS = 60_000
"""When to look again where there were too few modules, or the attempt failed."""
SEARCH_MS = 3_600_000
SEARCHED = 256
"""Records of warm that a round reads while there are earlier dictionaries, and the time between two such searches."""
NAMES_MAX = 64
ENOUGH = Enough()
READ_TOGETHER = 32
LEARNING = "learning a dictionary"


class _Known(NamedTuple):
    """The dictionaries of a shard, and which is the current one; `wanted` is the current one of the first shard."""

    current: str
    names: frozenset[str]
    wanted: str
    now_ms: int


def is_learning(space: Namespace) -> bool:
    """Return whether warm copies are to be made with a dictionary."""
    warm = space.config.storage_tiers.warm
    return warm.dictionary and warm.placement != "local" and space.frame_level is not None


# -- learning ----------------------------------------------------------------------------------------------------------


def learn_if_due(space: Namespace, enough: Enough = ENOUGH) -> Plan[int | None]:
    """Learn a dictionary and take it into use if it is better, unless somebody tried lately or there are not `enough`
    modules.

    Returns how many are taken into use, 0 or 1; None if it is not due. Raises `Unavailable`.
    """
    if not is_learning(space):
        return None
    first, holder = space.keys.shards[0], (yield from NewToken())
    try:
        due = yield from take_lease(first, first.dictionary_lease, holder, AGAIN_MS)
    except Full:  # at maxmemory there are no leases
        return None
    if not due:
        yield from cut_lease(first, first.dictionary_lease, EVERY_MS)
        return None
    if not (yield from _has_enough(space, enough)):
        return 0
    listed = yield from _listed(space)
    samples, held_out = divided((yield from _sample(space)), enough)
    if not samples:  # there are enough modules, and they are too large, or are the same
        yield from _next_in(first, holder, SEARCH_MS)
        return 0
    learned = yield from _learned(samples)
    chosen = yield from _chosen(space, held_out, learned, listed)
    if chosen is not None:
        yield from take_into_use(space, chosen)
    yield from _next_in(first, holder, EVERY_MS)
    yield from _delete_unused(space, listed)
    return int(chosen is not None)


def _next_in(first: Shard, holder: str, ms: int) -> Plan[None]:
    yield from Command(first, ("SET", first.dictionary_lease, holder, "PX", ms), bool)


def _has_enough(space: Namespace, enough: Enough) -> Plan[bool]:
    fields = ("hot_count", "warm_count", "hot_bytes", "warm_bytes")
    calls = [Command(shard, ("HMGET", shard.usage, *fields), numbers) for shard in space.keys.shards]
    replies = [r for r in (yield from Pipeline(calls)) if not isinstance(r, DistierError)]
    hot, warm, hot_bytes, warm_bytes = (sum(column) for column in zip(*replies, strict=True)) if replies else (0,) * 4
    return bool(hot + warm >= enough.modules and hot_bytes + warm_bytes >= enough.size_bytes)


def _sample(space: Namespace) -> Plan[list[bytes]]:
    """Return the contents of some hot and warm modules, spread evenly over the orders of their last uses."""
    sets = [(shard, key) for shard in space.keys.shards for key in (shard.hot, shard.warm)]
    replies = yield from Pipeline([Command(shard, ("ZCARD", key), int) for shard, key in sets])
    cards = [0 if isinstance(reply, DistierError) else reply for reply in replies]
    wanted = min(2 * SAMPLES_MAX, total) if (total := sum(cards)) else 0  # some are too large, or leave meanwhile
    calls: list[Command[Any]] = []
    for (shard, key), card in zip(sets, cards, strict=True):
        some = -(-wanted * card // max(total, 1))
        calls += [Command(shard, ("ZRANGE", key, n, n), _ids) for n in (i * card // some for i in range(some))]
    found = (yield from Pipeline(calls)) if calls else []
    ids = list(dict.fromkeys(id for names in found if not isinstance(names, DistierError) for id in names))
    fitting: list[str] = []
    room = SAMPLE_BYTES_MAX
    for reply in (yield from Pipeline([sizes_command(space.shard(id), id) for id in ids])) if ids else ():
        fits = isinstance(reply, Record) and 0 < reply.size_bytes <= min(room, DICTIONARY_CONTENT_BYTES_MAX)
        if fits and len(fitting) < SAMPLES_MAX:
            fitting.append(reply.id)
            room -= reply.size_bytes
    contents: list[bytes] = []
    for part in chunks(fitting, READ_TOGETHER):
        contents += yield from _contents(space, part)
    return contents


def _contents(space: Namespace, ids: Sequence[str]) -> Plan[list[bytes]]:
    calls: list[Command[Any]] = []
    for id in ids:
        shard = space.shard(id)
        calls += [record_command(shard, id), frame_command(shard, id)]
    replies = yield from Pipeline(calls)
    contents = []
    for record, frame in zip(replies[::2], replies[1::2], strict=True):
        if not isinstance(record, Record) or isinstance(frame, DistierError) or record.deleted:
            continue
        with suppress(DistierError):
            content = yield from content_or_none(space, space.shard(record.id), record, frame)
            if content is not None and len(content) <= DICTIONARY_CONTENT_BYTES_MAX:
                contents.append(content)
    return contents


def _ids(reply: Sequence[bytes]) -> list[str]:
    found = []
    for member in reply:
        with suppress(Invalid, UnicodeDecodeError):
            found.append(check_id(member.decode()))
    return found


def _learned(samples: Sequence[bytes]) -> Plan[Dictionary]:
    steps = learning(samples)
    size_bytes = sum(map(len, samples))  # a thread takes the steps: an event loop would notice them
    while (data := (yield from Offload(size_bytes, lambda: next(steps), LEARNING))) is None:
        pass
    return Dictionary(name_of(data), data)


def _chosen(
    space: Namespace, held_out: Sequence[bytes], learned: Dictionary, listed: Sequence[Listed]
) -> Plan[Dictionary | None]:
    """Return the dictionary to take into use: the one that was learned, or, where Redis has none, the latest of the archive.

    None if neither gains enough over what is in use.
    """
    first, level = space.keys.shards[0], space.frame_level or 0

    def measured(dictionary: Dictionary | None) -> Plan[float]:
        return (yield from Offload(1 << 20, lambda: ratio(held_out, dictionary, level=level), LEARNING))

    current = yield from current_command(first)
    names = [name_in_key(space.namespace, e.key) for e in sorted(listed, key=lambda e: e.modified_ms)]
    name = current or next((name for name in reversed(names) if name), "")
    data = (yield from find_dictionary(space, first, name, again=True)) if name else None
    plain = yield from measured(None)
    known = Dictionary(name, data) if data else None
    before = (yield from measured(known)) if known else 0.0
    now = (yield from measured(learned)) if learned.data else 0.0
    in_use = max(plain, before) if current else plain
    if now >= GAIN_MIN * max(in_use, before if known else 0.0):
        return learned
    return known if known and not current and before >= GAIN_MIN * plain else None


def take_into_use(space: Namespace, chosen: Dictionary) -> Plan[None]:
    """Take a dictionary into use: first it is in the archive, then in the shards. A shard that does not reply gets it later."""
    name, data = chosen
    # Also one that is there: its age says that it is needed.
    yield from ArchivePut(dictionary_key(space.namespace, name), data, "application/octet-stream", {})
    space.process.dictionaries.put(name, data)
    shards = space.keys.shards
    replies = yield from Pipeline([use_dictionary(shard, name, data) for shard in shards])
    for shard, reply in zip(shards, replies, strict=True):
        if not isinstance(reply, DistierError):
            space.process.dictionary[shard] = name
    collect(replies[0])
    yield from Count("dictionaries.learned")


# -- the archive -------------------------------------------------------------------------------------------------------


def _listed(space: Namespace) -> Plan[list[Listed]]:
    listed = yield from ArchiveList(dictionaries_prefix(space.namespace))
    return [entry for entry in listed if name_in_key(space.namespace, entry.key)]


def _delete_unused(space: Namespace, listed: Sequence[Listed]) -> Plan[None]:
    """Delete dictionaries from the archive that no shard has. Young ones stay: a worker may be about to take them into use."""
    before_ms = (yield Now()) - EVERY_MS
    old = {name_in_key(space.namespace, e.key): e.key for e in listed if e.modified_ms < before_ms}
    if not old:
        return
    needed: set[str] = set()
    calls: list[Command[Any]] = []
    for shard in space.keys.shards:
        calls += [_names_command(shard), current_command(shard)]
    for reply in (yield from Pipeline(calls)):
        needed |= {reply} if isinstance(reply, str) else collect(reply)
    unused = [key for name, key in old.items() if name not in needed]
    if unused:
        yield from ArchiveDelete(unused)


# -- each shard --------------------------------------------------------------------------------------------------------


def keep_dictionaries(space: Namespace, shard: Shard) -> Plan[int]:
    """Give a shard the current dictionary, and drop those that no record of it names any more. Returns how many of both."""
    known = yield from _look(space, shard)
    done = 0
    has_it = known.current == known.wanted and known.wanted in known.names
    if known.wanted and not has_it and is_learning(space):
        done += yield from _bring(space, shard, known)
    return done + (yield from _drop_unnamed(space, shard, known))


def _look(space: Namespace, shard: Shard) -> Plan[_Known]:
    calls: list[Command[Any]] = [
        current_command(shard),
        _names_command(shard),
        server_ms(shard),
    ]
    if shard.index:
        first = space.keys.shards[0]
        calls.append(current_command(first))
    current, names, now_ms, *wanted = yield from Pipeline(calls)
    current, names = collect(current), collect(names)
    space.process.dictionary[shard] = current
    # Where the first shard does not reply, this one keeps what it has.
    of_first = wanted[0] if wanted and not isinstance(wanted[0], DistierError) else current
    return _Known(current, frozenset(names), of_first, collect(now_ms))


def _names_command(shard: Shard) -> Command[set[str]]:
    # HKEYS is not among the commands that older ACL files allow.
    return Command(
        shard, ("HRANDFIELD", shard.dictionaries, NAMES_MAX), lambda reply: {name.decode() for name in reply or ()}
    )


def _bring(space: Namespace, shard: Shard, known: _Known) -> Plan[int]:
    """Give a shard the current dictionary of the namespace, which it lacks. One that is gone is not current any more."""
    data = yield from find_dictionary(space, space.keys.shards[0], known.wanted, again=True)
    if data is not None:
        done = yield from use_dictionary(shard, known.wanted, data)
        space.process.dictionary[shard] = known.wanted
        return done
    if known.current == known.wanted:
        yield from drop_dictionary(shard, known.current)
        space.process.dictionary[shard] = ""
    return 0


def _drop_unnamed(space: Namespace, shard: Shard, known: _Known) -> Plan[int]:
    """Continue the search for records that name earlier dictionaries, and at its end drop those that none names."""
    earlier, searches = known.names - {known.current}, space.process.naming
    search = searches.get(shard)
    if not earlier or (search is not None and search.next_ms > known.now_ms):
        return 0
    if search is None or search.next_ms:
        search = searches[shard] = Naming(earlier)
    after, flat = yield from Command(
        shard, ("ZSCAN", shard.warm, search.cursor, "COUNT", SEARCHED), lambda reply: reply
    )
    ids = _ids(flat[::2])
    calls = [Command(shard, ("HGET", shard.module(id), "codec"), _text) for id in ids]
    for reply in (yield from Pipeline(calls)) if calls else ():
        if not isinstance(reply, Corrupt):  # a foreign key: fsck reports it
            search.unnamed.discard(collect(reply).removeprefix(WITH_DICTIONARY))
    search.cursor = int(after)
    if search.cursor:
        return 0
    dropped = 0
    for name in sorted(search.unnamed & earlier):
        dropped += yield from drop_dictionary(shard, name)
    searches[shard] = Naming(next_ms=known.now_ms + SEARCH_MS)
    yield from Count("dictionaries.dropped", dropped)
    return dropped


def _text(reply: bytes | None) -> str:
    return (reply or b"").decode(errors="replace")
