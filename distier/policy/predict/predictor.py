"""The predictor of one process: it learns from accesses, mixes the sources, and measures what became of its predictions.

The probability of a prediction is the noisy-or of what its sources give it: 1 - (1 - p1) * (1 - p2) * ... That assumes that
they err independently, which they do not. So the result is compared with a *threshold*, and the threshold is steered by what
is measured: each prediction that was acted on and not used raises it, each that was used lowers it, in the proportion that
holds the precision at the target (the stochastic approximation of Robbins and Monro, 1951). It never falls below the target. A
prediction that the budget of archive reads did not allow raises it too, so that the budget goes to the most probable ones.

There is no clock and no chance in here: the time is an argument, in seconds since the Unix epoch.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from distier.policy.predict.scores import Guess, Scores
from distier.policy.predict.sources import WINDOW, Followers, Hours, Keywords

SOURCES = ("sequence", "context", "hour")
STEP = 0.02
"""How far one outcome moves the threshold."""
RELAX = 1e-4
"""How far each access lowers the threshold, so that a workload that has changed gets another chance."""
THRESHOLD_MAX = 0.98
ISSUED_MAX = 256
"""Predictions that were acted on and have no outcome yet. The oldest one beyond that is wasted."""
FIRST_IDS_MAX = 512
"""The ids of a session whose first use is known."""


class Prediction(NamedTuple):
    """A module that will probably be used soon, and the sources that say so, the strongest first: `sequence+context`."""

    id: str
    probability: float
    why: str


class Context(NamedTuple):
    """What is known of a session: the modules that it used last, oldest first, its keywords, and the time."""

    recent: tuple[str, ...] = ()
    keywords: tuple[str, ...] = ()
    now_s: float = 0.0


@dataclass(slots=True)
class Outcomes:
    """What became of the predictions of one source that were acted on."""

    issued: int = 0
    used: int = 0
    wasted: int = 0

    @property
    def precision(self) -> float | None:
        """The used part of those whose outcome is known; None if there is none."""
        known = self.used + self.wasted
        return self.used / known if known else None


class Walk:
    """One session as the predictor sees it: its keywords and its last modules."""

    __slots__ = ("first_ids", "hour", "keywords", "recent")

    def __init__(self, keywords: Iterable[str] = ()) -> None:
        self.keywords = tuple(dict.fromkeys(keywords))
        self.recent: deque[str] = deque(maxlen=WINDOW)
        self.first_ids: set[str] = set()
        self.hour = ""


@dataclass
class Predictor:
    """Learns from accesses and predicts the next ones.

    Args:
        target: the precision that predictions must have.
        modules_max: maximum number of modules whose followers are known; each takes about a kilobyte. A process passes its
            own limit. The default stands for what a fleet knows, for simulations.
    """

    target: float = 0.5
    modules_max: int = 262_144
    threshold: float = 0.0
    outcomes: dict[str, Outcomes] = field(default_factory=lambda: {name: Outcomes() for name in SOURCES})

    def __post_init__(self) -> None:
        self.threshold = self.target
        self.sequence = Followers(self.modules_max)
        self.context = Keywords(max(16, self.modules_max // 16))
        self.hours = Hours()
        self._all_scores: tuple[tuple[str, Scores], ...] = (
            ("sequence", self.sequence.scores),
            ("context", self.context.scores),
            ("hour", self.hours.scores),
        )
        self._issued: OrderedDict[str, str] = OrderedDict()  # id and strongest source

    def begin(self, walk: Walk) -> None:
        """A session begins."""
        self.context.begin(walk.keywords)

    def observe(self, walk: Walk, id: str, now_s: float) -> bool:
        """Learn from one access of a session. Returns whether it was predicted and acted on."""
        predicted = self.used(id)
        self.threshold = max(self.target, self.threshold - RELAX)
        for _, scores in self._all_scores:
            scores.used(id)
        self.sequence.learn(walk.recent, id)
        if walk.keywords and id not in walk.first_ids and len(walk.first_ids) < FIRST_IDS_MAX:
            walk.first_ids.add(id)
            self.context.learn(walk.keywords, id)
        self.hours.learn(id, now_s)
        walk.recent.append(id)
        return predicted

    def next_of(self, walk: Walk, now_s: float, is_here: Callable[[str], bool]) -> list[Prediction]:
        """Return what the session will probably use next and `is_here` does not have, most probable first.

        Call it after each access. The guesses of all sources are scored, whether they are returned or not. Keywords and hours
        are asked when the session begins and when the hour changes: their guesses do not depend on the last module.
        """
        guesses = {"sequence": [g for g in self.sequence.guesses(tuple(walk.recent)) if not is_here(g.id)]}
        hour = self.hours.hour(now_s)
        if hour != walk.hour:
            if not walk.hour and walk.keywords:
                guesses["context"] = [g for g in self.context.guesses(walk.keywords) if not is_here(g.id)]
            walk.hour = hour
            guesses["hour"] = [g for g in self.hours.guesses(now_s) if not is_here(g.id)]
        found = self._mix(guesses)
        for name, scores in self._all_scores:
            for guess in guesses.get(name, ()):
                scores.note(guess)
        return found

    def predict_access(self, context: Context) -> list[Prediction]:
        """Return what will probably be used next in this context, most probable first. It changes nothing."""
        recent = context.recent[-WINDOW:]
        return self._mix({
            "sequence": list(self.sequence.guesses(recent)),
            "context": [g for g in self.context.guesses(context.keywords) if g.id not in recent],
            "hour": [g for g in self.hours.guesses(context.now_s) if g.id not in recent],
        })  # fmt: skip

    def _mix(self, guesses: dict[str, list[Guess]]) -> list[Prediction]:
        parts: dict[str, list[tuple[float, str]]] = {}
        for name, scores in self._all_scores:
            for guess in guesses.get(name, ()):
                probability = scores.probability(guess)
                if probability >= self.target:  # below it the source is silent about this kind of guess
                    parts.setdefault(guess.id, []).append((probability, name))
        found = []
        for id, said in parts.items():
            missing = 1.0
            for probability, _ in said:
                missing *= 1 - probability
            if 1 - missing >= self.threshold:
                why = "+".join(name for _, name in sorted(said, key=lambda part: -part[0]))
                found.append(Prediction(id, 1 - missing, why))
        return sorted(found, key=lambda p: (-p.probability, p.id))

    def issue(self, prediction: Prediction) -> None:
        """Note that a prediction was acted on: the module was brought nearer, and is marked until its first use."""
        source = prediction.why.partition("+")[0]
        if prediction.id in self._issued:
            return
        self.outcomes[source].issued += 1
        self._issued[prediction.id] = source
        if len(self._issued) > ISSUED_MAX:
            self.wasted(next(iter(self._issued)))

    def is_marked(self, id: str) -> bool:
        """Return whether a module was brought nearer and not used since."""
        return id in self._issued

    @property
    def marked(self) -> int:
        """The number of modules that were brought nearer and not used since."""
        return len(self._issued)

    @property
    def all_wasted(self) -> int:
        return sum(outcomes.wasted for outcomes in self.outcomes.values())

    def used(self, id: str) -> bool:
        """Note a use. Returns whether the module was marked."""
        source = self._issued.pop(id, None)
        if source is None:
            return False
        self.outcomes[source].used += 1
        self.threshold = max(self.target, self.threshold - STEP * (1 - self.target))
        return True

    def wasted(self, id: str) -> None:
        """Note that a marked module left again before it was used."""
        source = self._issued.pop(id, None)
        if source is not None:
            self.outcomes[source].wasted += 1
            self.raise_threshold()

    def raise_threshold(self) -> None:
        """Ask for more probable predictions: one was wrong, or there was no budget for it."""
        self.threshold = min(THRESHOLD_MAX, self.threshold + STEP * self.target)
