"""The near cache keeps modules in the process itself, and Redis reports when they change.

A second connection, the tracker's, sends `CLIENT TRACKING ON BCAST PREFIX distier:{t}:module:`. From then on it receives a
push for every record that any client writes or deletes, or that is evicted or expires. A record changes with every new
version, so it is enough to follow the records, also for modules that were read from warm or from the archive.

*No order of arrival leaves an old module here.* A read begins (it takes a ticket), Redis executes it at a moment R, and the
read ends by filling the cache. Let W be any change after R. Its push cannot be processed before the read began, so it is

    processed between begin and fill    it voids the ticket, and the result is kept only as a suspect; or
    processed after the fill            it makes the entry a suspect,

however late or early the reply arrived on its own connection. The push of a change before R may void a ticket needlessly,
which costs one more read. This requires complete pushes. A read that begins before Redis has confirmed the tracking gets no
ticket. All entries become suspects and all tickets are void when the connection is lost, and again when it is back.

*A move is not a change.* Each move between tiers rewrites the record, and the server pushes the same message as for a new
version. So a push makes the entry a *suspect*: it is not served, and its content stays. The next `get` of the module reads the
record without the content (a small record whole, so that a changed one costs no second round trip). If the record still has
the suspect's version, that is (epoch, ver, write id), and is known to be current, the suspect is the result, with the record's
tier. It fills the cache with the ticket of this read, as the result of any other read does. So tickets decide what is fresh,
and a suspect saves only the transfer of content, or a request to the archive. The write id alone is not enough: a write that
was sent again after a loss of data keeps its id, at another position.

A process also gets the push for its own promotion or warm copy, and its entry becomes a suspect like any other. Rejected: to
match pushes with own writes (the server merges the changes that one turn of its event loop makes to a key, so another client's
change may be in the same push), and NOLOOP for the same reason.

*A hit has a known maximum age.* A push arrives some time after the change: usually within a millisecond, and never on a
network that drops packets. So the tracker sends PINGs, one at a time. Replies and pushes arrive in one stream, in the order
in which the server wrote them. But the server writes the pushes of an iteration of its event loop at the end of that
iteration, after a PONG of the same iteration. PING n is sent after PONG n-1 has arrived, so the server reads it in a later
iteration than PING n-1. Therefore PONG n arrives after every push of a change that was made before PING n-1 was executed, and
so before it was sent. A hit is served only while `now < (send time of PING n-1) + staleness`. This is checked *before* the
lookup, so that the cache's contents are not older than that PING. (The clock is monotonic: it stands still while a machine is
suspended.)

*Own writes.* A write drops the id when it starts, and no read of the id gets a ticket until it ends. So the results of such
reads are never kept, and a `get` after an acknowledged `put` never returns an older module.

Modules from warm and cold are kept as well as hot ones. Their hits are sent to Redis as uses like all others. If the reply
says that a module was used often enough for promotion, it becomes a suspect, and its next `get` promotes it with the content
that is here.

*A signal handler or a finalizer* may call the store at any line here, in the thread that holds the cache's lock. It then
neither waits nor touches partly changed data. Its reads get no ticket, and its writes make the cache *spoilt*: the cache
serves nothing until the next holder of the lock has emptied it.

A hit takes no lock. It reads a clock, looks into a dict and appends to a list, and each of these is atomic. The order of use,
the counters and the uses are computed from that list elsewhere: by the tracker a few times a second, and before an eviction.

*On a cluster* each master is followed over its own connection, and the age of a hit is the greatest of all masters. A master
that was replaced would still reply to PING. So the heartbeat there reads a key of each shard that the master serves. Only the
master that serves the slot replies with a number; MOVED, ASK and CLUSTERDOWN end the tracking of all masters. So a hit is at
most `staleness` behind the moment when the old master learned that it was replaced. A partitioned master learns that after
the cluster's node timeout. All masters are followed, also those that serve none of our shards yet.

Rejected: redis-py's own client-side cache (it refuses Valkey and Redis < 7.4, and costs as much as a GET); OPTIN or default
tracking (the server remembers each key for each client, and forgets some when its table is full); a thread with an event
loop (it deadlocks at fork and exit).
"""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

from distier.domain.module import Event, Module
from distier.drive.process import Counters, UseBuffer
from distier.near.cache import NearCache
from distier.near.frozen import FrozenDict, frozen_meta
from distier.near.tracker import Tracker
from distier.observe.hooks import HookedCounters
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.statistics import NearStats
from distier.stores.redis.followed import Followers

FILL_MAX = 100
"""Maximum number of ids of a `get_many` that fills the cache. A larger one is a scan, which must not evict modules in use."""


def remaining_s(space: Namespace, module: Module) -> float:
    """Return the seconds that a module with a TTL certainly has left, by the last look at its shard's clock; 0 without one."""
    look = space.process.clocks.get(space.shard(module.id))
    if look is None or module.expires_ms is None:
        return 0.0
    return max(0.0, module.expires_ms - look.latest_ms(time.monotonic())) / 1000


class Near:
    """The near cache of one store: a `NearCache` and its `Tracker`. It is off if there is no server to follow.

    Args:
        space: The namespace.
        url: The URL of Redis; None for a store on fakes in tests.
        counters: The store's counters.
        uses: Where hits are recorded as uses.
    """

    def __init__(self, space: Namespace, url: str | None, counters: Counters, uses: UseBuffer) -> None:
        config = space.config.near
        self.cache = NearCache(
            max_tokens=config.max_tokens, max_bytes=config.max_bytes, max_entries=config.max_entries,
            staleness_s=config.staleness_ms / 1000, remaining_s=partial(remaining_s, space),
        )  # fmt: skip
        self.get = self.cache.get
        connect = Followers(space.config, url or "", space.keys.shards)
        self._tracker = Tracker(self.cache, space, connect, counters, uses)
        # The tracker's method: the namespace must not reference the store.
        space.process.on_new_incarnation.append(self._tracker.moved)
        self._off = "" if config.enabled else "off: near.enabled is false"
        if url is None:
            self._off = self._off or "off: there is no server to follow"
        self._counters = counters
        if isinstance(counters, HookedCounters):
            counters.settle = self._tracker.settle  # the tracker's: its thread references the counters
        _all.add(self)
        weakref.finalize(self, self._tracker.abandon)

    @property
    def status(self) -> str:
        """The state: `on`; or `off`, `connecting` or `bypassed`, followed by a colon and the reason."""
        if self._off:
            return self._off
        status = self._tracker.status
        return "bypassed: no heartbeat" if status == "on" and not self.cache.is_fresh else status

    def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """Return the module of each id if it is here, else None, in the order of `ids`."""
        get = self.get
        return {id: get(id) for id in ids}

    def reading(self, ids: Collection[str]) -> Reading:
        """Return a context for a read of `ids`, which must be valid: `with near.reading(ids) as r: r.fill(found)`."""
        if self._off or len(ids) > FILL_MAX:
            return Reading(self.cache, ())
        self._tracker.ensure_started()
        return Reading(self.cache, ids)

    @contextmanager
    def writing(self, ids: Iterable[object]) -> Iterator[None]:
        """Enclose a write of `ids`, however it ends. Ids that are not strings are ignored here; the write rejects them."""
        names = [id for id in ids if isinstance(id, str)]
        self.cache.start_writing(names)
        try:
            yield
        finally:
            self.cache.end_writing(names)

    def take_events(self, events: Iterable[Event]) -> None:
        """Make suspects of the modules of these events, and of all modules if an event is of all (a new epoch)."""
        ids = [event.id for event in events]
        if all(ids):
            self.cache.invalidate(ids)
        else:
            self.cache.doubt_all()

    def settle(self) -> None:
        """Update the counters."""
        self._tracker.settle()

    def stats(self) -> NearStats:
        """Return the contents and budgets of the cache, and the hits so far."""
        self.settle()
        c = self.cache
        hits = self._counters.snapshot().get("hits.near", 0)
        return NearStats(
            self.status, len(c), c.tokens, c.size_bytes, hits, c.max_entries, c.max_tokens, c.max_bytes, c.suspects
        )  # fmt: skip

    def close(self) -> None:
        """Stop the thread and close the connection. Recorded hits are passed on as uses."""
        self._tracker.stop()
        self.settle()

    def after_fork(self) -> None:
        self._tracker.after_fork()


class Reading:
    """Reads in progress: the tickets of the ids that may be filled. Unused tickets are returned at the end.

    `suspects` has the suspects of these ids, for the read to compare with the records.
    """

    __slots__ = ("_cache", "_tickets", "suspects")

    def __init__(self, cache: NearCache, ids: Iterable[str]) -> None:
        self._cache = cache
        self._tickets = [ticket for ticket in map(cache.begin, ids) if ticket is not None]
        self.suspects: dict[str, Module] = {}
        for ticket in self._tickets:
            suspect = cache.suspect(ticket.id)
            if suspect is not None:
                self.suspects[ticket.id] = suspect

    def fill(self, found: Mapping[str, Module | None]) -> None:
        """Keep the results of a read. Call this before any other code has these modules, because it freezes their `meta`."""
        for ticket in self._tickets:
            module = found.get(ticket.id)
            if module is not None and type(module.meta) is not FrozenDict:  # a suspect's is frozen already
                # `replace` would copy fourteen fields, and no other code has this module yet.
                object.__setattr__(module, "meta", frozen_meta(module.meta))
            self._cache.fill(ticket, module)
        self._tickets = []

    def __enter__(self) -> Reading:
        return self

    def __exit__(self, *_: object) -> None:
        for ticket in self._tickets:
            self._cache.fill(ticket, None)


_all: weakref.WeakSet[Near] = weakref.WeakSet()


def _after_fork() -> None:
    for near in list(_all):
        near.after_fork()


# Earlier than a check of the pid at each call: the first line of the child's own code finds an empty cache.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
