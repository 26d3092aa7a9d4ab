"""Sending the uses that a process has gathered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distier.effects import Count, Pipeline, Plan
from distier.errors import DistierError
from distier.plans.common.namespace import Namespace


def send_touch(space: Namespace, touches: Sequence[Any]) -> Plan[dict[str, float]]:
    """Send gathered uses. Returns the counts by id.

    Recency is a hint: a batch that cannot be sent is dropped, and the read continues.
    """
    counts: dict[str, float] = {}
    for reply in (yield from Pipeline(touches)) if touches else ():
        if isinstance(reply, DistierError):
            yield Count("touches.lost")
        else:
            counts |= reply
    space.process.learn_uses(counts)
    return counts
