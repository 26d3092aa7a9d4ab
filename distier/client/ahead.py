"""Loading ahead: the sessions of a store, what they read, and the rounds in which that is learned and predicted modules come.

A read in a session only appends its id to a list. A thread or a task (`background.py`) runs a *round* now and then, which
takes the ids, learns from them, and brings near what will probably be used next. A round is a plan, like all that a store does.

*What it may cost.* The background and the reads share one interpreter, so every microsecond here delays a read somewhere.
`Pace` allows a hundredth of the time, and more only for what has paid: each used prediction saved a read of the archive or a
round trip. So a workload without structure is only sampled. Where ids were skipped, nothing is learned across the gap.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from distier.effects import Cancelled, Count, Effect, Plan
from distier.errors import Invalid
from distier.near import Near
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.statistics import PredictionStats, SourceStats
from distier.plans.predict.bring import bring, look_again
from distier.plans.predict.learned import Recalled, recall, teach
from distier.policy.predict import Context, Prediction, Predictor, Walk
from distier.policy.predict.budget import ReadBudget
from distier.policy.predict.sources import WINDOW

T = TypeVar("T")
READS_MAX = 512
"""Ids of one session that wait for a round. Older ones are dropped."""
ROUND_MAX = 64
"""Ids of one round, and keys of one lesson."""
AT_ONCE = 16
"""Predicted modules of one round."""
RECALL_S = 30.0
"""How long what the fleet knew of a module is not asked again."""
THERE_S = 30.0
"""How long a module that needs no bringing is not tried again."""
TEACH_S = 1.0
"""How long what was counted here stays here."""
MARKED_PART = 8
"""Marked modules take at most an eighth of the entries of the near cache, and each at most a sixteenth of its bytes."""
LOOKS = 4
"""Rounds after a fetch in which it is looked whether the module became a suspect."""
KEYWORDS_MAX = 16


class Reads:
    """What one session reads: `note` is called with each id. The round takes the ids."""

    __slots__ = ("begun", "ended", "ids", "note", "walk")

    def __init__(self, keywords: Sequence[str]) -> None:
        self.walk = Walk(keywords)
        self.ids: deque[str] = deque(maxlen=READS_MAX)
        self.note: Callable[[str], None] = self.ids.append
        self.begun = self.ended = False

    def take(self, most: int) -> list[str]:
        """Take at most `most` ids, the oldest first, or the newest after a gap."""
        if len(self.ids) >= READS_MAX:  # some were dropped
            while len(self.ids) > most:
                self.ids.popleft()
            self.walk.recent.clear()
        return [self.ids.popleft() for _ in range(min(most, len(self.ids)))]


class Pace:
    """How much time the background may take: `SHARE` of all time, `BURST_S` at once, and `SAVED_S` for each used prediction."""

    SHARE = 0.01
    BURST_S = 0.01
    SAVED_S = 0.001
    SAVED_MAX_S = 0.5

    def __init__(self, now_s: float) -> None:
        self._left_s = self.BURST_S
        self._at_s = now_s

    def wait_s(self, now_s: float) -> float:
        """Return how long to wait before the next round, in seconds."""
        passed_s = max(0.0, now_s - self._at_s)
        self._at_s = now_s
        if self._left_s < self.BURST_S:
            self._left_s = min(self.BURST_S, self._left_s + passed_s * self.SHARE)
        return max(0.0, -self._left_s / self.SHARE)

    def spend(self, seconds: float, used: int) -> None:
        """Note the time that a round took, and the predictions that were used since the last one."""
        self._left_s = min(self._left_s - seconds + used * self.SAVED_S, self.SAVED_MAX_S)


def timed(plan: Plan[T], clock: Callable[[], float], effect_s: float, spent: list[float]) -> Plan[T]:
    """Run a plan, and add to `spent[0]` its own time by `clock`, and `effect_s` for each effect."""
    step: Callable[[], Effect[Any]] = lambda: next(plan)  # noqa: E731
    try:
        while True:
            begun_s = clock()
            try:
                effect = step()
            finally:
                spent[0] += clock() - begun_s + effect_s
            try:
                result = yield effect
            except (Exception, Cancelled) as e:
                step = lambda e=e: plan.throw(e)  # type: ignore[misc] # noqa: E731
            else:
                step = lambda r=result: plan.send(r)  # type: ignore[misc] # noqa: E731
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    finally:
        plan.close()


class Ahead:
    """What a store has learned, its sessions, and the plans of its rounds.

    Times are in seconds: `now_s` of the monotonic clock, `wall_s` since the Unix epoch.
    """

    def __init__(self, space: Namespace, near: Near, now_s: float) -> None:
        config = space.config.prediction
        self.space, self.near = space, near
        self.predictor = Predictor(config.precision_target, config.max_modules)
        self.budget = ReadBudget(config.archive_reads_per_second, now_s)
        self.pace = Pace(now_s)
        self.sessions: list[Reads] = []
        self._recalled: OrderedDict[tuple[bool, str], float] = OrderedDict()
        self._there: OrderedDict[str, float] = OrderedDict()
        self._fetched: dict[str, int] = {}  # with how often to look again
        self._in_near: set[str] = set()  # marked modules
        self._next_lesson_s = 0.0
        self._lock = threading.RLock()  # a signal handler may ask for predictions, too

    def join(self, keywords: Iterable[str]) -> Reads:
        """Begin a session."""
        reads = Reads(check_keywords(keywords))
        self.sessions.append(reads)
        return reads

    @property
    def is_idle(self) -> bool:
        """Whether there is no session, and nothing left to learn or to teach."""
        counts = self.predictor
        done = not self.sessions and not self._fetched
        return done and not counts.sequence.counts.changed and not counts.context.counts.changed

    def round(self, wall_s: float, now_s: float) -> Plan[int]:
        """Learn from what the sessions have read, and bring near what they will read.

        Returns how many predictions were used.
        """
        sessions = list(self.sessions)
        ended = [reads for reads in sessions if reads.ended]  # before their ids are taken
        taken: list[tuple[Reads, list[str]]] = []
        left = ROUND_MAX
        for reads in sessions:
            ids = reads.take(left)
            left -= len(ids)
            if ids or not reads.begun:
                taken.append((reads, ids))
        used = 0
        yield from self._look_again()
        if taken:
            yield from self._recall(taken, now_s)
            with self._lock:
                before = self.predictor.all_wasted
                predictions, used = self._observe(taken, wall_s, now_s)
                self._waste_evicted()
                wasted = self.predictor.all_wasted - before
            yield Count("predict.wasted", wasted)
            yield from self._bring(predictions, now_s)
        for reads in ended:
            if not reads.ids:
                self.sessions.remove(reads)
        if now_s >= self._next_lesson_s or (ended and not taken):
            self._next_lesson_s = now_s + TEACH_S
            yield from self.teach()
        if used:
            yield Count("predict.used", used)
        return used

    def _recall(self, taken: Sequence[tuple[Reads, list[str]]], now_s: float) -> Plan[None]:
        ids = [id for _, some in taken for id in dict.fromkeys(some) if self._is_due(False, id, now_s)]
        fresh = [
            k for reads, _ in taken if not reads.begun for k in reads.walk.keywords if self._is_due(True, k, now_s)
        ]
        if ids or fresh:
            self._take_over((yield from recall(self.space, list(dict.fromkeys(ids)), fresh)))

    def _is_due(self, is_keyword: bool, name: str, now_s: float) -> bool:
        return _is_over(self._recalled, (is_keyword, name), now_s, RECALL_S, self.space.config.prediction.max_modules)

    def _take_over(self, found: Recalled) -> None:
        with self._lock:
            for id, known in found.modules.items():
                self.predictor.sequence.counts.merge(id, known.uses, known.followers)
            for keyword, known in found.keywords.items():
                self.predictor.context.counts.merge(keyword, known.uses, known.followers)

    def _observe(
        self, taken: Sequence[tuple[Reads, list[str]]], wall_s: float, now_s: float
    ) -> tuple[list[Prediction], int]:
        """Learn from the ids. Returns the predictions, and how many earlier ones were used."""
        predictor, used = self.predictor, 0
        found: dict[str, Prediction] = {}

        def is_here(id: str) -> bool:
            return id in self.near.cache or self._there.get(id, 0.0) > now_s

        for reads, ids in taken:
            if not reads.begun:
                reads.begun = True
                predictor.begin(reads.walk)
                found |= {p.id: p for p in predictor.next_of(reads.walk, wall_s, is_here)}
            for i, id in enumerate(ids):
                used += predictor.observe(reads.walk, id, wall_s)
                found.pop(id, None)
                predictions = predictor.next_of(reads.walk, wall_s, is_here)
                if i >= len(ids) - WINDOW and not reads.ended:  # others come too late
                    found |= {p.id: p for p in predictions}
        likely = sorted(found.values(), key=lambda p: (-p.probability, p.id))
        return [p for p in likely if not predictor.is_marked(p.id)][:AT_ONCE], used

    def _waste_evicted(self) -> None:
        """Note the marked modules that left the near cache before they were used."""
        predictor, near = self.predictor, self.near.cache
        self._in_near = {id for id in self._in_near if predictor.is_marked(id)}
        for id in [id for id in self._in_near if not near.holds(id)]:
            predictor.wasted(id)
            self._in_near.discard(id)

    def _bring(self, predictions: Sequence[Prediction], now_s: float) -> Plan[None]:
        near = self.near.status == "on"
        if near:
            free = max(1, self.near.cache.max_entries // MARKED_PART) - self.predictor.marked
            predictions = predictions[: max(0, free)]
        if not predictions:
            return
        with self.near.reading([p.id for p in predictions] if near else ()) as reading:
            found = yield from bring(self.space, predictions, near=near, reads=self.budget.left(now_s))
            largest = self.near.cache.max_bytes // (2 * MARKED_PART)
            small = {id: module for id, module in found.modules.items() if len(module.content) <= largest}
            reading.fill(small)
        self._fetched |= dict.fromkeys(found.fetched & small.keys() if near else (), LOOKS)
        self.budget.spend(len(found.fetched))
        with self._lock:
            if found.refused:
                self.predictor.raise_threshold()
            before = self.predictor.all_wasted
            issued = 0
            for prediction in predictions:
                if (near and prediction.id in small) or prediction.id in found.fetched:
                    self.predictor.issue(prediction)
                    issued += 1
                if near and prediction.id in small and self.near.cache.holds(prediction.id):
                    self._in_near.add(prediction.id)
                if not near or prediction.id in found.there or prediction.id not in small:
                    _is_over(self._there, prediction.id, now_s, THERE_S, READS_MAX)
            wasted = self.predictor.all_wasted - before
        yield Count("predict.issued", issued)
        yield Count("predict.wasted", wasted)

    def _look_again(self) -> Plan[None]:
        """Make those fresh that the last round fetched, and that became suspects when it left a warm copy of them."""
        if not self._fetched:
            return
        fetched = list(self._fetched)
        self._fetched = {id: looks - 1 for id, looks in self._fetched.items() if looks > 1}
        suspects = [
            id for id in fetched if self.near.cache.suspect(id) is not None
        ]  # the others' pushes may still come
        if not suspects or self.near.status != "on":
            return
        with self.near.reading(suspects) as reading:
            reading.fill((yield from look_again(self.space, reading.suspects)))
        for id in suspects:
            self._fetched.pop(id, None)

    def teach(self) -> Plan[None]:
        """Send what was counted here to the fleet."""
        with self._lock:
            sequence, context = self.predictor.sequence.counts, self.predictor.context.counts
            modules, keywords = sequence.take_changes(ROUND_MAX), context.take_changes(ROUND_MAX)
        yield from teach(self.space, modules, keywords)

    def finish(self, wall_s: float) -> Plan[None]:
        """Learn from what is left, and send all that was counted here, before the store closes."""
        with self._lock:
            for reads in self.sessions:
                if not reads.begun:
                    self.predictor.begin(reads.walk)
                for id in reads.take(READS_MAX):
                    self.predictor.observe(reads.walk, id, wall_s)
        while self.predictor.sequence.counts.changed or self.predictor.context.counts.changed:
            yield from self.teach()

    def predict_access(self, context: Context) -> Plan[list[Prediction]]:
        """Return what will probably be used next in this context, by what the fleet and this process know."""
        recent = context.recent[-WINDOW:]
        self._take_over((yield from recall(self.space, recent, check_keywords(context.keywords))))
        with self._lock:
            return self.predictor.predict_access(context)

    def stats(self) -> PredictionStats:
        """Return what became of the predictions of this process."""
        with self._lock:
            predictor = self.predictor
            sources = {name: SourceStats(o.issued, o.used, o.wasted) for name, o in predictor.outcomes.items()}
            modules = len(predictor.sequence.counts)
        enabled = self.space.config.prediction.enabled
        return PredictionStats(enabled, len(self.sessions), modules, predictor.threshold, sources)


def check_keywords(keywords: Iterable[str]) -> list[str]:
    """Return the keywords of a session. Raises `Invalid`."""
    if isinstance(keywords, str):
        raise Invalid("keywords must be a sequence of strings, not a single str")
    wanted = list(dict.fromkeys(keywords))
    if (
        not all(isinstance(keyword, str) and 0 < len(keyword) <= 128 for keyword in wanted)
        or len(wanted) > KEYWORDS_MAX
    ):
        raise Invalid(f"a session has at most {KEYWORDS_MAX} keywords of 1 to 128 characters")
    return wanted


def _is_over(until: OrderedDict[Any, float], name: Any, now_s: float, for_s: float, most: int) -> bool:
    """Return whether the time of `name` is over. It then begins again, for `for_s` seconds; at most `most` names are kept."""
    if until.get(name, 0.0) > now_s:
        return False
    until.pop(name, None)
    until[name] = now_s + for_s
    if len(until) > most:
        until.popitem(last=False)
    return True
