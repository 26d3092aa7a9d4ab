"""Choosing the modules for a context window: sizes and uses are read in batches, and nothing counts as a use.

The contents of what was chosen are read afterwards by `get_many`, which counts as a use as any read does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

from distier.domain.fitted import Choice, Fitted, Kept, is_intact
from distier.domain.keys import Shard
from distier.domain.module import Record, parse_record
from distier.domain.schema import SIZES
from distier.effects import Command, Offload, Pipeline, Plan, collect
from distier.errors import Invalid, NotFound
from distier.plans.common.commands import chunks, server_ms
from distier.plans.common.namespace import Namespace
from distier.plans.get.listing import all_ids
from distier.plans.recovery.adopt import known_of, settle_records
from distier.policy.fit import Candidate, Pick
from distier.policy.fit import fit as choose

LISTED_MAX = 10_000
"""The most modules of a prefix. Each costs four commands, so that more of them would take longer than the default deadline."""
ROUNDS_MAX = 8
"""How often outlines are chosen by their estimated sizes. After that, only outlines that were read are chosen."""
NONE: Mapping[str, float] = MappingProxyType({})
_FIELDS = (*SIZES, "seen", "updated", "moved", "ttl")
_NAMES = tuple(name.encode() for name in _FIELDS)


class Asked(NamedTuple):
    """A call of `fit`.

    `wanted` is a prefix if it is a str.
    """

    wanted: str | tuple[str, ...]
    budget_tokens: int
    required: tuple[str, ...] = ()
    kept: Kept = MappingProxyType({})
    predicted: Mapping[str, float] = NONE


class _Look(NamedTuple):
    """What is known of a module without its content."""

    record: Record
    uses: float
    age_s: float
    outline_bytes: int


class _Outline(NamedTuple):
    """An outline and its tokens; empty if the module has none any more."""

    text: str = ""
    tokens: int = 0


def fit(space: Namespace, asked: Asked) -> Plan[Fitted]:
    """Return what fits, without contents.

    Raises:
        NotFound: a module of `keep` or `required` does not exist.
        Invalid: `keep` and `required` alone exceed the budget, or the prefix has more than `LISTED_MAX` modules.
    """
    wanted = (yield from _listed(space, asked.wanted)) if isinstance(asked.wanted, str) else asked.wanted
    required = [id for id in dict.fromkeys(asked.required) if id not in asked.kept]
    first = {*asked.kept, *required}
    others = [id for id in dict.fromkeys(wanted) if id not in first]
    looks = yield from _look(space, [*asked.kept, *required, *others])
    if missing := [id for id in first if id not in looks]:
        raise NotFound(
            f"keep and required name {', '.join(map(repr, sorted(missing)[:5]))}, which does not exist in namespace "
            f"{space.namespace!r}; put it, or leave it out"
        )
    there = [id for id in others if id in looks]
    outlines = yield from _needed_outlines(space, asked, required, looks)
    for attempt in range(ROUNDS_MAX + 1):
        candidates = {id: _candidate(asked, look, outlines.get(id), attempt) for id, look in looks.items()}
        kept = [
            (candidates[id], form if candidates[id].outline_tokens else "whole") for id, (form, _) in asked.kept.items()
        ]
        picks = choose(kept, [candidates[id] for id in required], [candidates[id] for id in there], asked.budget_tokens)
        made = dict(zip([*asked.kept, *required, *there], picks, strict=True))
        unread = [id for id, pick in made.items() if pick.form == "outline" and id not in outlines]
        if not unread:
            break
        outlines |= yield from _read_outlines(space, unread, looks)
        total = sum(outlines[id].tokens if id in unread else pick.tokens for id, pick in made.items())
        if total <= asked.budget_tokens and all(outlines[id].tokens for id in unread):
            break
    choices = [_choice(id, made.get(id), looks.get(id), outlines.get(id)) for id in [*asked.kept, *required, *others]]
    return Fitted(
        tuple(choices), sum(choice.tokens for choice in choices), asked.budget_tokens, is_intact(choices, asked.kept)
    )


def _listed(space: Namespace, prefix: str) -> Plan[Sequence[str]]:
    """Return the ids with this prefix, in order. Raises `Invalid` for more than `LISTED_MAX`: a part would be by chance."""
    found = yield from all_ids(space, prefix, LISTED_MAX + 1)
    if len(found) > LISTED_MAX:
        raise Invalid(f"more than {LISTED_MAX} modules have the prefix {prefix!r}: give a longer prefix, or ids")
    return found


def _look(space: Namespace, ids: Sequence[str]) -> Plan[dict[str, _Look]]:
    """Return what is known of each module, without those that do not exist: a round trip per 500."""
    looks: dict[str, _Look] = {}
    for chunk in chunks(ids, 500):
        states, known = space.process.epochs, known_of(space, chunk)
        calls: list[Command[Any]] = [server_ms(space.keys.shards[0])]
        for id in chunk:
            shard = space.shard(id)
            calls += [
                _sizes_command(shard, id), Command(shard, ("HSTRLEN", shard.module(id), "outline"), int),
                Command(shard, ("ZSCORE", shard.uses, id), _score), Command(shard, ("ZSCORE", shard.hot, id), _score),
            ]  # fmt: skip
        now_ms, *replies = [collect(reply) for reply in (yield from Pipeline(calls))]
        sizes = [replies[i] for i in range(0, len(replies), 4)]
        records = yield from settle_records(space, chunk, [record for record, _ in sizes], known, states)
        for i, (id, record) in enumerate(zip(chunk, records, strict=True)):
            if record is not None:
                outline_bytes, uses, last_ms = replies[4 * i + 1 : 4 * i + 4]
                # Below hot nobody keeps the time of the last use. The last move was a use, or came some time after one.
                last_ms = max(last_ms, sizes[i][1], record.updated_ms)
                looks[id] = _Look(record, max(uses, 0.0), max(now_ms - last_ms, 0) / 1000, outline_bytes)
    return looks


def _sizes_command(shard: Shard, id: str) -> Command[tuple[Record | None, int]]:
    """Read a record without its content and descriptions, and the time of its last move in ms."""

    def parse(values: Sequence[bytes | None]) -> tuple[Record | None, int]:
        fields = {name: value for name, value in zip(_NAMES, values, strict=True) if value is not None}
        moved = fields.get(b"moved", b"0").split(b" ")[0]
        return parse_record(id, fields), int(moved) if moved.isdigit() else 0

    return Command(shard, ("HMGET", shard.module(id), *_FIELDS), parse)


def _score(reply: Any) -> float:
    return 0.0 if reply is None else float(reply)


def _candidate(asked: Asked, look: _Look, outline: _Outline | None, attempt: int) -> Candidate:
    record, id = look.record, look.record.id
    if outline is not None:
        outline_tokens = outline.tokens
    elif look.outline_bytes and attempt < ROUNDS_MAX:
        # An estimate by the module's own bytes for each token, until the outline is chosen, read and counted.
        outline_tokens = 1 + look.outline_bytes * record.tokens // max(record.size_bytes, 1)
    else:
        outline_tokens = 0
    probability = min(max(asked.predicted.get(id, 0.0), 0.0), 1.0)
    return Candidate(id, record.tokens, look.uses, look.age_s, outline_tokens, probability)


def _needed_outlines(
    space: Namespace, asked: Asked, required: Sequence[str], looks: Mapping[str, _Look]
) -> Plan[dict[str, _Outline]]:
    """Return the outlines that the choice cannot estimate: an error, or a prefix, depends on their sizes."""
    ids = [id for id, (form, _) in asked.kept.items() if form == "outline"]
    if sum(looks[id].record.tokens for id in [*asked.kept, *required]) > asked.budget_tokens:
        ids += [id for id in required if looks[id].outline_bytes]
    return (yield from _read_outlines(space, ids, looks)) if ids else {}


def _read_outlines(space: Namespace, ids: Sequence[str], looks: Mapping[str, _Look]) -> Plan[dict[str, _Outline]]:
    """Read and count outlines. One of another version than the record that was seen is none."""
    found: dict[str, _Outline] = {}
    for chunk in chunks(ids, 500):
        calls: list[Command[list[bytes | None]]] = [
            Command((shard := space.shard(id)), ("HMGET", shard.module(id), "tok", "outline"), list) for id in chunk
        ]
        for id, reply in zip(chunk, (yield from Pipeline(calls)), strict=True):
            write_id, outline = collect(reply)
            found[id] = _Outline()
            if outline and write_id == looks[id].record.order.write_id.encode():
                count = partial(space.counter.count, outline)
                tokens = yield from Offload(len(outline), count, "counting tokens")
                found[id] = _Outline(outline.decode(errors="replace"), tokens)
    return found


def _choice(id: str, pick: Pick | None, look: _Look | None, outline: _Outline | None) -> Choice:
    if pick is None or look is None:
        return Choice(id, "none", 0, reason="missing")
    record = look.record
    choice = Choice(id, pick.form, pick.tokens, record.tokens, pick.value, pick.reason, record.order)
    if pick.form != "outline" or outline is None:
        return choice
    return replace(choice, tokens=outline.tokens, outline=outline.text)
