"""The near cache: modules in the process itself, which Redis tells when they change.

A second connection, the tracker's, asks for `CLIENT TRACKING ON BCAST PREFIX distier:{t}:module:`, and from then on
gets a push for every record that is written, deleted, evicted or expired, by whomever. A record changes with every new
version, so the records are all that must be followed, for modules read from warm and from the archive too.

*No order of arrivals leaves an old module here.* A read begins (it takes a ticket), Redis executes it at a moment R,
and it ends by filling. Let W be any change after R. Its push cannot be taken before the read began, so it is either

    taken between begin and fill    it voids the ticket, and the fill is refused
    taken after the fill            it drops the entry

however late or early the reply came on its own connection. A push of a change before R may void a ticket for nothing,
which costs one more read. For this the pushes must be complete: a read that begins before Redis has confirmed the
tracking gets no ticket, and when the connection is lost all entries and tickets are, and again when it is back.

*A hit has a stated age.* Pushes come some time after the change: usually under a millisecond; never, on a network that
swallows packets. So the tracker sends PINGs, one at a time. Replies and pushes arrive in one stream, in the order in
which the server wrote them; but the server writes the pushes of a turn of its event loop at the end of that turn, after
a PONG of the same turn. PING n is sent after PONG n-1 has come, hence is read in a later turn than PING n-1, hence PONG
n comes after every push of a change that was made before PING n-1 was executed, let alone sent. A hit is served only
while `now < (send time of PING n-1) + staleness`, checked *before* the entry is looked up: what is in the cache then
is no older than that PING. (Time is that of the monotonic clock: a suspended machine does not age.)

*Own writes.* A write drops the id when it starts, and until it ends no read of the id gets a ticket: what such reads
saw can never be filled, so a `get` after an acknowledged `put` never meets an older module here.

Warm and cold-served modules are held as well as hot ones. Their hits are sent to Redis as uses like any others, and where
the answer says that a module has been used often enough for hot, it is dropped here: its next `get` promotes it.

*A signal handler or a finaliser* may call the store in the middle of any line here, in the thread that holds the cache's
lock. Then it neither waits nor changes what is half changed: its reads get no ticket, and what it writes makes the cache
*spoilt*: it serves nothing until whoever has the lock next has emptied it.

A hit takes no lock. It reads a clock, looks into a dict and appends to a list, each atomic; order of use, counters and
uses are worked out of that list elsewhere: by the tracker, a few times a second, and before anything is evicted.

*On a cluster* each master is followed over a connection of its own, and a hit is as old as the earliest of their times
says. A master that was replaced would go on answering PING, so the heartbeat there asks for a key of each shard that the
master serves: it is answered with a number only by who serves the slot, and MOVED, ASK and CLUSTERDOWN end the following of
all. So a hit is at most `staleness` behind the moment when the old master knew that it is none; cut off from the others, that
takes it the cluster's node timeout. All masters are followed, also those that serve none of our shards yet.

Rejected: redis-py's own client-side cache (refuses Valkey and Redis < 7.4, costs as much as a GET), OPTIN/default
tracking (the server remembers each key for each client, and forgets some when its table is full), a thread with an event
loop (deadlocks at fork and exit).
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

from distier.domain.module import Module
from distier.drive.process import Counters, UseBuffer
from distier.near.cache import NearCache
from distier.near.frozen import frozen_meta
from distier.near.tracker import Tracker
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.statistics import NearStats
from distier.stores.redis.followed import Followers

FILL_MAX = 100
"""A `get_many` of more is a walk: it takes what is here, and does not wash out what is in use."""


class Near:
    """The near cache of one store: `NearCache` and `Tracker`, and off where there is nothing to follow.

    `url` is the server's; None where the store has no server of its own (tests on fakes).
    """

    def __init__(self, space: Namespace, url: str | None, counters: Counters, uses: UseBuffer) -> None:
        config = space.config.near
        self.cache = NearCache(
            max_tokens=config.max_tokens, max_bytes=config.max_bytes, max_entries=config.max_entries,
            staleness_s=config.staleness_ms / 1000,
        )  # fmt: skip
        self.get = self.cache.get
        connect = Followers(space.config, url or "", space.keys.shards)
        self._tracker = Tracker(self.cache, space, connect, counters, uses)
        space.process.on_new_incarnation.append(self._tracker.moved)  # the tracker's: the space must not hold the store
        self._off = "" if config.enabled else "off: near.enabled is false"
        if url is None:
            self._off = self._off or "off: there is no server to follow"
        self._counters = counters
        _all.add(self)
        weakref.finalize(self, self._tracker.abandon)

    @property
    def status(self) -> str:
        """`on`, or `off`, `connecting` or `bypassed` with the reason after a colon."""
        if self._off:
            return self._off
        status = self._tracker.status
        return "bypassed: no heartbeat" if status == "on" and not self.cache.is_fresh else status

    def get_many(self, ids: Iterable[str]) -> dict[str, Module | None]:
        """By id, in this order: the module if it is here, else None."""
        get = self.get
        return {id: get(id) for id in ids}

    def reading(self, ids: Collection[str]) -> Reading:
        """Around the read of `ids` (checked): `with near.reading(ids) as reading: reading.fill(found)`."""
        if self._off or len(ids) > FILL_MAX:
            return Reading(self.cache, ())
        self._tracker.ensure_started()
        return Reading(self.cache, ids)

    @contextmanager
    def writing(self, ids: Iterable[object]) -> Iterator[None]:
        """Around a write of `ids`, whatever it ends with; those that are no strings are refused by the write."""
        names = [id for id in ids if isinstance(id, str)]
        self.cache.start_writing(names)
        try:
            yield
        finally:
            self.cache.end_writing(names)

    def settle(self) -> None:
        """Bring the counters up to date."""
        self._tracker.settle()

    def stats(self) -> NearStats:
        """What is held, and the hits so far."""
        self.settle()
        c = self.cache
        hits = self._counters.snapshot().get("hits.near", 0)
        return NearStats(
            self.status, len(c), c.tokens, c.size_bytes, hits, c.max_entries, c.max_tokens, c.max_bytes
        )  # fmt: skip

    def close(self) -> None:
        """End the thread and the connection; hits that were noted are handed on as uses."""
        self._tracker.stop()
        self.settle()

    def after_fork(self) -> None:
        self._tracker.after_fork()


class Reading:
    """Reads under way: tickets for those of the ids that may be filled; what was not filled is given back at the end."""

    __slots__ = ("_cache", "_tickets")

    def __init__(self, cache: NearCache, ids: Iterable[str]) -> None:
        self._cache = cache
        self._tickets = [ticket for ticket in map(cache.begin, ids) if ticket is not None]

    def fill(self, found: Mapping[str, Module | None]) -> None:
        """Hold what was found. To be called before anybody else has these modules: their `meta` is frozen."""
        for ticket in self._tickets:
            module = found.get(ticket.id)
            if module is not None:
                # `replace` would copy fourteen fields; nobody has seen this module yet.
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


# Sooner than a look at the pid at each call could be: the child's first line of Python already finds an empty cache.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
