"""The thread that follows the servers, and decides how long the near cache may serve."""

from __future__ import annotations

import selectors
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import hiredis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.domain.ids import decode_id
from distier.domain.keys import Shard
from distier.domain.schema import MODULE
from distier.drive.conversation import command_of
from distier.drive.process import Counters, UseBuffer
from distier.drive.replies import is_passing, is_redirection, lacks_script, outcome
from distier.effects import RunScript
from distier.errors import DistierError, Invalid
from distier.near.cache import NEVER, NearCache
from distier.near.wire import RefusedTracking, TrackingWire
from distier.observe.logs import log
from distier.plans.common.namespace import Namespace
from distier.plans.get.uses import is_promotable
from distier.stores.redis.followed import Followed
from distier.stores.threads import Flag

TICK_S = 0.25
PATIENCE_MIN_S = 1.0
BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
REFUSED_S = 30.0
"""Seconds until the next attempt after a refusal: an operator may change the ACL, or the server behind a name."""
JOIN_S = 2.0


@dataclass(slots=True)
class _Sent:
    """A command whose reply has not arrived, and the function that processes the reply."""

    sent_s: float
    take: Callable[[Any], None]


class _TrackedServer:
    """A server that is followed, and the time until which all its pushes have arrived. It must keep serving `shards`."""

    __slots__ = ("heartbeats", "pinged_s", "sent", "shards", "tracks", "vouched_s", "wire")

    def __init__(self, wire: TrackingWire, shards: tuple[Shard, ...]) -> None:
        self.wire, self.shards = wire, shards
        self.sent: deque[_Sent] = deque()
        self.tracks = False
        self.heartbeats = 0  # outstanding replies to the heartbeat
        self.pinged_s = self.vouched_s = NEVER


# These selectors have no descriptor, which a forked child would inherit.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)


class Tracker:
    """The thread that follows a cache's servers: it processes pushes, sends heartbeats, and sends the uses that are due.

    It references neither the store nor its `Near`, so that an unused store can be collected, which stops the thread.
    """

    def __init__(
        self, cache: NearCache, space: Namespace, connect: Callable[[], Sequence[Followed]], counters: Counters,
        uses: UseBuffer,
    ) -> None:  # fmt: skip
        self.cache = cache
        self.status = "off: not used yet"
        self._space = space
        self._connect = connect
        self._counters = counters
        self._uses = uses
        self._heartbeat_s = min(cache.staleness_s / 4, 5.0)
        self._patience_s = max(cache.staleness_s, PATIENCE_MIN_S)
        self._logged: str | None = None
        self._ended = False
        self._forget_thread()

    def _forget_thread(self) -> None:
        self._lock = threading.Lock()
        self._woken = Flag()
        self._thread: threading.Thread | None = None
        self._peers: list[_TrackedServer] = []
        self._moves = 0

    def ensure_started(self) -> None:
        if (
            self._thread is not None or self._lock.locked()
        ):  # another thread, or the code that this call interrupts, starts it
            return
        with self._lock:
            if self._thread is None and not self._ended:
                self.status = "connecting"
                self._thread = threading.Thread(target=self._run, name="distier-near", daemon=True)
                try:
                    self._thread.start()
                except RuntimeError as e:  # no more threads, or the interpreter is exiting: reads work without it
                    self.status = f"off: {e}"

    def abandon(self) -> None:
        """Stop the thread soon. Takes no lock, because the garbage collector calls this in any thread, at any line."""
        self._ended = True
        self._interrupt()

    def _interrupt(self) -> None:
        for peer in self._peers:
            peer.wire.interrupt()

    def moved(self) -> None:
        """Follow another incarnation of the server, which the store's connections have met.

        (An old primary may keep running, and would confirm data that no other client sees.)
        """
        self._moves += 1
        self.cache.lost()
        self._interrupt()

    def stop(self) -> None:
        """Stop the thread, and wait for it up to `JOIN_S` seconds."""
        self.abandon()
        self._woken.set()
        self.cache.lost()
        thread = self._thread
        if thread is not None and thread.is_alive() and thread is not threading.current_thread():
            thread.join(JOIN_S)

    def after_fork(self) -> None:
        """Reset the tracker in a forked child, which has no thread. The parent's connection stays open."""
        for peer in self._peers:
            peer.wire.drop()
        self.status = "off: not used yet"
        self._forget_thread()
        self.cache.after_fork()

    def settle(self) -> None:
        """Count the recorded hits, and pass them on as uses."""
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
                except RefusedTracking as e:
                    self._log_status(f"off: {e}")
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

    def _log_status(self, status: str) -> None:
        """Set a lasting status, and log it once."""
        self.status = status
        if status != self._logged:
            self._logged = status
            log.warning("near cache %s; reads go to Redis", status)

    def _follow(self) -> None:
        """Connect, and follow the servers until a connection is lost, which raises. Returns when the thread must stop."""
        moves = self._moves
        try:
            for connection, shards in self._connect():
                self._peers = [
                    *self._peers,
                    _TrackedServer(TrackingWire(connection), shards),
                ]  # replaced, not changed: other threads read it
            for peer in self._peers:
                self._subscribe(peer)
            self._listen(moves)
        except (RedisError, OSError):
            if not self._ended:  # otherwise this is the interruption by `abandon`
                raise
        finally:
            self.cache.lost()
            peers, self._peers = self._peers, []
            for peer in peers:
                peer.wire.close()

    def _send(self, peer: _TrackedServer, command: Sequence[Any], take: Callable[[Any], None]) -> None:
        peer.sent.append(_Sent(time.monotonic(), take))
        peer.wire.send(command, self._patience_s)

    def _subscribe(self, peer: _TrackedServer) -> None:
        """Send the commands that start tracking. `_take_hello` and `_take_tracking` process the replies."""
        prefixes = [word for shard in self._space.keys.shards for word in ("PREFIX", shard.modules)]
        hello, *rest = peer.wire.greeting  # on RESP2 tracking is accepted, but pushes are never sent
        self._send(peer, hello, self._take_hello)
        for command in rest:
            self._send(peer, command, self._take_selected)
        self._send(peer, ("CLIENT", "TRACKING", "ON", "BCAST", *prefixes), partial(self._take_tracking, peer))

    def _listen(self, moves: int) -> None:
        """Process messages and periodic work until a connection or the store is closed."""
        tick_s = min(self._heartbeat_s, TICK_S)
        settle_s = time.monotonic() + tick_s
        with _Selector() as arrived:
            for peer in self._peers:
                arrived.register(peer.wire, selectors.EVENT_READ, peer)
            while not self._ended:
                if self._moves != moves:  # it may also have changed while this connected
                    raise RedisConnectionError("the store has met another incarnation of a server")
                now_s = time.monotonic()
                if now_s >= settle_s:
                    settle_s = now_s + tick_s
                    self._send_uses(now_s)
                wait_s = min(settle_s - now_s, *(self._heartbeat(peer, now_s) for peer in self._peers))
                for key, _ in arrived.select(wait_s):
                    for message in key.data.wire.read():
                        self._take(key.data, message)

    def _heartbeat(self, peer: _TrackedServer, now_s: float) -> float:
        """Send the heartbeat if it is due. Returns the seconds until it may be due again."""
        if peer.sent and now_s - peer.sent[0].sent_s > self._patience_s:
            raise RedisTimeoutError(f"no reply for {self._patience_s:g} s")
        if not self.cache.is_live or peer.heartbeats:
            return self._heartbeat_s
        due_s = peer.pinged_s + self._heartbeat_s
        if now_s < due_s:
            return due_s - now_s
        self._ping(peer, now_s)
        return self._heartbeat_s

    def _take(self, peer: _TrackedServer, message: Any) -> None:
        if isinstance(message, hiredis.PushNotification):
            self._take_push(message)
        elif peer.sent:
            peer.sent.popleft().take(message)
        else:
            raise RedisConnectionError(f"unsolicited reply: {message!r:.80}")

    def _take_push(self, push: Any) -> None:
        if len(push) != 2 or push[0] != b"invalidate" or not isinstance(push[1], list):
            self.cache.doubt_all()  # FLUSHALL, FLUSHDB (no keys), or an unknown message
            return
        self.cache.invalidate(_ids_of(push[1]))

    def _take_hello(self, reply: Any) -> None:
        # A map is a dict, or on RESP2 a flat list.
        if isinstance(reply, ResponseError):
            raise reply if is_passing(reply) else RefusedTracking(f"HELLO 3 (RESP3) is refused: {reply}")
        if not isinstance(reply, dict) or reply.get(b"proto") != 3:
            raise RefusedTracking(f"the server does not support RESP3: it replies to HELLO 3 with {reply!r:.100}")

    def _take_selected(self, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            raise reply if is_passing(reply) else RefusedTracking(f"SELECT is refused: {reply}")

    def _take_tracking(self, peer: _TrackedServer, reply: Any) -> None:
        if isinstance(reply, ResponseError):
            raise reply if is_passing(reply) else RefusedTracking(f"CLIENT TRACKING is refused: {reply}")
        if reply != b"OK":
            raise RefusedTracking(f"unexpected reply to CLIENT TRACKING: {reply!r:.80}")
        peer.tracks = True
        if all(other.tracks for other in self._peers):
            self.cache.go_live()
            self.status = "on"
            self._logged = None

    def _ping(self, peer: _TrackedServer, now_s: float) -> None:
        before_s, peer.pinged_s = peer.pinged_s, now_s
        heartbeats: list[tuple[str, ...]] = [("HLEN", shard.epoch) for shard in peer.shards] or [("PING",)]
        peer.heartbeats = len(heartbeats)

        def take(reply: Any) -> None:
            peer.heartbeats -= 1
            if isinstance(reply, ResponseError) and str(reply).startswith("MISCONF"):
                reply = b"PONG"  # a server with a full disk replies this to PING, in the same order as a PONG
            if isinstance(reply, ResponseError) and not (is_passing(reply) or is_redirection(reply)):
                raise RefusedTracking(f"{heartbeats[0][0]} is refused: {reply}")
            if not (isinstance(reply, int) if peer.shards else reply == b"PONG"):
                # -LOADING, -BUSY: the reply confirms nothing. -MOVED: this is the wrong server.
                raise RedisConnectionError(f"unexpected reply to {heartbeats[0][0]}: {reply!r:.80}")
            if not peer.heartbeats:
                peer.vouched_s = before_s  # not now_s: see `facade.py`
                self.cache.confirm(min(other.vouched_s for other in self._peers))

        for heartbeat in heartbeats:
            self._send(peer, heartbeat, take)

    def _send_uses(self, now_s: float) -> None:
        self.settle()
        if self.cache.is_live:
            for call in self._uses.due(now_s):
                peer = next((p for p in self._peers if call.shard in p.shards), self._peers[0])
                self._send(peer, command_of(call), partial(self._take_touched, peer, call, False))

    def _take_touched(self, peer: _TrackedServer, call: RunScript[dict[str, float]], again: bool, reply: Any) -> None:
        if lacks_script(reply) and not again:
            self._send(peer, ("SCRIPT", "LOAD", call.script.source), lambda _: None)
            self._send(peer, command_of(call), partial(self._take_touched, peer, call, True))
            return
        counts = outcome(call, reply)
        if isinstance(counts, DistierError):
            self._counters.add("touches.lost")  # recency is a hint
        else:
            self._space.process.learn_uses(counts)
            self.cache.doubt_promotable(id for id, uses in counts.items() if is_promotable(self._space, id, uses))


_MODULE = f":{MODULE}:".encode()


def _ids_of(keys: Iterable[bytes]) -> Iterator[str]:
    """Yield the ids in record keys. Keys that are no valid records (typed by hand) concern no module and are skipped."""
    for key in keys:
        encoded = key.partition(_MODULE)[2]  # a namespace has no colon
        with suppress(Invalid, UnicodeDecodeError):
            # Most ids need no decoding.
            yield decode_id(encoded.decode()) if b"%" in encoded else encoded.decode()
