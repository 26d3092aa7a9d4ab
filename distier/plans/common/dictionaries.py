"""Dictionaries as readers and writers of warm copies need them: by name, from this process, from Redis, or from the archive.

The current dictionary of a shard is named in replies that a process gets anyway: when it opens the shard, when it leaves a
copy, and when a script finds no room. Its bytes are read once. A writer that knows an older name is refused by the script that
would store its frame, and then learns the present one.
"""

from __future__ import annotations

from distier.domain.codec import DICTIONARY_CONTENT_BYTES_MAX, WITH_DICTIONARY
from distier.domain.dictionary import DICTIONARY_BYTES_MAX, Dictionary, dictionary_key, is_name, name_of
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.effects import HINT_S, ArchiveGet, Command, Count, Pipeline, Plan
from distier.errors import Corrupt, DistierError
from distier.plans.common.commands import unparsed
from distier.plans.common.namespace import Namespace

GONE_TRIES = 1000
"""For how many modules a dictionary that was gone is taken for gone without another look, which is a request to the archive."""


def find_dictionary(space: Namespace, shard: Shard, name: str, *, again: bool = False) -> Plan[bytes | None]:
    """Return the bytes of a dictionary, compared with its name; None if neither Redis nor the archive has it.

    With `again`, also one that this process lately found to be gone is looked for. Raises `Unavailable` where one of them does
    not answer and the other one does not have it.
    """
    known, gone = space.process.dictionaries.get(name), space.process.gone
    if known is not None or not is_name(name):
        return known
    if gone.get(name) and not again:
        gone[name] -= 1
        return None
    (reply,) = yield from Pipeline([Command(shard, ("HGET", shard.dictionaries, name), unparsed)])
    if isinstance(reply, bytes) and name_of(reply) == name:
        space.process.dictionaries.put(name, reply)
        return reply
    data = yield from _from_archive(space, name)
    if data is None:
        if isinstance(reply, DistierError) and not isinstance(reply, Corrupt):
            raise reply
        space.process.gone = {name: GONE_TRIES}
        return None
    space.process.dictionaries.put(name, data)
    # Redis has lost it. Others need it as well, and the worker must know that it is needed.
    yield from Pipeline([Command(shard, ("HSET", shard.dictionaries, name, data), int, hint=HINT_S)])
    return data


def _from_archive(space: Namespace, name: str) -> Plan[bytes | None]:
    try:
        got = yield from ArchiveGet(dictionary_key(space.namespace, name), max_bytes=DICTIONARY_BYTES_MAX)
    except Corrupt:
        return None
    return got.data if got is not None and name_of(got.data) == name else None


def dictionary_of(space: Namespace, shard: Shard, record: Record) -> Plan[bytes]:
    """Return the dictionary that the codec of a record names. Raises `Corrupt` if it is gone, and `Unavailable`."""
    name = record.codec[len(WITH_DICTIONARY) :]
    data = yield from find_dictionary(space, shard, name, again=not record.clean)
    if data is None:
        yield Count("dictionaries.missing")
        raise Corrupt(f"its dictionary {name!r} is neither in Redis nor in the archive")
    return data


def current_dictionary(space: Namespace, shard: Shard, size_bytes: int) -> Plan[Dictionary | None]:
    """Return the dictionary to make a frame of a clean version with; None for a plain frame.

    It fails nothing: where the dictionary cannot be had, the frame is plain.
    """
    name = space.process.dictionary.get(shard)
    if not name or size_bytes > DICTIONARY_CONTENT_BYTES_MAX or not space.config.storage_tiers.warm.dictionary:
        return None
    try:
        data = yield from find_dictionary(space, shard, name)
    except DistierError:
        data = None
    if data is None:
        space.process.dictionary.pop(shard, None)  # until a reply names one again
        return None
    return Dictionary(name, data)


def current_command(shard: Shard, *, hint: float = 0.0) -> Command[str]:
    """Ask for the name of a shard's current dictionary; empty for none."""
    return Command(shard, ("HGET", shard.epoch, "dictionary"), lambda reply: (reply or b"").decode(), hint=hint)


def look_for_current(space: Namespace, shard: Shard) -> Plan[None]:
    """Look which dictionary is the current one of a shard."""
    (reply,) = yield from Pipeline([current_command(shard, hint=HINT_S)])
    if isinstance(reply, str):
        space.process.dictionary[shard] = reply
