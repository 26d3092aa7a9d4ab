"""Greedy dual size frequency: least value for its size first.

Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HP Labs 1998, with equal costs.
The rank of a module is its uses for each byte, above the rank of what was evicted last (`floor`). So what is not used any more
is passed by what comes, without a timer. Other than in the paper, three quarters of the uses survive an
eviction: a module that returns has most of its former count. Where popularity lasts that is better than to begin with one use
(by 1 to 3 points on traces of a web shop and of LLM conversations); where it does not, keeping all is worse (by 2 points).
"""

from distier.policy.eviction.rank import Policy, Ranked


def rank(m: Ranked) -> float:
    return m.floor + m.uses / m.size


POLICY = Policy("gdsf", "the one with the fewest uses for its size", rank, "floor + uses / size", kept_uses=0.75)
