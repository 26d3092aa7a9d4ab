"""The schema of a shard, as data: its keys, the fields of a record, and the lifecycle of a module.

*A module is in exactly one state, and its record says which*: `tier` and `clean`. `LIFECYCLE` has what each state keeps and
where: the content, the frame and its TTL, the sets that name the module, and what it adds to the accounts. From these tables
come the constants and the accounts of the Lua prelude, the recount of `fsck` and of the tests, the checks after each step of a
plan, the near cache's prefixes, docs/KEYSPACE.md, and what the roles of `deploy/redis/users.acl` are compared with.

A change of the tables that older clients cannot read gets another `LAYOUT` and a migration (`domain/layouts.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

LAYOUT = 1
"""The number of this layout. A client that meets another number refuses to work on the namespace."""

TOMBSTONE_TTL_MS = 600_000
"""How long a tombstone stays after it was archived, so that an older durable write that is under way cannot come after it."""
DONE_MAX = 8192
"""How many of its last writes a shard remembers, so that one that is sent again is not applied again."""

MODULE = "module"
"""The kind of the keys of records, which near caches follow: `distier:{t}:module:<id>`."""

FIXED = ("epoch", "limits", "usage", "hot", "warm", "dirty", "uses", "pins", "events")
"""The keys of a shard that every script gets first, in this order."""

BUDGETS = {
    "hot_tokens": "hot_tokens",
    "hot_bytes": "hot_bytes",
    "warm_modules": "warm_count",
    "warm_bytes": "warm_frame_bytes",
}
"""The budgets (fields of `limits`) and what counts against each (fields of `usage`)."""


# -- records ---------------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A field of a record. `when`: the records that have it, empty for all."""

    name: str
    when: str = ""
    what: str = ""


RECORD: tuple[Field, ...] = (
    Field("tier"), Field("epoch"), Field("ver"), Field("tok"), Field("seen"), Field("bytes"), Field("tokens"),
    Field("counter"), Field("sha256"), Field("type"), Field("keywords"), Field("meta"), Field("clean"), Field("created"),
    Field("updated"),
    Field("archived_bytes", "clean"),
    Field("archived_key", "clean", "where its object has another name than its own"),
    Field("codec", "warm"),
    Field("frame_bytes", "warm"),
    Field("transform", "where one was applied"),
    Field("outline", "where one is kept"),
    Field("content", "hot"),
    Field("reserved", "a durable write is or was under way", "`<epoch>-<ver>-<1 once deleted>-<write id>`"),
)  # fmt: skip
SIZES = ("tier", "epoch", "ver", "tok", "bytes", "tokens", "clean", "frame_bytes")
"""What the choice of victims reads of a record."""


def describe_record() -> str:
    """The fields of a record, in words."""
    always = " ".join(field.name for field in RECORD if not field.when)
    parts = [
        f"`{field.name}` ({field.when}{': ' + field.what if field.what else ''})" for field in RECORD if field.when
    ]
    return (
        f"the record of a module: `{always}`, then where they apply {', '.join(parts)}. `tier=deleted` is a tombstone"
    )


# -- the lifecycle ---------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What a module in this state has.

    `frame` is empty for none, `lasting` for one without a TTL, and `expiring` for one with a TTL, which may be gone. `sets` are
    those of the shard's sets that name the module. `ttl_ms` is that of the record, None for none.
    """

    tier: str
    clean: bool
    content: bool = False
    frame: str = ""
    sets: tuple[str, ...] = ()
    ttl_ms: int | None = None

    @property
    def is_module(self) -> bool:
        return self.tier != "deleted"

    @property
    def accounts(self) -> tuple[tuple[str, str], ...]:
        """What the state adds to the accounts: a field of `usage`, and the field of the record whose value is added (empty for
        one)."""
        if not self.is_module and self.clean:
            return ()  # it expires without a script that could take it out again
        found = [(f"{self.tier}_count", "")]
        if self.is_module:
            found += [(f"{self.tier}_tokens", "tokens"), (f"{self.tier}_bytes", "bytes")]
        if self.frame:
            found.append(("warm_frame_bytes", "frame_bytes"))
        if not self.clean:
            found += [("dirty_count", ""), ("dirty_bytes", "bytes")]
        elif self.is_module:
            found += [("archived_count", ""), ("archived_bytes", "archived_bytes")]
        return tuple(found)


LIFECYCLE: tuple[State, ...] = (
    State("hot", clean=False, content=True, sets=("hot", "dirty")),
    State("hot", clean=True, content=True, sets=("hot",)),
    State("warm", clean=False, frame="lasting", sets=("warm", "dirty")),
    State("warm", clean=True, frame="expiring", sets=("warm",)),
    State("cold", clean=True),
    State("deleted", clean=False, sets=("dirty",)),
    State("deleted", clean=True, ttl_ms=TOMBSTONE_TTL_MS),
)
_STATES = {(state.tier, state.clean): state for state in LIFECYCLE}
TIERS = ("hot", "warm", "cold", "deleted")
"""What a record may name as its tier."""
COUNTED = ("tier", "clean", "tokens", "bytes", "frame_bytes", "archived_bytes")
"""The fields of a record that the accounts are made of."""


def state_of(tier: str, *, clean: bool) -> State | None:
    """The state of a record; None where there is no such state: the record is damaged."""
    return _STATES.get((tier, clean))


def counted_as(tier: str, *, clean: bool) -> State:
    """The state that a record counts as, a damaged one too: scripts and recounts must agree on it until it is repaired."""
    return state_of(tier, clean=clean) or State(tier, clean)


def contribution(values: Sequence[bytes | None]) -> dict[str, int]:
    """What a record adds to the accounts; `values` are its COUNTED fields."""
    if values[0] is None:
        return {}
    tier, clean = values[0].decode(), values[1] == b"1"
    numbers = {name: int(value or 0) for name, value in zip(COUNTED[2:], values[2:], strict=True)}
    return {account: numbers[unit] if unit else 1 for account, unit in counted_as(tier, clean=clean).accounts}


# -- for the scripts ----------------------------------------------------------------------------------------------------


def lua_constants() -> str:
    """What the prelude begins with: the keys that every script gets, and the numbers of this layout."""
    names = ", ".join(name.upper() for name in FIXED)
    keys = ", ".join(f"KEYS[{i}]" for i in range(1, len(FIXED) + 1))
    used = ", ".join(f"'{name}'" for name in BUDGETS.values())
    limited = ", ".join(f"'{name}'" for name in BUDGETS)
    return (
        f"local {names} = {keys}\n"
        f"local LAYOUT, TOMBSTONE_TTL_MS, DONE_MAX = '{LAYOUT}', {TOMBSTONE_TTL_MS}, {DONE_MAX}\n"
        f"local function read_limits() return redis.call('HMGET', LIMITS, {limited}) end\n"
        f"local function read_used() return redis.call('HMGET', USAGE, {used}) end\n"
        f"local function budget_fields() return {{{used}}} end\n"
    )


def lua_accounts() -> str:
    """`count(p, sign)`: what a placement adds to the accounts, written out for each state, since it runs in every script."""
    lines, word = ["local function count(p, sign)"], "if"
    for tier, clean in product(TIERS, (False, True)):
        state = counted_as(tier, clean=clean)
        if not state.accounts:
            continue
        adds = " ".join(f"add('{account}', sign{f' * p.{unit}' if unit else ''})" for account, unit in state.accounts)
        lines.append(f"  {word} p.tier == '{tier}' and {'p.clean' if clean else 'not p.clean'} then {adds}")
        word = "elseif"
    return "\n".join([*lines, "  end", "end", ""])


# -- keys ----------------------------------------------------------------------------------------------------------------


class KeyKind(NamedTuple):
    """A kind of key: its pattern, its Redis type, what it holds, and how to look at one with redis-cli."""

    pattern: str
    type: str
    what: str
    look: str


KEYSPACE: tuple[KeyKind, ...] = (
    KeyKind(
        "distier:{t}:module:<id>",
        "hash",
        describe_record(),
        "HGETALL 'distier:{team}:module:skills/pdf'",
    ),
    KeyKind(
        "distier:{t}:warm:<id>",
        "string",
        "the lz4 frame of a warm module (`codec=raw`: its plain bytes); has a TTL exactly while the version is clean",
        "PTTL 'distier:{team}:warm:skills/pdf'",
    ),
    KeyKind(
        "distier:{t}:hot",
        "zset",
        "ids of hot modules by last use, in ms: the LRU order",
        "ZRANGE 'distier:{team}:hot' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:warm",
        "zset",
        "ids of warm modules by the time when they are due to leave, in ms",
        "ZRANGE 'distier:{team}:warm' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:dirty",
        "zset",
        "ids of versions that are not archived yet, by the time of the put, in ms",
        "ZRANGE 'distier:{team}:dirty' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:uses",
        "zset",
        "ids by their count of uses, halved every `worker.uses_half_life`",
        "ZREVRANGE 'distier:{team}:uses' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:usage",
        "hash",
        "counts, tokens and bytes of each tier, kept by the scripts, equal to a recount: `hot_count hot_tokens hot_bytes`, "
        "`warm_count warm_tokens warm_bytes warm_frame_bytes`, `cold_count cold_tokens cold_bytes`, `dirty_count dirty_bytes` "
        "(not archived yet), `archived_count archived_bytes` (current versions in the archive), `deleted_count` (tombstones)",
        "HGETALL 'distier:{team}:usage'",
    ),
    KeyKind(
        "distier:{t}:limits",
        "hash",
        "this shard's share of the budgets: `hot_tokens hot_bytes warm_modules warm_bytes`, the version of the ledger that set "
        "them, `shares` (with several shards), and `warm_ttl_ms events_max`",
        "HGETALL 'distier:{team}:limits'",
    ),
    KeyKind(
        "distier:{t}:pins",
        "zset",
        "pinned ids by the end of the pin, in ms; a pin always ends",
        "ZRANGE 'distier:{team}:pins' 0 -1 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:lease:<id>",
        "string",
        "who is fetching the module from the archive, or `<id>%archive`: writing it "
        "back; `%worker`: which worker maintains the shard (`<fence>:<worker>`), `%sweep`: the archive was swept a short time "
        "ago. Has a TTL. Saves work, never guards correctness",
        "GET 'distier:{team}:lease:skills/pdf'",
    ),
    KeyKind(
        "distier:{t}:done",
        "hash",
        "the last 8,192 writes of the shard: `<tok>` is the version that a put or delete made (with `-` behind it where a "
        "delete found nothing), so that a call that is sent again is answered and not applied again; `#<n>` is the tok "
        "in place `n`",
        "HLEN 'distier:{team}:done'",
    ),
    KeyKind(
        "distier:{t}:events",
        "stream",
        "tier changes (`id from to reason version`), trimmed by `MAXLEN ~`; a hint and a history, never a work queue",
        "XREVRANGE 'distier:{team}:events' + - COUNT 2",
    ),
    KeyKind(
        "distier:{t}:epoch",
        "hash",
        "the shard's life: `layout shards epoch ver created aged replid since verified fence clock archive`; `ver` is the "
        "counter of versions, `clock` the last time that was used for a score, in ms, `fence` that of the workers that had "
        "its lease, `replid` the server's life for which the epoch was installed, `verified` the epoch for which all records "
        "have been compared with the archive, `archive` the name that the archive must have (its object "
        "`<ns>/identity/<name>`); `opening` while it has no epoch",
        "HGETALL 'distier:{team}:epoch'",
    ),
    KeyKind(
        "distier:{t}:nodes",
        "zset",
        "nodes that keep copies on their own disks, by the time until which they count as alive, in ms; in the first shard",
        "ZRANGE 'distier:{team}:nodes' 0 -1 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:nodes:<node>",
        "hash",
        "what a node's disk holds, over all namespaces: `modules bytes max_modules max_bytes updated`; in the first shard; has "
        "a TTL, and is renewed every two seconds while a process of the node lives",
        "HGETALL 'distier:{team}:nodes:web1'",
    ),
    KeyKind(
        "distier:{t}:held:<node>",
        "set",
        "ids of this shard that the node's disk holds, up to a second late: whom to ask. A hint; goes with the node",
        "SCARD 'distier:{team}:held:web1'",
    ),
    KeyKind(
        "distier:{t}:asks:<node>",
        "list",
        "copies that other nodes ask this one for: JSON of id, tok, what is wanted, and the name of the answer; the last 64, "
        "for some seconds; in the first shard",
        "LRANGE 'distier:{team}:asks:web1' 0 -1",
    ),
    KeyKind(
        "distier:{t}:answer:<tok>",
        "list",
        "the answer to one ask, taken at once, or gone after five seconds: `=` and the copy, `^` promoted, `-` not there",
        "TTL 'distier:{team}:answer:<tok>'",
    ),
    KeyKind(
        "distier:{t}:workers",
        "zset",
        "workers by the time until which they count as alive, in ms; of the first shard only",
        "ZRANGE 'distier:{team}:workers' 0 -1 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:shares",
        "hash",
        "the ledger of the shards' shares, with several shards, of the first one only: `version`, `tok` of the last change, "
        "`total` of the namespace, for each shard `<number>` its share, and during a change `next.<number>`; each is hot "
        "tokens, hot bytes, warm modules, warm bytes. `making`: it is being made",
        "HGETALL 'distier:{big.0}:shares'",
    ),
)
