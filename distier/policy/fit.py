"""Which modules are worth their tokens in a context window.

The value of a module is the estimated probability that it is needed next. Its odds are proportional to how often it was used,
and fall with the square root of the time since its last use: Anderson and Schooler, "Reflections of the environment in memory",
Psychological Science 2(6), 1991, who found both for words in headlines, in speech and in mail. A prediction is one more cause,
combined by noisy-or.

What is chosen is a knapsack over whole modules, and outlines fill what is left. Outlines do not compete with whole modules,
except those of modules that cannot fit whole: an outline has a tenth of the tokens of its module, so a window would otherwise
be full of outlines. What an outline is worth depends on the reader, and no measurement says it.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import NamedTuple

from distier.domain.fitted import Form, Reason
from distier.errors import Invalid
from distier.policy.knapsack import knapsack

PRIOR_USES = 0.1
"""What a module that was never used counts for, so that it is worth more than nothing."""
AGE_S = 3600.0
"""The time without use after which the odds have fallen by a factor of the square root of 2."""
OUTLINE_SHARE = 0.25
"""What an outline is worth of its module, where the two kinds compete."""


class Candidate(NamedTuple):
    """A module that may be chosen. `outline_tokens` is 0 if it has no outline. `probability` is what a prediction says."""

    id: str
    tokens: int
    uses: float = 0.0
    age_s: float = 0.0
    outline_tokens: int = 0
    probability: float = 0.0


class Pick(NamedTuple):
    """What becomes of a candidate, and why it is not whole."""

    form: Form
    tokens: int
    value: float
    reason: Reason | None = None


def value_of(candidate: Candidate) -> float:
    """Return the estimated probability that a module is needed next, greater than 0."""
    odds = (candidate.uses + PRIOR_USES) / sqrt(1 + max(candidate.age_s, 0.0) / AGE_S)
    need = odds / (1 + odds)
    return need + candidate.probability * (1 - need)


def fit(
    kept: Sequence[tuple[Candidate, Form]], required: Sequence[Candidate], others: Sequence[Candidate], budget: int
) -> list[Pick]:  # fmt: skip
    """Return a pick for each candidate: those of `kept`, of `required` and of `others`, in this order.

    Args:
        kept: Candidates that keep the form that they have.
        required: Candidates that must be chosen: whole if all of them fit, otherwise some as outlines.
        others: Candidates of which those with the most value are chosen.
        budget: The sum of tokens that is allowed.

    Raises:
        Invalid: `kept` and `required` alone exceed the budget.
    """
    picks = [_pick(candidate, form) for candidate, form in kept]
    left = budget - sum(pick.tokens for pick in picks)
    least = sum(min(c.outline_tokens or c.tokens, c.tokens) for c in required)
    if left < least:
        raise Invalid(_over(left, budget, least))
    picks += _required(required, left)
    left = budget - sum(pick.tokens for pick in picks)
    return picks + _others(others, left)


def _over(left: int, budget: int, needed: int) -> str:
    both = f"keep takes {budget - left} tokens and required at least {needed}"
    return f"{both}, which is more than budget_tokens, {budget}: raise budget_tokens, or name fewer modules"


def _pick(candidate: Candidate, form: Form, reason: Reason | None = None) -> Pick:
    tokens = {"whole": candidate.tokens, "outline": candidate.outline_tokens, "none": 0}[form]
    return Pick(form, tokens, value_of(candidate), reason)


def _required(required: Sequence[Candidate], left: int) -> list[Pick]:
    """Return picks that fit: some as outlines, with the least value at stake, if not all fit whole."""
    if sum(c.tokens for c in required) <= left:
        return [_pick(c, "whole") for c in required]
    # Everything starts as small as possible; the knapsack chooses which outlines become whole modules.
    short = [i for i, c in enumerate(required) if 0 < c.outline_tokens < c.tokens]
    shortened = set(short)
    least = sum(c.outline_tokens if i in shortened else c.tokens for i, c in enumerate(required))
    more = [required[i].tokens - required[i].outline_tokens for i in short]
    whole = {short[i] for i in knapsack(more, [value_of(required[i]) for i in short], left - least)}
    return [
        _pick(c, "outline", "outranked") if i in shortened and i not in whole else _pick(c, "whole")
        for i, c in enumerate(required)
    ]


def _others(others: Sequence[Candidate], left: int) -> list[Pick]:
    """Return the picks of the greatest value within `left` tokens."""
    values = [value_of(c) for c in others]
    picks = [
        Pick("none", 0, v, "too large" if c.tokens > left else "outranked") for c, v in zip(others, values, strict=True)
    ]
    fitting = [i for i, c in enumerate(others) if c.tokens <= left]
    short = [i for i, c in enumerate(others) if left < c.tokens and 0 < c.outline_tokens <= left]
    weights = [others[i].tokens for i in fitting] + [others[i].outline_tokens for i in short]
    worth = [values[i] for i in fitting] + [values[i] * OUTLINE_SHARE for i in short]
    for at in knapsack(weights, worth, left):
        left -= weights[at]
        if at < len(fitting):
            i = fitting[at]
            picks[i] = Pick("whole", others[i].tokens, values[i])
        else:
            i = short[at - len(fitting)]
            picks[i] = Pick("outline", others[i].outline_tokens, values[i], "too large")
    rest = [i for i, c in enumerate(others) if picks[i].form == "none" and 0 < c.outline_tokens <= min(left, c.tokens)]
    for at in knapsack([others[i].outline_tokens for i in rest], [values[i] for i in rest], left):
        i = rest[at]
        picks[i] = Pick("outline", others[i].outline_tokens, values[i], picks[i].reason)
    return picks
