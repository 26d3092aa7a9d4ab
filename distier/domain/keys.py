"""The Redis keyspace of a namespace: every key that distier ever writes is named here.

A namespace has a fixed number of shards; the keys of a shard share one hash tag, so that one script sees all
of it, on a Redis Cluster too. `KEYSPACE` is the table from which `docs/KEYSPACE.md` is generated and against
which a test checks a live server.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple
from zlib import crc32

from .ids import decode_id, encode_id

LAYOUT = 1
"""The number of this key layout. A client that meets another number refuses to work on it."""


class KeyKind(NamedTuple):
    pattern: str
    type: str
    what: str
    look: str


KEYSPACE: tuple[KeyKind, ...] = (
    KeyKind(
        "distier:{t}:module:<id>",
        "hash",
        "the record of a module: `tier epoch ver tok seen bytes tokens counter sha256 type keywords meta clean created "
        "updated`, then where they apply `archived_bytes` (clean), `archived_key` (its object has another name than its "
        "own), `codec frame_bytes` (warm), `transform`, `outline`, `content` (hot), and `reserved` (a durable "
        "write is or was under way: `<epoch>-<ver>-<1 once deleted>-<tok>`). "
        "`tier=deleted` is a tombstone that is not archived yet",
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


@dataclass(frozen=True, eq=False)
class Shard:
    """The key names of one shard; there is one object for each in a `Keyspace`, and it is compared by identity. `fixed` are
    the keys that every script gets first, in this order."""

    namespace: str
    index: int
    count: int

    @property
    def tag(self) -> str:
        return self.namespace if self.count == 1 else f"{self.namespace}.{self.index}"

    @cached_property
    def root(self) -> str:
        return f"distier:{{{self.tag}}}:"

    @cached_property
    def slot(self) -> int:
        """Where a Redis Cluster keeps all keys of this shard: CRC-16/XMODEM of the hash tag, modulo 16384."""
        return crc_hqx(self.tag.encode(), 0) % 16384

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        return tuple(
            self.root + name for name in ("epoch", "limits", "usage", "hot", "warm", "dirty", "uses", "pins", "events")
        )

    @cached_property
    def _modules(self) -> str:
        return self.root + "module:"

    @property
    def epoch(self) -> str:
        return self.fixed[0]

    @property
    def limits(self) -> str:
        return self.fixed[1]

    @property
    def usage(self) -> str:
        return self.fixed[2]

    @property
    def hot(self) -> str:
        return self.fixed[3]

    @property
    def warm(self) -> str:
        return self.fixed[4]

    @property
    def dirty(self) -> str:
        return self.fixed[5]

    @property
    def uses(self) -> str:
        return self.fixed[6]

    @property
    def pins(self) -> str:
        return self.fixed[7]

    @property
    def events(self) -> str:
        return self.fixed[8]

    def module(self, id: str) -> str:
        return self._modules + encode_id(id)

    def frame(self, id: str) -> str:
        return f"{self.root}warm:{encode_id(id)}"

    def lease(self, id: str) -> str:
        return f"{self.root}lease:{encode_id(id)}"

    def write_back_lease(self, id: str) -> str:
        return f"{self.root}lease:{encode_id(id)}%archive"  # no encoded id has a bare `%`

    @property
    def worker_lease(self) -> str:
        return f"{self.root}lease:%worker"

    @property
    def sweep_lease(self) -> str:
        return f"{self.root}lease:%sweep"

    @property
    def workers(self) -> str:
        return self.root + "workers"

    @property
    def quotas(self) -> str:
        return self.root + "shares"

    @cached_property
    def done(self) -> str:
        return self.root + "done"

    @property
    def nodes(self) -> str:
        return self.root + "nodes"

    def node(self, name: str) -> str:
        return f"{self.root}nodes:{name}"

    def held(self, node: str) -> str:
        return f"{self.root}held:{node}"

    def asks(self, node: str) -> str:
        return f"{self.root}asks:{node}"

    def answer(self, ask: str) -> str:
        return f"{self.root}answer:{ask}"

    def id_of(self, module_key: bytes) -> str:
        """The id in the name of a record's key. Raises `Invalid` for a key that distier never wrote."""
        return decode_id(module_key.decode(errors="replace")[len(self._modules) :])

    def module_pattern(self, encoded_prefix: str) -> str:
        # `{` and `}` are plain in SCAN patterns, and an encoded prefix has no glob characters.
        return f"{self._modules}{encoded_prefix}*"


@dataclass(frozen=True)
class Keyspace:
    """All shards of a namespace, and which one an id belongs to."""

    namespace: str
    count: int = 1

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(Shard(self.namespace, i, self.count) for i in range(self.count))

    def shard(self, id: str) -> Shard:
        """CRC-32 of the id, modulo the number of shards: fixed for ever, and easy to compute in any language."""
        return self.shards[crc32(id.encode()) % self.count if self.count > 1 else 0]
