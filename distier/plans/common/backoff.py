"""Waiting for others, for longer each time."""

from __future__ import annotations

from distier.effects import NewToken, Plan, Sleep

BACKOFF_FIRST_S = 0.005
BACKOFF_MAX_S = 0.25


def back_off(attempt: int, max_s: float = BACKOFF_MAX_S) -> Plan[float]:
    """All clients of a server that came back claim at once. Those whose claims met wait for a moment of their own: then one
    of them is alone, and the others find its epoch installed. Returns how long it was, in seconds."""
    chance = int((yield from NewToken())[:4], 16) / 65536
    seconds: float = chance * min(BACKOFF_FIRST_S * 2 ** min(attempt, 16), max_s)
    yield Sleep(seconds)
    return seconds
