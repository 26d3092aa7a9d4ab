"""Linearizability of the history of one module: is there an order of the calls that explains every result?

The algorithm is that of Wing and Gong (1993), with the memory of Lowe (2017). It takes any call that no other completed call
precedes, applies it to a copy of the module, and continues; it backtracks if a result does not fit. A call of unknown outcome
(its process died, or it raised `Unavailable`) may take effect at any moment after it began, also long after it ended, or never.

The state is the write that the module has its content from, or None if the module does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a history, from `began` to `ended` (NEVER: not known).

    kind      the result
    read      the call found `value` (None: nothing)
    put       the call wrote `value`
    cas       the call replaced `expected` by `value`
    conflict  the call found something other than `expected`
    delete    the call deleted the module
    nothing   the call found nothing to delete

    With `known` False the call did what `kind` says, or nothing at all; an unknown delete may have found nothing.
    """

    kind: str
    began: float
    ended: float
    value: Any = None
    expected: Any = None
    known: bool = True


def after(call: Call, state: Any) -> tuple[bool, Any]:
    """Return whether the call may have this result in this state, and the state after it."""
    match call.kind:
        case "read":
            return state == call.value, state
        case "put":
            return True, call.value
        case "cas":
            return state == call.expected, call.value
        case "conflict":
            return state != call.expected, state
        case "delete":
            return state is not None, None
        case "nothing":
            return state is None, state
    raise AssertionError(call.kind)


def explained(calls: Sequence[Call]) -> bool:
    """Return whether an order of these calls explains all of their results."""
    must = sum(1 << i for i, call in enumerate(calls) if call.known)
    seen: set[tuple[int, Any]] = set()
    todo: list[tuple[int, Any]] = [(0, None)]
    while todo:
        done, state = todo.pop()
        if done & must == must:
            return True
        if (done, state) in seen:
            continue
        seen.add((done, state))
        left = [(i, call) for i, call in enumerate(calls) if not done >> i & 1]
        first_end = min(call.ended for _, call in left if call.known)
        for i, call in left:
            if call.began <= first_end:
                fits, new = after(call, state)
                if fits:
                    todo.append((done | 1 << i, new))
    return False
