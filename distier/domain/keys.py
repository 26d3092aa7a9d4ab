"""The Redis keyspace of a namespace: the name of every key that distier writes.

A namespace has a fixed number of shards. The keys of a shard have one hash tag in common, so that one script can access
all of them, on a Redis Cluster too. `schema.py` describes what the keys hold.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from functools import cached_property
from zlib import crc32

from .ids import decode_id, encode_id
from .schema import FIXED, MODULE

WAITING = "%waiting"
"""What follows the key of a lease in the key with the mark of readers that wait for its holder."""


@dataclass(frozen=True, eq=False)
class Shard:
    """The key names of one shard. A `Keyspace` has one object for each shard, and shards are compared by identity.

    `fixed` are the keys that every script gets first, in this order.
    """

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
        """The slot of a Redis Cluster with all keys of this shard: CRC-16/XMODEM of the hash tag, modulo 16384."""
        return crc_hqx(self.tag.encode(), 0) % 16384

    @cached_property
    def fixed(self) -> tuple[str, ...]:
        return tuple(self.root + name for name in FIXED)

    @cached_property
    def modules(self) -> str:
        """The prefix of the keys of records, which near caches follow."""
        return f"{self.root}{MODULE}:"

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

    @property
    def ids(self) -> str:
        return self.root + "ids"

    @property
    def expiring(self) -> str:
        return self.root + "expiring"

    @property
    def hits(self) -> str:
        return self.root + "hits"

    @property
    def reads(self) -> str:
        return self.root + "reads"

    def ranks(self, tier: str) -> str:
        """Return the key with the order of eviction in `hot` or `warm`, under an eviction policy other than `lru`."""
        return f"{self.root}rank:{tier}"

    def chunk(self, first: str) -> str:
        """Return the key of a chunk of the index of ids. `first` is its first id, empty for the first chunk."""
        return f"{self.root}ids:{encode_id(first) if first else ''}"

    def module(self, id: str) -> str:
        return self.modules + encode_id(id)

    def frame(self, id: str) -> str:
        return f"{self.root}warm:{encode_id(id)}"

    def lease(self, id: str) -> str:
        return f"{self.root}lease:{encode_id(id)}"

    def waiting(self, id: str) -> str:
        return f"{self.root}lease:{encode_id(id)}{WAITING}"

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
    def learned(self) -> str:
        return self.root + "next"

    @property
    def dictionaries(self) -> str:
        return self.root + "dictionaries"

    @property
    def dictionary_lease(self) -> str:
        return f"{self.root}lease:%dictionary"

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
        """Return the id in the name of a record's key. Raises `Invalid` for a key that distier did not write."""
        return decode_id(module_key.decode(errors="replace")[len(self.modules) :])

    def module_pattern(self, encoded_prefix: str) -> str:
        # `{` and `}` have no meaning in SCAN patterns, and an encoded prefix has no glob characters.
        return f"{self.modules}{encoded_prefix}*"


@dataclass(frozen=True)
class Keyspace:
    """All shards of a namespace, and the shard of each id."""

    namespace: str
    count: int = 1

    @cached_property
    def shards(self) -> tuple[Shard, ...]:
        return tuple(Shard(self.namespace, i, self.count) for i in range(self.count))

    def shard(self, id: str) -> Shard:
        """Return the shard of an id: CRC-32 of the id modulo the number of shards, which any language can compute."""
        return self.shards[crc32(id.encode()) % self.count if self.count > 1 else 0]
