"""The schema of a shard, as data: its keys, the fields of a record, and the lifecycle of a module.

*A module is in exactly one state, and its record says which*: `tier` and `clean`. `LIFECYCLE` lists for each state where the
content is, whether there is a frame and whether it expires, which sets name the module, and what it adds to the accounts.
These tables are the source of the constants and accounts of the Lua prelude, the recount of `fsck` and of the tests, the
checks after each step of a plan, the near cache's prefixes, and docs/KEYSPACE.md. The tests compare the roles of
`deploy/redis/users.acl` with them.

A change of the tables that older clients cannot read needs another `LAYOUT` and a migration (`plans/recovery/migrate.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import NamedTuple

LAYOUT = 2
"""The number of this layout. A client that meets another number refuses to work on the namespace.

Layout 2 added the index of ids, the field `moved`, and frames that name their version.
"""

TOMBSTONE_TTL_MS = 600_000
"""How long a tombstone stays after it was archived, in milliseconds. An older durable write that is still in progress would
otherwise bring the module back."""
CHUNK_MAX = 127
"""The most ids in a chunk of the index. Redis keeps a sorted set that never had more than 128 members in a compact form, and a
chunk has one member more just before it is divided."""
DONE_MAX = 8192
"""The number of its last writes that a shard remembers, so that a write that is sent again is not applied twice."""

REGRET_MS = 600_000
"""A module that is fetched from the archive this soon after its eviction, in milliseconds, counts as regretted."""

READS_MAX = 2_000
"""How many batches of uses the stream of recorded reads keeps."""

VICTIMS_WORTH = 8
"""Under `lru`, a copy of a read needs at least an eighth of the uses for each byte that the modules that would leave have:
those were used least recently, so their uses are old."""
WORTH_FIRST, WORTH_MAX = 4, 64
"""The same for warm, where the workload changes it (`policy/admission.py`): at the beginning, and at most. The least is 1."""
WORTH_STEP = 2**0.25
"""By what it changes when a ghost is read."""
GHOSTS_PART = 8
"""Ghosts are kept of one id in this many: of those whose last 16 bytes have a sum that it divides."""

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
"""The budgets (fields of `limits`), and the field of `usage` that counts against each."""


# -- records ---------------------------------------------------------------------------------------------------------------


class Field(NamedTuple):
    """A field of a record. `when` says which records have it; empty for all records."""

    name: str
    when: str = ""
    what: str = ""


RECORD: tuple[Field, ...] = (
    Field("tier"), Field("epoch"), Field("ver"), Field("tok"), Field("seen"), Field("bytes"), Field("tokens"),
    Field("counter"), Field("sha256"), Field("type"), Field("keywords"), Field("meta"), Field("clean"), Field("created"),
    Field("updated"),
    Field("archived_bytes", "clean"),
    Field(
        "archived_key", "clean",
        "`^<directories up>.<number>-<token>` if a pack has it; a key if its object has another name than the version's own",
    ),
    Field("codec", "warm"),
    Field("frame_bytes", "warm"),
    Field("transform", "if one was applied"),
    Field("outline", "if one is kept"),
    Field("content", "hot"),
    Field("moved", "the module was put or has moved since layout 2", "`<ms> <from> <to> <reason>` of its last move"),
    Field("ttl", "its put gave it one", "ms after `updated` from which readers do not see it"),
    Field(
        "reserved", "a durable write is or was in progress", "`<epoch>-<ver>-<1 once deleted, else 0>-<write id>`"
    ),
)  # fmt: skip
VERSION = ("tier", "epoch", "ver", "tok", "seen", "bytes", "tokens", "clean")
"""The fields of a record that show whether a known version is still the current one, and where it is now."""
SIZES = ("tier", "epoch", "ver", "tok", "bytes", "tokens", "clean", "frame_bytes")
"""The fields of a record that the choice of victims reads."""


def describe_record() -> str:
    """Return a description of the fields of a record, for docs/KEYSPACE.md."""
    always = " ".join(field.name for field in RECORD if not field.when)
    parts = [
        f"`{field.name}` ({field.when}{': ' + field.what if field.what else ''})" for field in RECORD if field.when
    ]
    return (
        f"the record of a module: always `{always}`; in some states {', '.join(parts)}. `tier=deleted` is a tombstone"
    )


# -- the lifecycle ---------------------------------------------------------------------------------------------------------


class State(NamedTuple):
    """What a module in this state has.

    `frame` is empty if there is none, `lasting` for a frame without a TTL, and `expiring` for a frame with a TTL, which may
    have expired. `sets` are the shard's sets that name the module. `ttl_ms` is the TTL of the record, None for none.
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
        """What the state adds to the accounts: pairs of a field of `usage` and the field of the record whose value is added.

        An empty second field adds 1.
        """
        if not self.is_module and self.clean:
            return ()  # it expires, and no script runs then that could subtract it
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
"""The values of `tier` in a record."""
COUNTED = ("tier", "clean", "tokens", "bytes", "frame_bytes", "archived_bytes")
"""The fields of a record from which the accounts are computed."""


def state_of(tier: str, *, clean: bool) -> State | None:
    """Return the state of a record; None for a combination that is no state, because the record is damaged."""
    return _STATES.get((tier, clean))


def counted_as(tier: str, *, clean: bool) -> State:
    """Return the state as which the accounts count a record.

    A damaged record has one too: scripts and recounts must agree on it until the record is repaired.
    """
    return state_of(tier, clean=clean) or State(tier, clean)


def contribution(values: Sequence[bytes | None]) -> dict[str, int]:
    """Return what a record adds to the accounts; `values` are its COUNTED fields."""
    if values[0] is None:
        return {}
    tier, clean = values[0].decode(), values[1] == b"1"
    numbers = {name: int(value or 0) for name, value in zip(COUNTED[2:], values[2:], strict=True)}
    return {account: numbers[unit] if unit else 1 for account, unit in counted_as(tier, clean=clean).accounts}


# -- for the scripts ----------------------------------------------------------------------------------------------------


def lua_constants() -> str:
    """Return the beginning of the prelude: the keys that every script gets, and the numbers of this layout."""
    names = ", ".join(name.upper() for name in FIXED)
    keys = ", ".join(f"KEYS[{i}]" for i in range(1, len(FIXED) + 1))
    used = ", ".join(f"'{name}'" for name in BUDGETS.values())
    limited = ", ".join(f"'{name}'" for name in BUDGETS)
    return (
        f"local {names} = {keys}\n"
        f"local LAYOUT, TOMBSTONE_TTL_MS, DONE_MAX, CHUNK_MAX = '{LAYOUT}', {TOMBSTONE_TTL_MS}, {DONE_MAX}, {CHUNK_MAX}\n"
        f"local REGRET_MS, VICTIMS_WORTH, READS_MAX = {REGRET_MS}, {VICTIMS_WORTH}, {READS_MAX}\n"
        f"local WORTH_FIRST, WORTH_MAX, WORTH_STEP, GHOSTS_PART = {WORTH_FIRST}, {WORTH_MAX}, {WORTH_STEP!r}, {GHOSTS_PART}\n"
        "local ROOT = string.sub(EPOCH, 1, -6)\n"
        "local HOT_RANK, WARM_RANK = ROOT .. 'rank:hot', ROOT .. 'rank:warm'\n"
        "local call = redis.call\n\n"
        f"local function read_limits() return redis.call('HMGET', LIMITS, {limited}) end\n"
        f"local function read_used() return redis.call('HMGET', USAGE, {used}) end\n"
        f"local function budget_fields() return {{{used}}} end\n"
    )


def lua_accounts() -> str:
    """Return the Lua function `count(p, sign)`, which adds a placement to the accounts.

    It has one branch for each state instead of a table, because it runs in every script.
    """
    lines, keyword = ["local function count(p, sign)"], "if"
    for tier, clean in product(TIERS, (False, True)):
        state = counted_as(tier, clean=clean)
        if not state.accounts:
            continue
        adds = " ".join(f"add('{account}', sign{f' * p.{unit}' if unit else ''})" for account, unit in state.accounts)
        lines.append(f"  {keyword} p.tier == '{tier}' and {'p.clean' if clean else 'not p.clean'} then {adds}")
        keyword = "elseif"
    return "\n".join([*lines, "  end", "end", ""])


# -- keys ----------------------------------------------------------------------------------------------------------------


class KeyKind(NamedTuple):
    """A kind of key: its pattern, its Redis type, its contents, and a command to inspect one with redis-cli."""

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
        "the lz4 frame of a warm module, and behind it a skippable frame with the write id of its version (`codec=raw`: its "
        "plain bytes); the key has a TTL exactly while the version is clean. With `codec=lz4d:<name>` it was compressed with a "
        "dictionary, and nothing follows the frame; only frames of clean versions are",
        "PTTL 'distier:{team}:warm:skills/pdf'",
    ),
    KeyKind(
        "distier:{t}:hot",
        "zset",
        "ids of hot modules, scored by last use in ms: the LRU order",
        "ZRANGE 'distier:{team}:hot' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:warm",
        "zset",
        "ids of warm modules, scored by the time at which they become due for demotion, in ms",
        "ZRANGE 'distier:{team}:warm' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:rank:<tier>",
        "zset",
        "the order of eviction in hot or warm, under an eviction policy other than `lru`: ids, scored by their rank; the "
        "module with the lowest one leaves first",
        "ZRANGE 'distier:{team}:rank:hot' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:ghosts:<tier>",
        "zset",
        "a sample of the ids that warm lately evicted, scored by the time in ms, and of those that it refused, scored by "
        "the negative time; reads of them tell whether it admits too much (`worth` of the epoch). Under `s3fifo`, the ids "
        "that left hot or warm without a second use; at most as many as the tier has",
        "ZRANGE 'distier:{team}:ghosts:warm' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:ids",
        "zset",
        "the index of ids: the first id of each of its chunks but the first one, in the order of their bytes; all scores are 0",
        "ZRANGE 'distier:{team}:ids' 0 9",
    ),
    KeyKind(
        "distier:{t}:ids:<id>",
        "zset",
        f"a chunk of the index: at most {CHUNK_MAX} ids, from this one on, in the order of their bytes; the first "
        "chunk has no id in its name",
        "ZRANGE 'distier:{team}:ids:' - + BYLEX LIMIT 0 10",
    ),
    KeyKind(
        "distier:{t}:dirty",
        "zset",
        "ids of dirty modules, scored by the time of the put, in ms",
        "ZRANGE 'distier:{team}:dirty' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:expiring",
        "zset",
        "ids of the modules with a TTL, scored by the time at which they expire, in ms; others may be among them"
        ", because the record decides",
        "ZRANGE 'distier:{team}:expiring' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:uses",
        "zset",
        "ids, scored by their count of uses, which is halved every `worker.uses_half_life`",
        "ZREVRANGE 'distier:{team}:uses' 0 9 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:next",
        "hash",
        "what prediction has learned: `<id>` holds `<generation> <uses>`, and the modules that were used within three accesses "
        "after it in the same session, each with its count; `%:<keyword>` the modules of sessions with that keyword; the "
        "field without a name the generation, its uses and the bytes of the hash. A follower is an id without the beginning "
        "that it shares with its field (`7:web` after `skills/pdf` is `skills/web`). It has at most 64 bytes for each module "
        "of the shard, and may be deleted at any time",
        "HGET 'distier:{team}:next' skills/pdf",
    ),
    KeyKind(
        "distier:{t}:dictionaries",
        "hash",
        "the dictionaries that warm copies of this shard need to be opened, each by its name, the first 8 digits of its "
        "SHA-256. The epoch's field `dictionary` names the current one, with which new frames are made; others are dropped "
        "when no record of the shard names them any more. The archive has them too, so the key may be deleted at any time",
        "HSTRLEN 'distier:{team}:dictionaries' 5bc01ba4",
    ),
    KeyKind(
        "distier:{t}:hits",
        "hash",
        "the reads of all processes since the namespace was made: `hot warm cold` and their tokens, `hot_tokens warm_tokens "
        "cold_tokens`, by the tier in which the module was when its uses were reported (reads from near caches count too); and "
        f"`regret regret_tokens`, modules that were fetched from the archive within {REGRET_MS // 60_000} minutes after they "
        "were evicted",
        "HGETALL 'distier:{team}:hits'",
    ),
    KeyKind(
        "distier:{t}:reads",
        "stream",
        "the uses that are reported while `distier record` or `--live` runs: ids, and the number of uses of each; it expires a "
        "minute after that",
        "XREVRANGE 'distier:{team}:reads' + - COUNT 2",
    ),
    KeyKind(
        "distier:{t}:usage",
        "hash",
        "counts, tokens and bytes of each tier, which the scripts keep equal to a recount: `hot_count hot_tokens hot_bytes`, "
        "`warm_count warm_tokens warm_bytes warm_frame_bytes`, `cold_count cold_tokens cold_bytes`, `dirty_count dirty_bytes` "
        "(not archived yet), `archived_count archived_bytes` (current versions in the archive), `deleted_count` (dirty "
        "tombstones)",
        "HGETALL 'distier:{team}:usage'",
    ),
    KeyKind(
        "distier:{t}:limits",
        "hash",
        "this shard's quota of the budgets: `hot_tokens hot_bytes warm_modules warm_bytes`; with several shards `shares`, the "
        "version of the ledger that set them; and `warm_ttl_ms events_max`",
        "HGETALL 'distier:{team}:limits'",
    ),
    KeyKind(
        "distier:{t}:pins",
        "zset",
        "pinned ids, scored by the end of the pin, in ms; every pin ends",
        "ZRANGE 'distier:{team}:pins' 0 -1 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:lease:<id>",
        "string",
        "a lease, which has a TTL: `<id>` names the process that fetches the module from the archive, `<id>%waiting` says "
        "that readers wait for its copy, `<id>%archive` names the process that archives it, `%worker` the worker that "
        "maintains the shard (`<fence>:<worker>`); `%sweep` means that the archive was swept a short time ago, `%dictionary` "
        "that a worker lately learned a dictionary, or tried to. A lease saves work and never guards correctness",
        "GET 'distier:{team}:lease:skills/pdf'",
    ),
    KeyKind(
        "distier:{t}:done",
        "hash",
        f"the last {DONE_MAX:,} writes of the shard, so that a call that is sent again is answered and not applied twice: "
        "`<write id>` holds the version that the put or delete made (with `-` after it if the delete found nothing); `#<n>` "
        "holds the write id at index `n`",
        "HLEN 'distier:{team}:done'",
    ),
    KeyKind(
        "distier:{t}:events",
        "stream",
        "tier changes (`id from to reason version`), trimmed by `MAXLEN ~`; a hint and a history, not a work queue",
        "XREVRANGE 'distier:{team}:events' + - COUNT 2",
    ),
    KeyKind(
        "distier:{t}:epoch",
        "hash",
        "the state of the shard: `layout shards epoch ver created aged sampled replid since verified fence clock archive "
        "eviction ranked recording dictionary`. "
        "`aged` is when the worker last halved all counts of uses; `sampled` counts uses, and there are ten for each module in "
        "hot and warm when it halves them too; `migrating` is the layout that a migration in progress comes from. `ver` is the "
        "counter of versions, `clock` the last time that was used for a score, in ms, `fence` the counter of worker leases, "
        "`replid` the server's incarnation for which the epoch was installed, `verified` the epoch in which all records were "
        "compared with the archive, `archive` the name that the archive must have (its object `<ns>/identity/<name>`). "
        "`opening` exists while the shard has no epoch. `eviction` is the eviction policy (without it `lru`); `ranked` is 1 "
        "once all modules have ranks for it; `hot_floor` and `warm_floor` are the greatest ranks that were evicted. "
        "`recording` is the time in ms until which uses are recorded in `reads`. `worth` is how much less a module of warm "
        "counts than the copy that would replace it: 1 is strict, 64 admits nearly all",
        "HGETALL 'distier:{team}:epoch'",
    ),
    KeyKind(
        "distier:{t}:nodes",
        "zset",
        "nodes that keep copies on their own disks, scored by the time until which they count as alive, in ms; in the first "
        "shard only",
        "ZRANGE 'distier:{team}:nodes' 0 -1 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:nodes:<node>",
        "hash",
        "the contents of a node's disk, over all namespaces: `modules bytes max_modules max_bytes updated`; in the first shard "
        "only. The key has a TTL, which a heartbeat renews every two seconds while a process of the node is alive",
        "HGETALL 'distier:{team}:nodes:web1'",
    ),
    KeyKind(
        "distier:{t}:held:<node>",
        "set",
        "ids of this shard that the node's disk holds, up to a second late. A hint of which node to ask; it disappears with "
        "the node",
        "SCARD 'distier:{team}:held:web1'",
    ),
    KeyKind(
        "distier:{t}:asks:<node>",
        "list",
        "requests of other nodes for copies: JSON of id, write id, what is wanted, and the name of the answer; the last 64 "
        "requests, for some seconds; in the first shard only",
        "LRANGE 'distier:{team}:asks:web1' 0 -1",
    ),
    KeyKind(
        "distier:{t}:answer:<ask>",
        "list",
        "the answer to one request, which expires after five seconds: `=` and the copy, `^` if the module was promoted, `-` if "
        "the node has no copy",
        "TTL 'distier:{team}:answer:<ask>'",
    ),
    KeyKind(
        "distier:{t}:workers",
        "zset",
        "workers, scored by the time until which they count as alive, in ms; in the first shard only",
        "ZRANGE 'distier:{team}:workers' 0 -1 WITHSCORES",
    ),
    KeyKind(
        "distier:{t}:shares",
        "hash",
        "the ledger of the shards' quotas, if there are several shards; in the first shard only: `version`, `tok` (the write "
        "id of the last change), `total` of the namespace, `<number>` for the quota of each shard, `next.<number>` during a "
        "change. Each quota is hot tokens, hot bytes, warm modules, warm bytes. `making` exists while the ledger is created",
        "HGETALL 'distier:{big.0}:shares'",
    ),
)
