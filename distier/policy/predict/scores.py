"""How often the guesses of a source come true: shadow scoring, and the probability that follows from it.

Every guess is noted, whether anything is done about it or not, and *comes true* if the module is used before `horizon` newer
guesses were noted, and within `PATIENCE` times as many accesses. Guesses that are alike share a cell: those with as much
evidence, and with a similar ratio of counts. A cell's measured rate is the probability of its guesses. So a source needs no
model of the workload: one pass over a new sequence is proof enough where conversations share prefixes, and worth little in a
web shop, and the cells find that out. A cell that is below the bar is silent, and goes on being scored, so that it recovers
when the workload changes.

A rate starts at `HOPE`, with the weight of `HOPE_WEIGHT` guesses, so that a first guess is made, and a few wrong ones silence
their cell. What was seen only once is no pattern yet. It must come true nearly always (`ONCE_BAR`).
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

HOPE = 0.93
HOPE_WEIGHT = 3.0
ONCE_BAR = 0.92
"""The rate below which guesses from a single observation count for nothing."""
MEMORY = 400.0
"""Guesses of a cell after which their weight is halved: old ones count for less."""
PATIENCE = 4
"""Accesses for each pending guess after which a guess is wrong: where guesses are rare, it must not wait for newer ones."""
STEPS = 10
"""The number of classes of ratios."""


class Guess(NamedTuple):
    """A module that may be used next: the `ratio` of counts, from 0 to 1, and how often it was `seen`."""

    id: str
    ratio: float
    seen: float


Cell = tuple[int, int]


def cell_of(guess: Guess) -> Cell:
    """Return the cell of a guess: its evidence (once, twice, three or four times, more often) and its ratio in tenths."""
    seen = guess.seen
    return (0 if seen < 1.5 else 1 if seen < 2.5 else 2 if seen < 4.5 else 3), min(STEPS - 1, int(guess.ratio * STEPS))


class Scores:
    """The measured rates of one source.

    Args:
        horizon: how many guesses are pending at once; also how long a guess may take to come true.
    """

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon
        self._cells: dict[Cell, list[float]] = {}
        self._pending: OrderedDict[str, tuple[int, set[Cell]]] = OrderedDict()
        self._accesses = 0

    def probability(self, guess: Guess) -> float:
        """Return how probable a guess is, by the rate of those before it; 0 for a single observation below `ONCE_BAR`."""
        made, right = self._cells.get(cell_of(guess), (0.0, 0.0))
        rate = (HOPE * HOPE_WEIGHT + right) / (HOPE_WEIGHT + made)
        return 0.0 if guess.seen < 1.5 and rate < ONCE_BAR else rate

    def note(self, guess: Guess) -> None:
        """Note a guess, to score it later."""
        pending = self._pending.get(guess.id)
        if pending is not None:
            pending[1].add(cell_of(guess))
            return
        self._pending[guess.id] = self._accesses + PATIENCE * self.horizon, {cell_of(guess)}
        if len(self._pending) > self.horizon:
            self._settle(self._pending.popitem(last=False)[1][1], 0.0)

    def used(self, id: str) -> None:
        """A module was used: the guesses of it have come true."""
        self._accesses += 1
        pending = self._pending.pop(id, None)
        if pending is not None:
            self._settle(pending[1], 1.0)
        while self._pending:
            late, cells = next(iter(self._pending.values()))
            if late > self._accesses:
                break
            self._pending.popitem(last=False)
            self._settle(cells, 0.0)

    def _settle(self, cells: set[Cell], right: float) -> None:
        for name in cells:
            cell = self._cells.setdefault(name, [0.0, 0.0])
            cell[0] += 1
            cell[1] += right
            if cell[0] > MEMORY:
                cell[0] /= 2
                cell[1] /= 2
