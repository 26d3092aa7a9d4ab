"""What one process knows and has gathered of a namespace: hints and memories, never the truth, which is in Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from distier.domain.keys import Shard
from distier.errors import DistierError
from distier.lua import Opened
from distier.policy.quotas import FLOORS_MS, Floors

WARM_MAX = 4096
T = TypeVar("T")


class Bar:
    """What a tier lately refused: each entry is a number of uses, a size in bytes, and how often it may still be applied.

    A module that is used as little as one of them and is as large would be refused too, so nothing is sent.
    """

    ENTRIES_MAX = 16
    TRIES = 32

    def __init__(self) -> None:
        self._refused: list[tuple[float, int, int]] = []

    def note_refused(self, uses: float, size_bytes: int) -> None:
        """Note that the tier refused a module."""
        kept = [entry for entry in self._refused if entry[0] > uses or entry[1] < size_bytes]
        self._refused = [*kept[1 - self.ENTRIES_MAX :], (uses, size_bytes, self.TRIES)]

    def note_admitted(self, uses: float, size_bytes: int) -> None:
        """Note that the tier admitted a module: what would have refused it is out of date."""
        self._refused = [entry for entry in self._refused if entry[0] < uses or entry[1] > size_bytes]

    def refuses(self, uses: float, size_bytes: int) -> bool:
        """Return whether the tier will most likely refuse a module. Each entry is applied `TRIES` times at most."""
        for i, (most, least, tries) in enumerate(self._refused):
            if uses <= most and size_bytes >= least:
                self._refused[i : i + 1] = [(most, least, tries - 1)] if tries > 1 else []
                return True
        return False


class Failing:
    """Modules that this process failed to archive lately, with the time of the next try: a longer pause after each failure.

    A worker passes over them meanwhile, so one module that cannot be archived does not delay the others.
    """

    FIRST_MS = 2_000
    LAST_MS = 300_000
    MODULES_MAX = 4096

    def __init__(self) -> None:
        self._until_ms: dict[tuple[Shard, str], tuple[int, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._until_ms)

    def is_waiting(self, shard: Shard, id: str, now_ms: int) -> bool:
        _, until_ms = self._until_ms.get((shard, id), (0, 0))
        return 0 < until_ms - now_ms <= self.LAST_MS

    def note(self, shard: Shard, results: Iterable[tuple[str, object]], now_ms: int) -> None:
        """Note the results of some tries: each an error, or anything else for a success."""
        for id, result in results:
            pause_ms, _ = self._until_ms.pop((shard, id), (0, 0))
            if isinstance(result, DistierError) and len(self._until_ms) < self.MODULES_MAX:
                pause_ms = min(max(2 * pause_ms, self.FIRST_MS), self.LAST_MS)
                self._until_ms[(shard, id)] = pause_ms, now_ms + pause_ms


class Lately(Generic[T]):
    """The last few large values that were made, by name. A value is never changed: another one replaces it."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._values: dict[str, T] = {}

    def get(self, name: str) -> T | None:
        return self._values.get(name)

    def put(self, name: str, value: T) -> None:
        kept = {key: old for key, old in self._values.items() if key != name}
        while len(kept) >= self._most:
            del kept[next(iter(kept))]
        self._values = {**kept, name: value}  # other threads may be reading the old mapping


class Naming:
    """A search through the warm modules of a shard for dictionaries that are still named, some modules at a time.

    `unnamed` are those that none of the modules so far names. `next_ms` is when the next search may begin, by the server's
    clock; 0 for one that has not ended.
    """

    def __init__(self, names: Iterable[str] = (), next_ms: int = 0) -> None:
        self.unnamed = set(names)
        self.cursor = 0
        self.next_ms = next_ms


class ClockLook(NamedTuple):
    """What the clock of a shard showed at some moment between `asked_s` and `answered_s` of this machine's monotonic clock."""

    ms: int
    asked_s: float
    answered_s: float

    def latest_ms(self, now_s: float) -> float:
        """Return the latest time that the clock may show at `now_s`. Its times are whole milliseconds."""
        return self.ms + 1 + (now_s - self.asked_s) * 1000

    def earliest_ms(self, now_s: float) -> float:
        return self.ms + (now_s - self.answered_s) * 1000


class ProcessState:
    """The state that the plans of one process share. A test makes one for each simulated process."""

    def __init__(self) -> None:
        self.epochs: dict[Shard, Opened] = {}
        """The epoch of each shard, as last seen. The mapping is replaced, not emptied, when a connection meets another
        incarnation of a server: a reader that finds the same mapping after its read knows that the read went to the incarnation
        that it knew."""
        self.clocks: dict[Shard, ClockLook] = {}
        """The last look at the clock of each shard, by which modules expire."""
        self.on_new_incarnation: list[Callable[[], None]] = []
        """Called after the mapping was replaced."""
        self.warm: dict[str, float] = {}
        """Modules that this process lately found below hot, with their uses: the count that Redis last returned, plus the reads
        here since. It is a guess. It saves a round trip, since the frame is requested together with the record, and a script,
        since the use goes with the next batch where it cannot be the one that promotes."""
        self.bars: dict[tuple[Shard, str], Bar] = {}
        """What hot and warm lately refused in each shard."""
        self.not_admitted: dict[str, float] = {}
        """Modules that hot did not admit, because those that would leave are worth more; with the count of uses at which to
        try again."""
        self.versions: dict[Shard, tuple[int, int]] = {}
        """The last version, (epoch, ver), that this process was given in each shard."""
        self.compacted: dict[Shard, tuple[int, int]] = {}
        """Where each shard was in its order when this process last looked whether its manifest needs a compaction."""
        self.indexes: Lately[bytes] = Lately(64)
        """Indexes of packs, by key. They never change; only a listing says whether the pack still exists."""
        self.packs: Lately[bytes | Mapping[str, bytes]] = Lately(4)
        """Packs that were read, by key: the object, and from the second read on its members."""
        self.dictionaries: Lately[bytes] = Lately(4)
        """Dictionaries for warm copies, by name."""
        self.gone: dict[str, int] = {}
        """Dictionaries that were lately in neither Redis nor the archive, and for how many more modules not to look."""
        self.dictionary: dict[Shard, str] = {}
        """The name of the current dictionary of each shard, as a reply last named it; empty for none. A script refuses a frame
        with another one."""
        self.naming: dict[Shard, Naming] = {}
        """The search of a worker for records that name older dictionaries."""
        self._floors: list[Sequence[Floors]] = []
        self.failing = Failing()
        self.claiming: dict[Shard, object] = {}
        """The call of this process that is claiming an epoch for a shard; the others wait for it (`recover`)."""
        self.unannounced: set[tuple[Shard, str]] = set()
        """Shards that missed changes of what a node of this process holds; they get the whole list when they reply again."""

    def note_floors(self, floors: Sequence[Floors]) -> Sequence[Floors] | None:
        """Note the floors of all shards. Returns earlier ones, from at least `FLOORS_MS` ago; None if there are none."""
        if not self._floors or floors[0].now_ms - self._floors[-1][0].now_ms >= FLOORS_MS:
            self._floors = [*self._floors[-1:], floors]
        return self._floors[0] if self._floors[0] is not floors else None

    def guess_warm(self, id: str, uses: float) -> None:
        if len(self.warm) >= WARM_MAX:
            self.warm.clear()
        self.warm[id] = uses

    def bar(self, shard: Shard, tier: str) -> Bar:
        """Return what this tier of a shard lately refused."""
        return self.bars.get((shard, tier)) or self.bars.setdefault((shard, tier), Bar())

    def note_not_admitted(self, id: str) -> None:
        """Note that hot did not admit a module: the next try comes when it has been used twice as often."""
        if len(self.not_admitted) >= WARM_MAX:
            self.not_admitted.clear()
        self.not_admitted[id] = 2 * self.warm.get(id, 1.0)

    def learn_uses(self, counts: Mapping[str, float]) -> None:
        """Take over the counts of Redis: other processes may have read the modules too."""
        for id, uses in counts.items():
            if id in self.warm:
                self.warm[id] = uses

    def forget(self) -> None:
        """A new connection has met another incarnation of a server: drop what was known of the earlier one."""
        self.epochs = {}
        self.clocks.clear()
        for listener in self.on_new_incarnation:
            listener()

    def note_version(self, shard: Shard, epoch: int, ver: int) -> None:
        """Note the version that a write of this process was given."""
        self.versions[shard] = (epoch, ver)

    def since(self, shard: Shard) -> str:
        """Return the latest version of the shard that is known here, given before now: for `Sending`."""
        known = self.epochs.get(shard)
        given = self.versions.get(shard, (0, 0))
        epoch, ver = max(given, (known.epoch, known.ver)) if known else given
        return f"{epoch}-{ver}"
