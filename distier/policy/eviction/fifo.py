"""First in, first out: uses change nothing."""

from distier.policy.eviction.rank import Policy, Ranked


def rank(m: Ranked) -> float:
    return m.now if m.was is None else m.was


POLICY = Policy("fifo", "the one that came first", rank, "was or now", admits_all=True)
