"""Reading and teaching what the fleet has learned. Both are hints: they never fail, and a call waits for them a short time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from distier.domain.ids import encode_id
from distier.domain.keys import Shard
from distier.domain.learned import WHOLE, Learned, field_of_keyword, generation_of, parse_learned
from distier.effects import USE_S, Command, Count, Pipeline, Plan
from distier.errors import DistierError, Invalid
from distier.lua import Lesson, learn
from distier.plans.common.commands import chunks
from distier.plans.common.namespace import Namespace
from distier.policy.predict.counts import Change
from distier.policy.predict.sources import FOLLOWERS, UNDER_KEYWORD

LESSONS_MAX = 32
"""Entries of one run of the script: it takes the server about 0.3 ms."""


class Recalled(NamedTuple):
    """What the fleet knows: by id what followed a module, and by keyword what was used under it."""

    modules: dict[str, Learned]
    keywords: dict[str, Learned]


def recall(space: Namespace, ids: Sequence[str], keywords: Sequence[str] = ()) -> Plan[Recalled]:
    """Return what the fleet has learned about these modules and keywords, in one round trip."""
    wanted: dict[Shard, list[tuple[str, str, bool]]] = {}
    for id in ids:
        wanted.setdefault(space.shard(id), []).append((encode_id(id), id, False))
    for keyword in keywords:
        with suppress(Invalid):  # too long for a field
            wanted.setdefault(space.keys.shards[0], []).append((field_of_keyword(keyword), keyword, True))
    calls: list[Command[Any]] = [
        Command(shard, ("HMGET", shard.learned, WHOLE, *(field for field, _, _ in some)), lambda r: r, hint=USE_S)
        for shard, some in wanted.items()
    ]
    found = Recalled({}, {})
    for some, reply in zip(wanted.values(), (yield from Pipeline(calls)) if calls else (), strict=True):
        if isinstance(reply, DistierError):
            yield Count("predict.lost")
            continue
        generation = generation_of(reply[0])
        for (field, name, is_keyword), value in zip(some, reply[1:], strict=True):
            learned = parse_learned(field, value, generation)
            if learned is not None:
                (found.keywords if is_keyword else found.modules)[name] = learned
    return found


def teach(space: Namespace, modules: Sequence[Change], keywords: Sequence[Change]) -> Plan[None]:
    """Add what this process has counted to what the fleet knows."""
    lessons: dict[Shard, list[Lesson]] = {}
    for change in modules:
        lesson = Lesson(encode_id(change.key), FOLLOWERS, change.uses, change.followers)
        lessons.setdefault(space.shard(change.key), []).append(lesson)
    for change in keywords:
        with suppress(Invalid):
            lesson = Lesson(field_of_keyword(change.key), UNDER_KEYWORD, change.uses, change.followers)
            lessons.setdefault(space.keys.shards[0], []).append(lesson)
    calls = [learn(shard, part) for shard, some in lessons.items() for part in chunks(some, LESSONS_MAX)]
    for reply in (yield from Pipeline(calls)) if calls else ():
        if isinstance(reply, DistierError):
            yield Count("predict.lost")
