"""Hints: calls for which the caller waits only a short time."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.drive.conversation import Calls
from distier.drive.replies import Call
from distier.errors import RedisUnavailable, Unavailable

HINTS_OFF_S = 1.0
HINTS_OFF_MAX_S = 30.0


class Off(NamedTuple):
    """The backoff of a shard whose server did not answer hints in time, for example while it pauses writes.

    One late answer may be chance. From the second one on, no hint is sent until `until_s`. The pause doubles each time, until
    the server answers a hint.
    """

    until_s: float
    pause_s: float


def with_hints(calls: Sequence[Call], end_s: float, off: dict[Shard, Off]) -> Generator[Calls, list[Any], list[Any]]:
    """Make calls of which some are hints.

    If the calls are not answered within the hints' time, the others are made again without the hints; they are reads.

    Args:
        calls: the calls; the first one is a hint.
        end_s: when the other calls must have ended, on the monotonic clock.
        off: the backoff of each shard, which is kept between calls and changed here.
    """
    now_s, wait_s = time.monotonic(), calls[0].hint
    sent: Sequence[int] = range(len(calls))
    if off:
        sent = [i for i in sent if not calls[i].hint or now_s >= off.get(calls[i].shard, _READY).until_s]
    results: list[Any] = [RedisUnavailable("Redis did not answer recent hints, so this one was not sent")] * len(calls)
    if sent:
        answers = yield Calls([calls[i] for i in sent], min(end_s, now_s + wait_s))
        for i, answer in zip(sent, answers, strict=True):
            results[i] = answer
    late_s = time.monotonic() - now_s - wait_s
    if late_s < 0 and not off:
        return results
    again = []
    for i in sent:
        shard, failed = calls[i].shard, isinstance(results[i], Unavailable)
        if not calls[i].hint:
            again += [i] if failed and late_s >= 0 else []
        elif not failed:
            off.pop(shard, None)
        elif late_s >= 0:
            before, ended_s = off.get(shard), time.monotonic()
            pause_s = min(before.pause_s * 2, HINTS_OFF_MAX_S) if before else HINTS_OFF_S / 2
            off[shard] = Off(ended_s + pause_s if before else ended_s, pause_s)
    if again:
        answers = yield Calls([calls[i] for i in again], end_s)
        for i, answer in zip(again, answers, strict=True):
            results[i] = answer
    return results


_READY = Off(0.0, 0.0)
