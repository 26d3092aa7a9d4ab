"""Least recently used first. On the server, the sets `hot` and `warm` are in this order anyway."""

from distier.policy.eviction.rank import Policy, Ranked


def rank(m: Ranked) -> float:
    return m.now


POLICY = Policy("lru", "the least recently used", rank, "now")
