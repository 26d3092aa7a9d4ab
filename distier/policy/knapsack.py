"""The 0/1 knapsack: the most value within a capacity.

Kellerer, Pferschy, Pisinger, "Knapsack Problems", Springer 2004, chapters 2 and 5. First greedily by value for each unit of
weight. The linear relaxation gives an upper bound, and with many items the greedy solution is within `TOLERANCE` of it, which
ends the search. Otherwise dynamic programming over the items whose place in the solution is in doubt: a deviation from the
relaxed solution (leaving out an item that it takes, or taking one that it leaves) costs a known part of the bound, its *loss*.
A state whose losses exceed the gap between the bound and the best solution so far cannot become a better one.

Rejected: dynamic programming over all weights, which takes seconds for 1,000 items and a capacity of 50,000 in Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TOLERANCE = 0.004
"""The search ends when the value is proven to be within this fraction of the optimum."""
STATES_MAX = 20_000
"""The number of states that the search makes at most, some 15 ms. The best solution until then is the result."""
KEPT_MAX = 1_000
"""The number of states that are kept after an item: those with the least loss."""

_State = tuple[int, float, int, Any]
"""Weight, negative value, a number that makes the order total, and the deviations as a linked list."""


def knapsack(weights: Sequence[int], values: Sequence[float], capacity: int) -> list[int]:
    """Return the positions of the chosen items, in ascending order. The same arguments always give the same result.

    Args:
        weights: The weight of each item, 0 or more.
        values: The value of each item, greater than 0.
        capacity: The sum of weights that is allowed, 0 or more.
    """
    if sum(weights) <= capacity:
        return list(range(len(weights)))
    usable = [i for i in range(len(weights)) if weights[i] <= capacity]
    free = [i for i in usable if not weights[i]]
    order = [i for i in usable if weights[i]]
    density = {i: values[i] / weights[i] for i in order}
    order.sort(key=density.__getitem__, reverse=True)  # stable: of equal ones, the first
    chosen, left, value, split, bound = [], capacity, 0.0, -1, 0.0
    for at, i in enumerate(order):
        if weights[i] <= left:
            chosen.append(i)
            left -= weights[i]
            value += values[i]
        elif split < 0:
            split, bound = at, value + left * density[i]
    if split >= 0 and value < bound * (1 - TOLERANCE):
        chosen = _improved(weights, values, capacity, order, split, chosen, value)
    return sorted(free + chosen)


def _improved(
    weights: Sequence[int], values: Sequence[float], capacity: int, order: Sequence[int], split: int,
    greedy: list[int], greedy_value: float,
) -> list[int]:  # fmt: skip
    """Return a solution at least as good as `greedy`. The relaxed solution takes `order[:split]` and a part of the next."""
    price = values[order[split]] / weights[order[split]]
    taken = order[:split]
    weight, value = sum(weights[i] for i in taken), sum(values[i] for i in taken)
    bound = value + price * (capacity - weight)
    signed = [(values[i] - price * weights[i], -weights[i], -values[i], i) for i in taken]
    signed += [(price * weights[i] - values[i], weights[i], values[i], i) for i in order[split:]]
    signed.sort()
    states: list[_State] = [(weight, -value, 0, None)]
    best: tuple[float, Any] | None = None
    best_value, made = greedy_value, 0
    for loss, dw, dv, i in signed:
        gap = bound - best_value
        if loss >= gap or gap <= bound * TOLERANCE or made > STATES_MAX:
            break
        added: list[_State] = []
        # The loss of a state is what its value and its free capacity, at the price, lack of the bound.
        most = bound - price * capacity
        for w, minus, _, link in states:
            if most + price * w + minus + loss < gap:
                made += 1
                added.append((w + dw, minus - dv, made, (link, i)))
                if w + dw <= capacity and dv - minus > best_value:
                    best_value, best = dv - minus, (dv - minus, (link, i))
        states = _undominated(states, added, bound - best_value, most, price)
    if best is None:
        return greedy
    flipped, link = set(), best[1]
    while link is not None:
        link, i = link
        flipped.add(i)
    return [i for i in taken if i not in flipped] + [i for i in order[split:] if i in flipped]


def _undominated(
    states: list[_State], added: list[_State], gap: float, most: float, price: float
) -> list[_State]:  # fmt: skip
    """Merge states, without those that another one makes superfluous, or that cannot become better than the best."""
    kept: list[_State] = []
    least = 1.0  # values are not negative, so their negatives are less
    for state in sorted(states + added):
        if state[1] < least:
            least = state[1]
            if most + price * state[0] + state[1] < gap:
                kept.append(state)
    if len(kept) > KEPT_MAX:
        kept = sorted(sorted(kept, key=lambda s: most + price * s[0] + s[1])[:KEPT_MAX])
    return kept
