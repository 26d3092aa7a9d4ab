"""Every script against a model in plain Python, step by step, on real Valkey, the distribution's Redis and fakeredis.

After each call the whole keyspace is dumped and compared with the model: records, frames and their TTLs, sets, accounts,
events. Budgets are tiny, so that most calls find no room. `MODEL_EXAMPLES` and `MODEL_STEPS` make longer runs.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from distier import lua
from distier.domain.keys import Shard
from distier.domain.order import Order, parse_version
from distier.domain.schema import CHUNK_MAX, KEYSPACE, WORTH_FIRST
from distier.effects import RunScript, T
from distier.lua import Applied, Limit, Move, Put, Refused, Replayed, Write
from distier.policy.eviction.table import POLICIES
from distier.stores.redis import Exchange
from distier.stores.redis.wire import RawCommand
from tests.fakes import FakeExchange, dump, ids_of
from tests.lua.model import Model, Over, Rec
from tests.scripted import PlanRunner

EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "50"))
STEPS = int(os.environ.get("MODEL_STEPS", "50"))

LIMITS = {"hot_tokens": 20, "hot_bytes": 24, "warm_modules": 3, "warm_bytes": 24}
TTL_MS = 1_000_000
IDS = ["a", "b/c", "skills/é {x}*?", "@1", "..", "A%2F b", "s5", "s14"]
"""Of the last three, ghosts are kept."""
GARBAGE_TOK = "f" * 32

ids = st.sampled_from(IDS)
contents = st.sampled_from(
    [b"", b"x", b"four", b"\r\n\0\xff {}", b"twelve bytes", b"c" * 24, b"too large: 25 bytes long!"]
)
tokens = st.sampled_from([0, 1, 1, 4, 4, 10, 20, 21, 2**40])
frames = st.sampled_from([b"", b"f", b"frame", b"F" * 12, b"F" * 24, b"F" * 25])
DICTIONARIES = ["11111111", "22222222"]
CODECS = {b"frame": "lz4d:11111111", b"F" * 12: "lz4d:22222222"}
"""The codecs of these frames; the others are plain."""
picks = st.integers(0, 5)
fresh = st.sampled_from([True] * 7 + [False])
# The module of a call: mostly one for which the call makes sense (see `chosen`), otherwise any id.
choices = st.tuples(st.integers(0, 9), ids)
Choice = tuple[int, str]
# the module; whether by its current write id; the target tier; its frame
# None means every module that can be evicted.
Drawn = list[tuple[Choice, bool, str, bytes]] | None
moves = st.none() | st.lists(st.tuples(choices, fresh, st.sampled_from(["warm", "cold"]), frames), max_size=5)

PATTERNS = [
    (re.compile(re.escape(kind.pattern.replace("{t}", "{ns}")).replace("ids:<id>", "ids:.*").replace("<id>", ".+")
                .replace("<tier>", "(hot|warm)")), kind.type)
    for kind in KEYSPACE
]  # fmt: skip
UNTIMED = {"created", "updated", "seen", "reserved"}


class Shards(RuleBasedStateMachine):
    """One shard on one server, and its model."""

    def __init__(self, exchange: Exchange, policy: str = "lru") -> None:
        super().__init__()
        self.exchange = exchange
        self.shard = Shard("ns", 0, 1)
        self.write_ids = (f"{n:032x}" for n in itertools.count(1))
        self.used: list[str] = []
        self.policy = policy
        self.model = Model(dict(LIMITS), policy=POLICIES[policy])
        self.refused_at: dict[str, Any] | None = None

    # -- talking to the server -------------------------------------------------------------------------------------

    def ask(self, commands: Sequence[RawCommand]) -> list[Any]:
        return self.exchange.exchange(self.shard, commands, 10.0)

    def run(self, call: RunScript[T]) -> T:
        return run_script(self.exchange, call)

    def dump(self) -> dict[str, tuple[str, Any, int]]:
        state = dump(self.ask)
        self.model.due, self.model.lru = (self.in_line(state, tier) for tier in ("warm", "hot"))
        return state

    def in_line(self, state: dict[str, Any], tier: str) -> list[str]:
        """The order of eviction of a tier: a small queue comes first unless it is short, and modules to be spared come last."""
        ranks, spared = self.members(state, self.order(tier)), self.model.policy.spared
        if spared is None:
            return list(ranks)
        small = sum(rank < 0 for rank in ranks.values())
        skip = 0 if small > 0.1 * len(ranks) else small
        line = list(ranks)
        return sorted(line[skip:] + line[:skip], key=lambda i: spared(ranks[i], 0.0) is not None)

    def order(self, tier: str) -> str:
        """The key of the set with the order of eviction of a tier."""
        return (
            {"hot": self.shard.hot, "warm": self.shard.warm}[tier] if self.policy == "lru" else self.shard.ranks(tier)
        )

    @staticmethod
    def members(state: dict[str, Any], key: str) -> dict[str, float]:
        return ids_of(state[key][1]) if key in state else {}

    @initialize(there=st.lists(st.tuples(ids, st.sampled_from(["hot", "warm"]), contents, st.booleans()), max_size=8))
    def open(self, there: list[tuple[str, str, bytes, bool]]) -> None:
        self.ask([("FLUSHALL",)])
        open_shard(self.exchange, self.shard, {**LIMITS, "warm_ttl_ms": TTL_MS}, self.policy)
        for id, tier, content, clean in there:
            self.put((9, id), tier, 4, content, b"frame", "", [], "")
            if clean:
                self.archived((9, id), True, 60)

    def chosen(self, choice: Choice, sense: Callable[[Rec], bool]) -> str:
        """An id for which the call makes `sense`, if there is one and `choice` is not 8 or 9."""
        pick, id = choice
        good = sorted(i for i, rec in self.model.records.items() if sense(rec))
        return good[pick % len(good)] if good and pick < 8 else id

    def compare(self, reply: object, expected: object, before: dict[str, Any]) -> None:
        """The results are equal, and a refusal changed nothing, not even a time."""
        assert plain(reply) == expected
        if not (isinstance(expected, tuple) and expected[0] == "OK"):
            assert untimed(self.dump()) == untimed(before)

    def over(self, reply: object, expected: Over, before: dict[str, Any], id: str = "") -> None:
        assert isinstance(reply, lua.Over)
        assert tuple(reply[:4]) == expected.over
        assert reply.dictionary == self.model.dictionary
        for named, tier in ((reply.hot_ids, "hot"), (reply.warm_ids, "warm")):
            order = [i for i in self.members(before, self.order(tier)) if i != id]
            may_go = [i for i in order if not self.model.pins.get(i)]
            if self.model.policy.spared:  # more than the ranks decides
                may_go.sort(key=list(named).index if len(named) == len(may_go) else may_go.index)
            else:
                assert list(named) == may_go[: len(named)], (
                    "victims are named in the order in which they should be evicted"
                )
            assert set(named) <= set(may_go)
            if max(expected.over) > 0 and tier == "hot" and max(expected.over[:2]) > 0:
                assert len(named) == len(may_go), "all of so few modules are named"
        assert untimed(self.dump()) == untimed(before)

    def check(self, reply: object, expected: object, before: dict[str, Any], id: str = "") -> None:
        if isinstance(expected, Over):
            self.over(reply, expected, before, id)
        else:
            self.compare(reply, expected, before)

    def made(self, drawn: Drawn) -> list[Move]:
        records = self.model.records
        if drawn is None:
            clean = [Move(id, rec.write_id, "cold") for id, rec in records.items() if rec.clean and rec.tier == "warm"]
            return clean + [
                Move(id, rec.write_id, "warm", "raw", b"f") for id, rec in records.items() if rec.tier == "hot"
            ]
        made = []
        for choice, fresh, to, frame in drawn:
            id = self.chosen(choice, lambda rec, to=to: rec.tier == "hot" if to == "warm" else rec.clean)  # type: ignore[misc]
            warm = to == "warm"
            codec = CODECS.get(frame, "raw")
            made.append(Move(id, self.write_id(id, fresh), to, codec if warm else "", frame if warm else b""))
        return made

    def write_id(self, id: str, fresh: bool) -> str:
        return self.model.records[id].write_id if fresh and id in self.model.records else GARBAGE_TOK

    # -- the scripts -----------------------------------------------------------------------------------------------

    @rule(
        id=choices,
        tier=st.sampled_from(["hot", "hot", "warm"]),
        tokens=tokens,
        content=contents,
        frame=frames,
        expected=st.sampled_from([""] * 7 + ["-", "now", "1-999999"]),
        drawn=moves,
        type=st.sampled_from(["t/x", ""]),
        ttl=st.sampled_from([False, False, True]),
    )
    def put(
        self, id: Choice, tier: str, tokens: int, content: bytes, frame: bytes, expected: str,
        drawn: Drawn, type: str, ttl: bool = False,
    ) -> None:  # fmt: skip
        write_id = next(self.write_ids)
        self.used.append(write_id)
        self.put_as(write_id, id[1], tier, tokens, content, frame, expected, self.made(drawn), type, ttl)

    def put_as(
        self, write_id: str, id: str, tier: str, tokens: int, content: bytes, frame: bytes, expected: str,
        moves: list[Move], type: str, ttl: bool = False,
    ) -> None:  # fmt: skip
        if expected == "now":
            expected = self.model.version_of(id) or "1-1"
        fields: tuple[tuple[str, str], ...] = (("type", type), ("sha256", "0")) if type else ()
        fields = (("ttl", str(TTL_MS)), *fields) if ttl else fields
        before = self.dump()
        reply = self.run(lua.put(
            self.shard, id, write_id, tier=tier, expected=expected, tokens=tokens, size_bytes=len(content),
            body=content if tier == "hot" else frame, codec="" if tier == "hot" else "raw",
            fields=[w for pair in fields for w in pair], moves=moves,
        ))  # fmt: skip
        result = self.model.put(id, write_id, tier, expected, tokens, content, frame, "raw", fields, moves)
        self.check(reply, result, before, id)

    @rule(
        items=st.lists(
            st.tuples(ids, tokens, contents, st.sampled_from([""] * 3 + ["-", "now"]), st.sampled_from([False] * 5 + [True])),
            min_size=1, max_size=6, unique_by=lambda item: item[0],
        )
    )  # fmt: skip
    def put_many(self, items: list[tuple[str, int, bytes, str, bool]]) -> None:
        """Each item has the result of a single put, one after the other; an item without room changes nothing."""
        writes: list[Write] = []
        expected_of: dict[str, tuple[str, str, int, bytes]] = {}
        for id, n, content, expected, again in items:
            write_id = self.used[-1] if again and self.used and not writes else next(self.write_ids)
            expected = (self.model.version_of(id) or "1-1") if expected == "now" else expected
            writes.append(Write(id, write_id, "hot", expected, "", "", 0, n, len(content), b"", ("content", content)))
            expected_of[id] = (write_id, expected, n, content)
        self.dump()
        replies = self.run(lua.put_many(self.shard, writes))
        for (id, (write_id, expected, n, content)), reply in zip(expected_of.items(), replies, strict=True):
            result = self.model.put(id, write_id, "hot", expected, n, content, b"", "", (), [])
            if isinstance(result, Over):
                assert isinstance(reply, lua.Over)
                assert tuple(reply[:4]) == result.over
            else:
                assert plain(reply) == result
            self.used.append(write_id)

    @precondition(lambda self: self.used)
    @rule(pick=picks, id=ids, tier=st.sampled_from(["hot", "warm"]), content=contents)
    def put_again(self, pick: int, id: str, tier: str, content: bytes) -> None:
        """A put that is sent again, even with other arguments, or after a refusal."""
        self.put_as(self.used[-1 - pick % len(self.used)], id, tier, 1, content, b"f", "", [], "")

    @rule(
        choice=choices,
        fresh=fresh,
        drawn=moves,
        longer=st.sampled_from([False] * 7 + [True]),
        reason=st.sampled_from(["up", "uses"]),
    )
    def promote(self, choice: Choice, fresh: bool, drawn: Drawn, longer: bool, reason: str) -> None:
        id = self.chosen(choice, lambda rec: rec.tier in ("warm", "cold"))
        write_id, moves = self.write_id(id, fresh), self.made(drawn)
        content = self.model.records[id].content if id in self.model.records else b"x"
        content += b"!" * longer
        before = self.dump()
        reply = self.run(lua.promote(self.shard, id, write_id, content, reason, moves))
        self.check(reply, self.model.promote(id, write_id, content, moves, reason), before, id)

    @rule(choice=choices, fresh=fresh, frame=frames, drawn=moves, likely=st.sampled_from([0.0, 0.0, 0.5, 0.75]))
    def install(self, choice: Choice, fresh: bool, frame: bytes, drawn: Drawn, likely: float) -> None:
        id = self.chosen(choice, lambda rec: rec.clean and rec.tier in ("warm", "cold"))
        write_id, moves = self.write_id(id, fresh), self.made(drawn)
        before = self.dump()
        codec = CODECS.get(frame, "lz4")
        reply = self.run(lua.install(self.shard, id, write_id, codec, frame, "get", moves, likely=likely))
        expected = self.model.install(id, write_id, codec, frame, moves, likely=likely)
        self.check(reply.change, expected, before, id)
        assert reply.dictionary == self.model.dictionary
        assert reply.uses == -1

    @rule(
        choice=choices,
        fresh=fresh,
        frame=frames,
        holder=st.sampled_from(["h1", "h2"]),
        uses=st.integers(1, 2),
        waited=st.booleans(),
    )
    def end_a_fetch(self, choice: Choice, fresh: bool, frame: bytes, holder: str, uses: int, waited: bool) -> None:
        """The lease is released and the uses are recorded, also where the copy is refused."""
        id = self.chosen(choice, lambda rec: rec.clean and rec.tier in ("warm", "cold"))
        write_id = self.write_id(id, fresh)
        self.dump()
        self.ask([("SET", self.shard.waiting(id), 1, "PX", TTL_MS)] if waited else [])
        codec = CODECS.get(frame, "lz4")
        call = lua.install(self.shard, id, write_id, codec, frame, "get", holder=holder, uses=uses)
        reply = self.run(call)
        assert reply.uses == self.model.count_uses(id, uses)
        result = self.model.install(id, write_id, codec, frame, [], waited, is_read=True)
        if self.model.leases.get(id) == holder:
            del self.model.leases[id]
            waited = False
        if waited:
            assert self.ask([("DEL", self.shard.waiting(id))]) == [1]
        if isinstance(result, Over):
            assert isinstance(reply.change, lua.Over)
            assert tuple(reply.change[:4]) == result.over
        else:
            assert plain(reply.change) == result

    @rule(drawn=moves)
    def demote(self, drawn: Drawn) -> None:
        moves = self.made(drawn)
        before = self.dump()
        self.check(self.run(lua.demote(self.shard, "down", moves)), self.model.demote(moves), before)

    @rule(choice=choices, fresh=fresh, moved=st.sampled_from([0, 0, 0, 1]), size=st.sampled_from([0, 60, 2**40]))
    def archived(self, choice: Choice, fresh: bool, size: int, moved: int = 0) -> None:
        id = self.chosen(choice, lambda rec: not rec.clean)
        rec = self.model.records.get(id)
        epoch, ver = parse_version(rec.version) if rec else (1, 1)
        order = Order(epoch, ver + moved, self.write_id(id, fresh))
        before = self.dump()
        reply = self.run(lua.archived(self.shard, id, order, size))
        self.compare(reply, self.model.archived(id, order, size), before)

    @rule(id=ids, expected=st.sampled_from(["", "", "now", "1-999999"]), again=st.booleans())
    def delete(self, id: str, expected: str, again: bool) -> None:
        write_id = self.used[-1] if again and self.used else next(self.write_ids)
        assume(not (again and self.used) or write_id in self.model.done)
        self.used.append(write_id)
        if expected == "now":
            expected = self.model.version_of(id) or "1-1"
        before = self.dump()
        reply = self.run(lua.delete(self.shard, id, write_id, expected))
        replay = write_id in self.model.done
        gone = self.model.done[write_id].endswith("-") if replay else self.model.has_expired(id)
        assert not isinstance(reply, lua.Deleted) or reply.existed is not gone
        self.compare(reply, self.model.delete(id, write_id, expected), before)
        if replay:
            assert untimed(self.dump()) == untimed(before)

    @rule(
        uses=st.lists(
            st.tuples(ids, st.sampled_from([1, 2, 3, 24])), min_size=1, max_size=4, unique_by=lambda use: use[0]
        )
    )
    def touch(self, uses: list[tuple[str, int]]) -> None:
        assert self.run(lua.touch(self.shard, uses)) == self.model.touch(uses)

    @rule(id=ids, on=st.sampled_from([True, True, False]))
    def pin(self, id: str, on: bool) -> None:
        ends = self.run(lua.pin(self.shard, id, TTL_MS if on else 0))
        assert (ends is not None) == self.model.pin(id, on)
        assert on == bool(ends) or ends is None

    @precondition(lambda self: self.model.pins)
    @rule(pick=picks)
    def pin_runs_out(self, pick: int) -> None:
        for id in sorted(self.model.pins)[pick : pick + 1]:
            self.ask([("ZADD", self.shard.pins, 1, id)])
            self.model.pins[id] = False

    @rule(choice=choices)
    def ttl_runs_out(self, choice: Choice) -> None:
        """The module was put long ago."""
        id = self.chosen(
            choice, lambda rec: ("ttl", str(TTL_MS)) in rec.fields and rec.write_id not in self.model.expired
        )
        rec = self.model.records.get(id)
        if rec and rec.alive and ("ttl", str(TTL_MS)) in rec.fields:
            self.ask([("HSET", self.shard.module(id), "updated", 1), ("ZADD", self.shard.expiring, 1 + TTL_MS, id)])
            self.model.expired.add(rec.write_id)

    @rule(grace=st.sampled_from([0, 0, 10**15]))
    def lapse(self, grace: int) -> None:
        before = self.dump()
        versions = self.run(lua.lapse(self.shard, IDS, grace))
        wanted = [self.model.version_of(id) if self.model.has_expired(id) and not grace else "" for id in IDS]
        assert versions == wanted
        after = self.dump()
        assert self.members(after, self.shard.expiring).keys() == self.with_ttl()
        before.pop(self.shard.expiring, None)
        after.pop(self.shard.expiring, None)
        assert untimed(after) == untimed(before)

    def with_ttl(self) -> set[str]:
        return {id for id, rec in self.model.records.items() if rec.alive and ("ttl", str(TTL_MS)) in rec.fields}

    @rule(choice=choices)
    def frame_runs_out(self, choice: Choice) -> None:
        """The TTL of a frame expires, which no script notices."""
        id = self.chosen(choice, lambda rec: rec.tier == "warm" and rec.clean)
        rec = self.model.records.get(id)
        if rec and rec.tier == "warm" and rec.clean:
            self.ask([("DEL", self.shard.frame(id))])
            self.model.records[id] = Rec(**{**vars(rec), "lost": True})

    @rule(drawn=st.lists(choices, min_size=1, max_size=4))
    def expire(self, drawn: list[Choice]) -> None:
        ids = [self.chosen(choice, lambda rec: rec.lost) for choice in drawn]
        assert self.run(lua.expire(self.shard, ids)) == self.model.expire(ids)

    @rule(due=st.booleans())
    def age(self, due: bool) -> None:
        assert self.run(lua.age(self.shard, 0 if due else TTL_MS)) == due
        if due:
            self.model.age()

    @rule(
        name=st.sampled_from(sorted(LIMITS)),
        value=st.sampled_from([2, 4, 12, 24]),
        explicit=st.sampled_from([False, False, True]),
    )
    def limit(self, name: str, value: int, explicit: bool) -> None:
        """An operator's limit replaces the stored one, even if it is less than the usage; a default does not."""
        assert isinstance(self.run(lua.open_shard(self.shard, [Limit(name, value, explicit)])), lua.Opened)
        if explicit:
            self.model.limits[name] = value

    @rule()
    def limits_as_they_were(self) -> None:
        self.run(lua.open_shard(self.shard, [Limit(name, value, True) for name, value in LIMITS.items()]))
        self.model.limits |= LIMITS

    @rule(choice=choices, fresh=fresh)
    def redirty(self, choice: Choice, fresh: bool) -> None:
        """The archive has lost the object of a clean version: it is archived again, if Redis has its content."""
        id = self.chosen(choice, lambda rec: rec.clean and rec.tier != "cold")
        write_id = self.write_id(id, fresh)
        before = self.dump()
        self.compare(self.run(lua.redirty(self.shard, id, write_id)), self.model.redirty(id, write_id), before)

    @rule(name=st.sampled_from(DICTIONARIES))
    def use_dictionary(self, name: str) -> None:
        reply = self.run(lua.use_dictionary(self.shard, name, name.encode()))
        assert reply == self.model.use_dictionary(name, name.encode())

    @rule(name=st.sampled_from(DICTIONARIES))
    def drop_dictionary(self, name: str) -> None:
        assert self.run(lua.drop_dictionary(self.shard, name)) == self.model.drop_dictionary(name)

    @rule(id=ids, expected=st.sampled_from(["", "-", "now", "1-999999"]))
    def reserve(self, id: str, expected: str) -> None:
        """Reserve a position for a durable write; the position may stay unused."""
        if expected == "now":
            expected = self.model.version_of(id) or "1-1"
        before = self.dump()
        reply = self.run(lua.reserve(self.shard, id, expected))
        result = self.model.reserve(id, expected)
        if isinstance(result, int):
            assert isinstance(reply, lua.Reserved)
            assert reply.ver == result
        else:
            self.compare(reply, result, before)

    @rule(repair=st.booleans())
    def look_for_damage(self, repair: bool) -> None:
        """The scripts of fsck find nothing but expired frames, which are no damage, and change nothing."""
        before = self.dump()
        mended = self.run(lua.mend(self.shard, IDS, repair=repair))
        assert [m for m in mended if any(m[1:])] == []
        assert [m for m in self.run(lua.reindex(self.shard, IDS, repair=repair)) if any(m[1:])] == []
        events = before.get(self.shard.events, ("", [], 0))[1]
        last = events[-1][0].decode() if events else "0-0"
        assert self.run(lua.account(self.shard, self.model.usage(), [], last, repair=repair)) == {}
        assert untimed(self.dump()) == untimed(before)

    @rule(id=ids, holder=st.sampled_from(["h1", "h2"]))
    def lease(self, id: str, holder: str) -> None:
        self.ask([("SET", self.shard.lease(id), holder, "NX", "PX", TTL_MS)])
        self.model.leases.setdefault(id, holder)

    @rule(id=ids, holder=st.sampled_from(["h1", "h2"]), waited=st.booleans(), keeps=st.booleans())
    def release(self, id: str, holder: str, waited: bool, keeps: bool) -> None:
        mine = self.model.leases.get(id) == holder
        self.ask([("SET", self.shard.waiting(id), 1, "PX", TTL_MS)] if waited else [])
        released = self.run(lua.release(self.shard, self.shard.lease(id), holder, unless_waiting=keeps))
        self.ask([("DEL", self.shard.waiting(id))])
        wanted = lua.Released.WANTED if waited and keeps else lua.Released.DONE
        assert released is (wanted if mine else lua.Released.NOT_HELD)
        if released is lua.Released.DONE:
            del self.model.leases[id]

    @rule(id=ids)
    def where(self, id: str) -> None:
        before = self.dump()
        seen = self.run(lua.where(self.shard, id))
        assert untimed(self.dump()) == untimed(before)
        rec = self.model.records.get(id)
        if rec is None or not rec.alive:
            assert seen is None
            return
        assert seen is not None
        assert b"content" not in seen.fields
        assert seen.fields.items() <= before[self.shard.module(id)][1].items()
        assert seen.uses == self.model.uses.get(id, 0)
        sets = (rec.tier == "hot", rec.tier == "warm", not rec.clean, id in self.model.pins)
        scores = (seen.last_use_ms, seen.due_ms, seen.dirty_since_ms, seen.pinned_until_ms)
        assert tuple(s is not None for s in scores) == sets
        assert (seen.pttl_ms == -2) == (rec.frame is None or rec.lost)

    # -- what always holds -----------------------------------------------------------------------------------------

    @invariant()
    def all_is_as_the_model_says(self) -> None:
        state = self.dump()
        for key, (type, _, _) in state.items():
            assert any(p.fullmatch(key) and type == t for p, t in PATTERNS), f"{key} ({type}) is not documented"
        for key in [k for k, (_, value, _) in state.items() if is_buried(value)]:
            assert state.pop(key)[2] > 0, "an archived tombstone has a TTL"
        self.records_are_right(state)
        self.sets_are_right(state)
        assert indexed(state, self.shard) == sorted(self.model.ids("hot", "warm", "cold"), key=str.encode)
        usage = {k.decode(): int(v) for k, v in state.get(self.shard.usage, ("", {}, 0))[1].items()}
        assert {k: n for k, n in usage.items() if n} == self.model.usage()
        events = [flat(fields) for _, fields in state.get(self.shard.events, ("", [], 0))[1]]
        assert events == self.model.events
        assert int(state[self.shard.epoch][1][b"ver"]) == self.model.ver
        dictionaries = state.get(self.shard.dictionaries, ("hash", {}, -1))[1]
        assert {k.decode(): v for k, v in dictionaries.items()} == self.model.dictionaries
        assert state[self.shard.epoch][1].get(b"dictionary", b"").decode() == self.model.dictionary
        assert all(rec.clean for rec in self.model.records.values() if rec.codec.startswith("lz4d:"))

    def records_are_right(self, state: dict[str, Any]) -> None:
        shard, model = self.shard, self.model
        found = {k: v for k, v in state.items() if re.search(r"\}:(module|warm|lease):", k)}
        wanted: dict[str, Any] = {shard.module(id): ("hash", record(rec), -1) for id, rec in model.records.items()}
        for id, rec in model.records.items():
            if rec.frame is not None and not rec.lost:
                wanted[shard.frame(id)] = ("string", rec.frame, 1 if rec.clean else -1)
        wanted |= {shard.lease(id): ("string", holder.encode(), 1) for id, holder in model.leases.items()}
        assert untimed(found) == wanted
        done = state.get(shard.done, ("hash", {}, -1))[1]
        assert {k.decode(): v.decode() for k, v in done.items() if not k.startswith(b"#")} == model.done
        assert sorted(v for k, v in done.items() if k.startswith(b"#")) == sorted(t.encode() for t in model.done)

    def sets_are_right(self, state: dict[str, Any]) -> None:
        def members(key: str) -> dict[str, float]:
            return self.members(state, key)

        model = self.model
        for tier in ("hot", "warm") if self.policy != "lru" else ():
            ranks = members(self.shard.ranks(tier))
            assert ranks.keys() == model.ids(tier)
            if self.policy == "gdsf":
                assert ranks == model.ranks[tier]
                stored = state[self.shard.epoch][1].get(f"{tier}_floor".encode(), b"0")
                assert float(stored) == model.floors[tier]
        if self.policy == "lru":
            ghosts = members(f"{self.shard.root}ghosts:warm")
            assert {id: "refused" if score < 0 else "evicted" for id, score in ghosts.items()} == model.ghosts
            assert float(state[self.shard.epoch][1].get(b"worth", WORTH_FIRST)) == pytest.approx(model.worth)
        assert members(self.shard.expiring).keys() >= self.with_ttl()
        assert members(self.shard.hot).keys() == model.ids("hot")
        assert members(self.shard.warm).keys() == model.ids("warm")
        assert members(self.shard.dirty).keys() == model.dirty
        assert members(self.shard.pins).keys() == model.pins.keys()
        assert members(self.shard.fixed[6]) == model.uses


def indexed(state: dict[str, Any], shard: Shard) -> list[str]:
    """The ids in the index, in its order, with the checks that hold for each of its chunks."""
    firsts = ["", *ids_of(state[shard.ids][1])] if shard.ids in state else [""]
    found: list[str] = []
    for first in firsts:
        chunk = list(ids_of(state[shard.chunk(first)][1])) if shard.chunk(first) in state else []
        assert len(chunk) <= CHUNK_MAX
        assert chunk or not first, "an empty chunk is not listed"
        assert all(first.encode() <= id.encode() for id in chunk)
        found += chunk
    return found


def is_buried(value: Any) -> bool:
    return isinstance(value, dict) and value.get(b"tier") == b"deleted" and value.get(b"clean") == b"1"


def flat(fields: Any) -> tuple[str, ...]:
    pairs = dict(fields) if isinstance(fields, dict) else dict(zip(fields[::2], fields[1::2], strict=True))
    assert list(pairs) == [b"id", b"from", b"to", b"reason", b"version"]
    return tuple(v.decode() for v in pairs.values())


def record(rec: Rec) -> dict[bytes, bytes]:
    """The hash of a record according to the model, without times."""
    epoch, _, ver = rec.version.partition("-")
    known: dict[str, object] = {
        "tier": rec.tier, "epoch": epoch, "ver": ver, "tok": rec.write_id, "bytes": len(rec.content), "clean": int(rec.clean),
        **dict(rec.fields),
    }  # fmt: skip
    if rec.alive:
        known |= {"tokens": rec.tokens, "moved": rec.moved}
    if rec.clean:
        known |= {"archived_bytes": rec.archived_bytes}
    if rec.tier == "warm":
        known |= {"codec": rec.codec, "frame_bytes": len(rec.frame or b"")}
    made = {k.encode(): str(v).encode() for k, v in known.items()}
    return made | {b"content": rec.content} if rec.tier == "hot" else made


def untimed(state: dict[str, Any]) -> dict[str, Any]:
    """A dump without the fields that hold times, without the time of the last move, and TTLs only by their sign."""
    return {key: (type, _untimed(value), 1 if pttl > 0 else pttl) for key, (type, value, pttl) in state.items()}


def _untimed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    fields = {k: v for k, v in value.items() if k.decode() not in UNTIMED}
    return fields | {b"moved": fields[b"moved"].partition(b" ")[2]} if b"moved" in fields else fields


def plain(reply: object) -> object:
    """The result of a script's function in the form that the model returns."""
    match reply:
        case Put(_, ver, evicted):
            return "OK", ver, evicted
        case Replayed(epoch, ver, tier):
            # a put by the write id of a delete: the model forgets an archived tombstone at once, the script later
            return "REPLAYED", f"{epoch}-{ver}", "" if tier == "deleted" else tier
        case Refused(word, version):
            return (word, version) if word in ("CONFLICT", "MISSING") else (word,)
        case Applied(evicted):
            return "OK", evicted
        case lua.Deleted(version, _):
            return "OK", str(version)
        case tuple():
            return "OK", reply
    return reply


def run_script(exchange: Exchange, call: RunScript[T]) -> T:
    runner = PlanRunner(exchange, None)  # type: ignore[arg-type]  # no archive here
    result: T = runner.perform(call)
    return result


def open_shard(exchange: Exchange, shard: Shard, limits: dict[str, int], eviction: str = "") -> None:
    """A new shard in epoch 1."""
    stored = [Limit(name, value, True) for name, value in limits.items()]
    found = run_script(exchange, lua.open_shard(shard, stored))
    assert isinstance(found, lua.Unclaimed)
    call = lua.open_shard(shard, stored, eviction=eviction, epoch=1, replid=found.replid, empty=True)
    again = run_script(exchange, call)
    assert isinstance(again, lua.Opened)
    assert again.epoch == 1


def check(exchange: Exchange, policy: str, examples: int) -> None:
    run_state_machine_as_test(
        lambda: Shards(exchange, policy),  # type: ignore[arg-type]  # any maker of one will do
        settings=settings(
            max_examples=examples, stateful_step_count=STEPS, deadline=None,
            suppress_health_check=list(HealthCheck), database=None, print_blob=True,
            phases=(Phase.explicit, Phase.generate, Phase.shrink),
        ),
    )  # fmt: skip


def test_scripts_agree_with_the_model(exchange: Exchange) -> None:
    """Fewer examples on fakeredis: a step takes ten times as long there."""
    check(exchange, "lru", max(1, EXAMPLES // 4) if isinstance(exchange, FakeExchange) else EXAMPLES)


@pytest.mark.parametrize(
    "policy", [name for name in POLICIES if name not in ("lru", "lfu")]
)  # lfu decides by times, too
def test_scripts_agree_with_the_model_under_another_policy(real_exchange: Exchange, policy: str) -> None:
    check(real_exchange, policy, max(1, EXAMPLES // 3))
