"""Counts the moves of modules between tiers, from the events of the shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from distier.domain.keys import Shard
from distier.effects import Plan
from distier.observe.events import BATCH, Cursor, read_events

BATCHES_MAX = 20
KINDS_MAX = 200
"""The greatest number of kinds of moves. The scripts make some dozens; a foreign event must not add labels without end."""


class Flow:
    """The moves that one process has seen in the events, by tiers and reason.

    The events are there anyway, so counting costs the writes nothing. (Rejected: a hash that the scripts count in. It costs
    each move a tenth of what its event costs.) A stream is trimmed: moves are not counted if more events came between two looks
    than it keeps.
    """

    def __init__(self) -> None:
        self.moves: Counter[tuple[str, str, str]] = Counter()
        self._cursor = Cursor({})

    def follow(self, shards: Sequence[Shard]) -> Plan[None]:
        """Count what moved in these shards since the last look, at most `BATCHES_MAX` batches of each shard. A shard that was
        not among them then is counted from now on."""
        last = self._cursor.last
        new = [shard for shard in shards if shard not in last]
        added = (yield from Cursor.start(new, "$")).last if new else {}
        self._cursor.last = {shard: last[shard] for shard in shards if shard in last} | added
        for _ in range(BATCHES_MAX if self._cursor.last else 0):
            events = yield from read_events(self._cursor, 0)
            for event in events:
                kind = event.from_, event.to, event.reason
                if event.is_tier_change and (kind in self.moves or len(self.moves) < KINDS_MAX):
                    self.moves[kind] += 1
            if len(events) < BATCH:
                return
