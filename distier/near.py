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
import selectors
import socket
import threading
import time
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.domain.ids import decode_id
from distier.domain.keys import Shard
from distier.domain.module import Module, pack_json
from distier.drive.common import Counters, UseBuffer, is_passing, is_redirection, lacks_script, outcome, words
from distier.effects import RunScript
from distier.errors import DistierError, Invalid
from distier.observe.logs import log
from distier.plans.common.space import Space
from distier.plans.fleet.statistics import NearStats
from distier.stores.cluster import Followed, Followers
from distier.stores.threads import Flag
from distier.stores.wire import greeting

NEVER = float("-inf")
ENTRY_BYTES = 1024
"""What a module takes beside its content, keywords, outline and meta: its objects, and our notes on it."""
FILL_MAX = 100
"""A `get_many` of more is a walk: it takes what is here, and does not wash out what is in use."""
TICK_S = 0.25
PATIENCE_MIN_S = 1.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
REFUSED_S = 30.0
"""An operator may change the ACL, or the server behind a name: after this it is asked once more."""
JOIN_S = 2.0
READ_BYTES = 65536
READABLE_S = 0.001
"""How long a read waits that should not have to: of TLS, less than a record may have arrived."""


# -- the cache -------------------------------------------------------------------------------------------------------


class Ticket:
    """The right of the reads of `id` that are under way to fill; void once it is not in the cache's book any more."""

    __slots__ = ("id",)

    def __init__(self, id: str) -> None:
        self.id = id


class NearCache:
    """Modules within three budgets, the least recently used leaving first; no I/O and no threads of its own.

    It is *live* between `go_live` and `lost`: only then it takes and serves modules, and serves them only for
    `staleness_s` after the last time that `confirm` named. Thread-safe; `get` takes no lock.
    """

    def __init__(
        self, *, max_tokens: int, max_bytes: int, max_entries: int, staleness_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.max_tokens, self.max_bytes, self.max_entries = max_tokens, max_bytes, max_entries
        self.staleness_s = staleness_s
        self.tokens = self.size_bytes = 0
        self._clock = clock
        self._fresh_until_s = NEVER
        self._live = False
        self._modules: dict[str, Module] = {}
        self._costs: OrderedDict[str, tuple[int, int]] = OrderedDict()  # tokens, bytes; in order of use
        self._reading: dict[str, Ticket] = {}
        self._writing: Counter[str] = Counter()
        self._hits: list[str] = []
        self._uses: Counter[str] = Counter()
        self._spoilt = False
        self._lock: Any = threading.RLock()

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, id: object) -> bool:
        """Whether `get` would answer it now; counts as no use."""
        return self.is_fresh and id in self._modules

    def get(self, id: str) -> Module | None:
        """The module if it is here and certainly young enough. Freshness first: see the top of this file."""
        if self._clock() < self._fresh_until_s:
            module = self._modules.get(id)
            if module is not None:
                self._hits.append(module.id)
                return module
        return None

    def begin(self, id: str) -> Ticket | None:
        """To be called before a read is sent; None if what it reads must not be kept. Reads of one id at one time
        share a ticket: any of them may fill."""
        if self._lock._is_owned():
            return None
        with self._lock:
            if self._spoilt:
                self._clear()
            if not self._live or id in self._writing:
                return None
            return self._reading.setdefault(id, Ticket(id))

    def fill(self, ticket: Ticket, module: Module | None) -> bool:
        """Whether `module`, which a read after `begin` found, is held now. None gives the ticket back."""
        if self._lock._is_owned():
            return False
        with self._lock:
            if self._spoilt:
                self._clear()
            if self._reading.get(ticket.id) is not ticket:
                return False
            del self._reading[ticket.id]
            if module is None:
                return False
            return self._keep(module)

    def start_writing(self, ids: Iterable[str]) -> None:
        """Drop `ids`; until `end_writing` no read of them gets a ticket."""
        if self._lock._is_owned():  # `end_writing` will be called in there, too
            self._spoil()
            return
        with self._lock:
            for id in ids:
                self._writing[id] += 1
                self._forget(id)

    def end_writing(self, ids: Iterable[str]) -> None:
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            for id in ids:
                self._writing[id] -= 1
                if self._writing[id] <= 0:
                    del self._writing[id]

    def invalidate(self, ids: Iterable[str]) -> None:
        """They changed: entries and tickets are void."""
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            for id in ids:
                self._forget(id)

    def drop_promotable(self, uses: Mapping[str, float], threshold: float) -> None:
        """Drop what Redis counted as used often enough for hot and is not held from there, so that its next read goes
        all the way and promotes it."""
        if self._lock._is_owned():
            return
        with self._lock:
            for id, count in uses.items():
                module = self._modules.get(id)
                if module is not None and module.tier != "hot" and count >= threshold:
                    self._forget(id)

    def flush(self) -> None:
        """Everything may have changed."""
        if self._lock._is_owned():
            self._spoil()
            return
        with self._lock:
            self._clear()

    def go_live(self) -> None:
        """From now on every change is pushed."""
        if self._lock._is_owned():
            return
        with self._lock:
            self._clear()  # also tickets that were taken while it was live before
            self._live = True
            self._serve_until(self._clock() + self.staleness_s)

    def confirm(self, at_s: float) -> None:
        """Every change until `at_s` has been pushed and taken."""
        if self._lock._is_owned():
            return
        with self._lock:
            if self._spoilt:
                self._clear()
            if self._live:
                self._serve_until(max(self._fresh_until_s, at_s + self.staleness_s))

    def lost(self) -> None:
        """Changes may be missed from now on."""
        if self._lock._is_owned():
            self._live = False
            self._spoil()
            return
        with self._lock:
            self._fresh_until_s = NEVER
            self._live = False
            self._clear()

    @property
    def is_live(self) -> bool:
        return self._live

    @property
    def is_fresh(self) -> bool:
        """Whether hits are served now."""
        return self._clock() < self._fresh_until_s

    def take_uses(self) -> Mapping[str, int]:
        """Hits by id since the last call; each hit is in exactly one answer."""
        if self._lock._is_owned():
            return {}
        with self._lock:
            self._gather()
            uses, self._uses = self._uses, Counter()
            return uses

    def after_fork(self) -> None:
        """In a child: nothing of the parent's is valid, not even the lock."""
        self._lock = threading.RLock()
        self._writing.clear()
        self._hits.clear()
        self._uses.clear()
        self.lost()

    def _spoil(self) -> None:
        """What is here may be old, and cannot be changed now."""
        self._spoilt = True
        self._fresh_until_s = NEVER

    # The rest is called with the lock held.

    def _serve_until(self, at_s: float) -> None:
        if not self._spoilt:  # nothing can come between this line and the next
            self._fresh_until_s = at_s

    def _keep(self, module: Module) -> bool:
        tokens, size_bytes = module.tokens, _size_bytes(module)
        if tokens > self.max_tokens or size_bytes > self.max_bytes:
            return False
        self._drop(module.id)
        self._gather()  # hits until now come before this entry in the order of use
        self._modules[module.id] = module
        self._costs[module.id] = (tokens, size_bytes)
        self.tokens += tokens
        self.size_bytes += size_bytes
        while self.size_bytes > self.max_bytes or self.tokens > self.max_tokens or len(self._costs) > self.max_entries:
            self._drop(next(iter(self._costs)))
        return True

    def _drop(self, id: str) -> None:
        cost = self._costs.pop(id, None)
        if cost is not None:
            del self._modules[id]
            self.tokens -= cost[0]
            self.size_bytes -= cost[1]

    def _forget(self, id: str) -> None:
        self._drop(id)
        self._reading.pop(id, None)

    def _clear(self) -> None:
        self._spoilt = False  # first: what comes in between spoils what is left here
        self._modules.clear()
        self._costs.clear()
        self._reading.clear()
        self.tokens = self.size_bytes = 0

    def _gather(self) -> None:
        """Bring the order of use up to date. Hits that come meanwhile stand after the `n` that are taken."""
        n = len(self._hits)
        if not n:
            return
        uses = Counter(reversed(self._hits[:n]))
        del self._hits[:n]
        self._uses.update(uses)
        for id in reversed(uses):  # a Counter keeps the order of first sight: this ends with the last used
            if id in self._costs:
                self._costs.move_to_end(id)


def _size_bytes(module: Module) -> int:
    extra = len(module.outline or "") + sum(map(len, module.keywords))
    if module.meta:
        extra += len(pack_json(module.meta, "meta"))
    return ENTRY_BYTES + len(module.content) + extra


class _FrozenDict(dict[str, Any]):
    """What `meta` is in a module that many callers share. Copies, also deep ones, are plain dicts."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("a module's meta is shared by all who read it: change a copy (copy.deepcopy(module.meta))")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _FrozenList(list[Any]):
    __setitem__ = __delitem__ = __iadd__ = __imul__ = append = clear = extend = _FrozenDict._refuse
    insert = pop = remove = reverse = sort = _FrozenDict._refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


_NO_META = _FrozenDict()


def _frozen(value: Any) -> Any:
    """Plain JSON as values that refuse to change; they compare, print and encode as before."""
    if isinstance(value, dict):
        return _FrozenDict((k, _frozen(v)) for k, v in value.items()) if value else _NO_META
    return _FrozenList(map(_frozen, value)) if isinstance(value, list) else value


# -- the tracker -----------------------------------------------------------------------------------------------------


class _Refused(Exception):
    """This server, or this user on it, cannot be followed."""


class _Wire:
    """One connection on which replies and pushes are read in the order in which they came."""

    def __init__(self, connection: Any) -> None:
        connection.connect()
        self._connection = connection
        self.greeting = greeting(connection)
        # redis-py's own reading hands pushes to a handler and swallows what that raises: here nothing may be missed.
        self._socket: socket.socket = connection._sock
        self.fileno = self._socket.fileno
        self._more = object()
        self._reader = hiredis.Reader(protocolError=InvalidResponse, replyError=ResponseError, notEnoughData=self._more)

    def send(self, command: Sequence[Any], timeout_s: float) -> None:
        self._socket.settimeout(timeout_s)
        for part in self._connection.pack_command(*command):
            self._socket.sendall(part)

    def read(self) -> Iterator[Any]:
        """What has arrived."""
        self._socket.settimeout(READABLE_S)
        try:
            data = self._socket.recv(READ_BYTES)
        except TimeoutError:
            return
        if not data:
            raise RedisConnectionError("the server closed the connection")
        self._reader.feed(data)
        while (message := self._reader.gets()) is not self._more:
            yield message

    def interrupt(self) -> None:
        """End a `read` in another thread."""
        with suppress(OSError):  # not SSLSocket's own, which takes apart what the reader is using
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.disconnect()

    def drop(self) -> None:
        """In a child: close the descriptor that it got, and leave the connection alone."""
        self._socket.close()


@dataclass(slots=True)
class _Sent:
    """A command whose reply is to come, and what is done with it."""

    sent_s: float
    take: Callable[[Any], None]


class _Peer:
    """A server that is followed, and up to when it has vouched for its pushes. `shards`: those that it must go on serving."""

    __slots__ = ("beats", "pinged_s", "sent", "shards", "tracks", "vouched_s", "wire")

    def __init__(self, wire: _Wire, shards: tuple[Shard, ...]) -> None:
        self.wire, self.shards = wire, shards
        self.sent: deque[_Sent] = deque()
        self.tracks = False
        self.beats = 0  # replies to the heartbeat that are to come
        self.pinged_s = self.vouched_s = NEVER


# No descriptor of its own, which a child would inherit.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Tracker:
    """The thread that follows a cache's servers: it takes pushes, sends heartbeats, and sends the uses that are due.

    It holds neither the store nor its `Near`, so that a forgotten store can be collected, which stops it.
    """

    def __init__(
        self, cache: NearCache, space: Space, connect: Callable[[], Sequence[Followed]], counters: Counters,
        uses: UseBuffer,
    ) -> None:  # fmt: skip
        self.cache = cache
        self.status = "off: not used yet"
        self._space = space
        self._connect = connect
        self._counters = counters
        self._uses = uses
        self._beat_s = min(cache.staleness_s / 4, 5.0)
        self._patience_s = max(cache.staleness_s, PATIENCE_MIN_S)
        self._said: str | None = None
        self._ended = False
        self._forget_thread()

    def _forget_thread(self) -> None:
        self._lock = threading.Lock()
        self._woken = Flag()
        self._thread: threading.Thread | None = None
        self._peers: list[_Peer] = []
        self._moves = 0

    def ensure_started(self) -> None:
        if self._thread is not None or self._lock.locked():  # somebody is at it: maybe the lines that this interrupts
            return
        with self._lock:
            if self._thread is None and not self._ended:
                self.status = "connecting"
                self._thread = threading.Thread(target=self._run, name="distier-near", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as e:  # no more threads, or the interpreter is ending: reads go on without
                    self.status = f"off: {e}"

    def abandon(self) -> None:
        """End the thread soon. Takes no lock: the garbage collector calls it, in any thread, at any line."""
        self._ended = True
        self._interrupt()

    def _interrupt(self) -> None:
        for peer in self._peers:
            peer.wire.interrupt()

    def moved(self) -> None:
        """The store's connections have met another life of the server: follow that one. (An old primary may go on living,
        and would confirm what nobody else sees any more.)"""
        self._moves += 1
        self.cache.lost()
        self._interrupt()

    def stop(self) -> None:
        """End the thread, and wait for it."""
        self.abandon()
        self._woken.set()
        self.cache.lost()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def after_fork(self) -> None:
        """In a child: no thread came along, and the parent's connection is not ours to end."""
        for peer in self._peers:
            peer.wire.drop()
        self.status = "off: not used yet"
        self._forget_thread()
        self.cache.after_fork()

    def settle(self) -> None:
        """Count the hits that were noted, and hand them on as uses."""
        used = self.cache.take_uses()
        if not used:
            return
        self._counters.add("hits.near", sum(used.values()))
        by_shard: dict[Shard, dict[str, int]] = {}
        for id, n in used.items():
            by_shard.setdefault(self._space.shard(id), {})[id] = n
        for shard, uses in by_shard.items():
            self._uses.note_many(shard, uses, time.monotonic())

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        wait_s = BACKOFF_FIRST_S
        try:
            while not self._ended:
                try:
                    self._follow()
                except _Refused as e:
                    self._say(f"off: {e}")
                    wait_s = REFUSED_S
                except (RedisError, OSError) as e:
                    wait_s = BACKOFF_FIRST_S if self.status == "on" else min(wait_s * 2, BACKOFF_MAX_S)
                    self.status = f"connecting: {type(e).__name__}: {e}"
                if not self._ended:
                    self._woken.wait(wait_s)
            self.status = "off: closed"
        except BaseException as e:
            self.status = f"off: the tracker failed: {type(e).__name__}: {e}"
            raise
        finally:
            self.cache.lost()

    def _say(self, status: str) -> None:
        """A state that stays, once in the log."""
        self.status = status
        if status != self._said:
            self._said = status
            log.warning("near cache %s; reads go to Redis", status)

    def _follow(self) -> None:
        """From connecting to losing any of the connections, which raises; returns when the thread is to end."""
        moves = self._moves
        try:
            for connection, shards in self._connect():
                self._peers = [*self._peers, _Peer(_Wire(connection), shards)]  # others look at it
            for peer in self._peers:
                self._subscribe(peer)
            self._listen(moves)
        except (RedisError, OSError):
            if not self._ended:  # interrupted: that is how it ends
                raise
        finally:
            self.cache.lost()
            peers, self._peers = self._peers, []
            for peer in peers:
                peer.wire.close()

    def _send(self, peer: _Peer, command: Sequence[Any], take: Callable[[Any], None]) -> None:
        peer.sent.append(_Sent(time.monotonic(), take))
        peer.wire.send(command, self._patience_s)

    def _subscribe(self, peer: _Peer) -> None:
        """Ask; `_take_hello` and `_take_tracking` go on when the answers come."""
        prefixes = [word for shard in self._space.keys.shards for word in ("PREFIX", shard.module_pattern("")[:-1])]
        hello, *rest = peer.wire.greeting  # on RESP2 tracking is accepted, and pushes are never sent
        self._send(peer, hello, self._take_hello)
        for command in rest:
            self._send(peer, command, self._take_selected)
        self._send(peer, ("CLIENT", "TRACKING", "ON", "BCAST", *prefixes), partial(self._take_tracking, peer))

    def _listen(self, moves: int) -> None:
        """Take what comes, and do what is due, until a connection or the store is closed."""
        tick_s = min(self._beat_s, TICK_S)
        settle_s = time.monotonic() + tick_s
        with _Selector() as arrived:
            for peer in self._peers:
                arrived.register(peer.wire, selectors.EVENT_READ, peer)
            while not self._ended:
                if self._moves != moves:  # while we connected, too
                    raise RedisConnectionError("the store has met another life of a server")
                now_s = time.monotonic()
                if now_s >= settle_s:
                    settle_s = now_s + tick_s
                    self._send_uses(now_s)
                wait_s = min(settle_s - now_s, *(self._beat(peer, now_s) for peer in self._peers))
                for key, _ in arrived.select(wait_s):
                    for message in key.data.wire.read():
                        self._take(key.data, message)

    def _beat(self, peer: _Peer, now_s: float) -> float:
        """Send the heartbeat if it is due; in how many seconds it may be due again."""
        if peer.sent and now_s - peer.sent[0].sent_s > self._patience_s:
            raise RedisTimeoutError(f"no answer for {self._patience_s:g} s")
        if not self.cache.is_live or peer.beats:
            return self._beat_s
        due_s = peer.pinged_s + self._beat_s
        if now_s < due_s:
            return due_s - now_s
        self._ping(peer, now_s)
        return self._beat_s

    def _take(self, peer: _Peer, message: Any) -> None:
        if isinstance(message, hiredis.PushNotification):
            self._take_push(message)
        elif peer.sent:
            peer.sent.popleft().take(message)
        else:
            raise RedisConnectionError(f"a reply to nothing: {message!r:.80}")

    def _take_push(self, push: Any) -> None:
        if len(push) != 2 or push[0] != b"invalidate" or not isinstance(push[1], list):
            self.cache.flush()  # FLUSHALL, FLUSHDB (no keys), or something that we do not know
            return
        self.cache.invalidate(_ids_of(push[1]))

    def _take_hello(self, reply: Any) -> None:
        # A map comes as a dict, or on RESP2 as a flat list.
        if isinstance(reply, ResponseError):
            raise reply if is_passing(reply) else _Refused(f"HELLO 3 (RESP3) is refused: {reply}")
        if not isinstance(reply, dict) or reply.get(b"proto") != 3:
            raise _Refused(f"the server does not speak RESP3: it answers HELLO 3 by {reply!r:.100}")

    def _take_selected(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            raise reply if is_passing(reply) else _Refused(f"SELECT is refused: {reply}")

    def _take_tracking(self, peer: _Peer, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            raise reply if is_passing(reply) else _Refused(f"CLIENT TRACKING is refused: {reply}")
        if reply != b"OK":
            raise _Refused(f"CLIENT TRACKING is answered by {reply!r:.80}")
        peer.tracks = True
        if all(other.tracks for other in self._peers):
            self.cache.go_live()
            self.status = "on"
            self._said = None

    def _ping(self, peer: _Peer, now_s: float) -> None:
        before_s, peer.pinged_s = peer.pinged_s, now_s
        beats: list[tuple[str, ...]] = [("HLEN", shard.epoch) for shard in peer.shards] or [("PING",)]
        peer.beats = len(beats)

        def take(reply: Any) -> None:
            peer.beats -= 1
            if isinstance(reply, ResponseError) and str(reply).startswith("MISCONF"):
                reply = b"PONG"  # its disk takes no writes, which is what it then says to PING, in its turn
            if isinstance(reply, ResponseError) and not (is_passing(reply) or is_redirection(reply)):
                raise _Refused(f"{beats[0][0]} is refused: {reply}")
            if not (isinstance(reply, int) if peer.shards else reply == b"PONG"):
                # -LOADING, -BUSY: it did not say that all is well. -MOVED: it is not whom to ask.
                raise RedisConnectionError(f"{beats[0][0]} is answered by {reply!r:.80}")
            if not peer.beats:
                peer.vouched_s = before_s  # and not now_s: see the top of this file
                self.cache.confirm(min(other.vouched_s for other in self._peers))

        for beat in beats:
            self._send(peer, beat, take)

    def _send_uses(self, now_s: float) -> None:
        self.settle()
        if self.cache.is_live:
            for call in self._uses.due(now_s):
                peer = next((p for p in self._peers if call.shard in p.shards), self._peers[0])
                self._send(peer, words(call), partial(self._take_touched, peer, call, False))

    def _take_touched(self, peer: _Peer, call: RunScript[dict[str, float]], again: bool, reply: Any) -> None:
        if lacks_script(reply) and not again:
            self._send(peer, ("SCRIPT", "LOAD", call.script.source), lambda _: None)
            self._send(peer, words(call), partial(self._take_touched, peer, call, True))
            return
        counts = outcome(call, reply)
        if isinstance(counts, DistierError):
            self._counters.add("touches.lost")  # recency is a hint
        else:
            self._space.learn_uses(counts)
            self.cache.drop_promotable(counts, self._space.config.storage_tiers.promotion_threshold)


def _ids_of(keys: Iterable[bytes]) -> Iterator[str]:
    """Ids of record keys; what is no record of ours (somebody typed such a key) concerns no module."""
    for key in keys:
        encoded = key.partition(b":module:")[2]  # a namespace has no colon
        with suppress(Invalid, UnicodeDecodeError):
            # Most ids stand in their keys as they are.
            yield decode_id(encoded.decode()) if b"%" in encoded else encoded.decode()


# -- for a store -----------------------------------------------------------------------------------------------------


class Near:
    """The near cache of one store: `NearCache` and `Tracker`, and off where there is nothing to follow.

    `url` is the server's; None where the store has no server of its own (tests on fakes).
    """

    def __init__(self, space: Space, url: str | None, counters: Counters, uses: UseBuffer) -> None:
        config = space.config.near
        self.cache = NearCache(
            max_tokens=config.max_tokens, max_bytes=config.max_bytes, max_entries=config.max_entries,
            staleness_s=config.staleness_ms / 1000,
        )  # fmt: skip
        self.get = self.cache.get
        connect = Followers(space.config, url or "", space.keys.shards)
        self._tracker = Tracker(self.cache, space, connect, counters, uses)
        space.on_new_life.append(self._tracker.moved)  # the tracker's: the space must not hold the store
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
                object.__setattr__(module, "meta", _frozen(module.meta))
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
