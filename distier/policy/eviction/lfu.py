"""Least frequently used first; of those with as many uses, the least recently used one.

Counts are halved from time to time, without which what was popular once would stay for ever ("LFU with aging").
"""

from distier.policy.eviction.rank import Policy, Ranked

RECENT = 1e-13
"""Times in ms are below 1e13 until the year 2286, so recency decides only between equal counts."""


def rank(m: Ranked) -> float:
    return m.uses + m.now * RECENT


POLICY = Policy("lfu", "the least frequently used", rank, "uses + now * 1e-13", halves=True)
