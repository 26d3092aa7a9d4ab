"""Counts of what was used after, or under, something: bounded, decayed, and with the changes that others must learn.

A key is a module (its *followers* are the modules that were used soon after it) or a keyword (the modules that were used in
sessions with it). At most `followers_max` followers are kept for a key, the weakest makes way for a new one, and the key that
was used least recently makes way for another key.

The counts of a key are halved when it has `USES_MAX` uses, so that what follows today soon outweighs what followed once (the
reset of TinyLFU: Einziger, Friedman and Manes, 2017). All counts are halved once per half-life, which is counted in uses and
not in seconds: `HALF_LIFE` uses for each known key. So a busy namespace forgets in hours, and an idle one does not forget over
a weekend what took it months to learn.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple

USES_MAX = 64.0
"""Uses of a key at which its counts are halved."""
HALF_LIFE = 32
"""Uses for each known key after which all counts are halved."""
KEYS_LEAST = 100
"""The least number of known keys that the half-life is computed with."""
CHANGES_MAX = 4096
"""Keys with changes that were not sent yet. Beyond that, changes are only kept here."""


class Change(NamedTuple):
    """What was counted since the last time: `uses` of `key`, and how often each follower was seen."""

    key: str
    uses: float
    followers: Mapping[str, float]


class Entry:
    """The uses of a key and of its followers, as they were in one generation: all counts are halved after each."""

    __slots__ = ("followers", "generation", "uses")

    def __init__(self, generation: int) -> None:
        self.uses = 0.0
        self.followers: dict[str, float] = {}
        self.generation = generation

    def scale(self, factor: float) -> None:
        self.uses *= factor
        for follower in self.followers:
            self.followers[follower] *= factor


class Counts:
    """Uses by key. `keys_max` bounds the memory: a key takes about a kilobyte.

    Args:
        keys_max: maximum number of keys.
        followers_max: maximum number of followers of a key.
    """

    def __init__(self, keys_max: int, followers_max: int) -> None:
        self.keys_max, self.followers_max = keys_max, followers_max
        self._generation = self._uses = 0
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._changes: dict[str, tuple[list[float], dict[str, float]]] = {}
        self._lone: dict[str, float] = {}  # uses of keys without followers, which are of no use to others yet

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def changed(self) -> int:
        """The number of keys with changes to take: those of keys with followers."""
        return len(self._changes)

    def get(self, key: str) -> Entry | None:
        """Return the counts of a key as of now, None if nothing is known."""
        entry = self._entries.get(key)
        if entry is not None and entry.generation < self._generation:
            entry.scale(0.5 ** (self._generation - entry.generation))
            entry.generation = self._generation
        return entry

    def use(self, key: str) -> None:
        """Count a use of a key."""
        entry = self._made(key)
        entry.uses += 1
        if entry.uses > USES_MAX:
            entry.scale(0.5)
        self._uses += 1
        if self._uses > HALF_LIFE * max(len(self._entries), KEYS_LEAST):
            self._uses = 0
            self._generation += 1
        if not entry.followers:
            self._lone[key] = self._lone.get(key, 0.0) + 1
            if len(self._lone) > CHANGES_MAX:
                del self._lone[next(iter(self._lone))]
        elif (change := self._change(key)) is not None:
            change[0][0] += 1

    def follow(self, key: str, follower: str) -> None:
        """Count that `follower` was used after `key`, or under it."""
        followers = self._made(key).followers
        followers[follower] = followers.get(follower, 0.0) + 1
        if len(followers) > self.followers_max:
            del followers[min((f for f in followers if f != follower), key=followers.__getitem__)]
        if (change := self._change(key)) is not None:
            change[0][0] += self._lone.pop(key, 0.0)
            change[1][follower] = change[1].get(follower, 0.0) + 1

    def merge(self, key: str, uses: float, followers: Mapping[str, float]) -> None:
        """Take over the counts of the fleet, and add to them what this process has not sent yet."""
        entry = self._made(key)
        counted, seen = self._changes.get(key) or ([0.0], {})
        entry.uses = uses + counted[0] + self._lone.get(key, 0.0)
        both = {f: followers.get(f, 0.0) + seen.get(f, 0.0) for f in (*followers, *seen)}
        strongest = sorted(both, key=both.__getitem__, reverse=True)[: self.followers_max]
        entry.followers = {f: both[f] for f in strongest}

    def take_changes(self, most: int) -> list[Change]:
        """Return the changes of at most `most` keys, oldest first. Each change is in exactly one result."""
        taken = [(key, self._changes.pop(key)) for key in list(self._changes)[:most]]
        return [Change(key, uses[0], followers) for key, (uses, followers) in taken]

    def _made(self, key: str) -> Entry:
        entry = self.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            return entry
        if len(self._entries) >= self.keys_max:
            self._entries.popitem(last=False)
        entry = self._entries[key] = Entry(self._generation)
        return entry

    def _change(self, key: str) -> tuple[list[float], dict[str, float]] | None:
        found = self._changes.get(key)
        if found is None and len(self._changes) < CHANGES_MAX:
            found = self._changes[key] = ([0.0], {})
        return found
