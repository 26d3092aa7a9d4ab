"""The checker of histories: histories that it must accept, and histories that it must refuse."""

from __future__ import annotations

from typing import Any

import pytest

from tests.interleave.linear import NEVER, Call, explained


def one_after_the_other(*calls: tuple[Any, ...]) -> list[Call]:
    return [Call(kind, 2 * i, 2 * i + 1, *values) for i, (kind, *values) in enumerate(calls)]


GOOD = {
    "a read of what was put": one_after_the_other(("put", 1), ("read", 1), ("put", 2), ("read", 2)),
    "nothing before the first put": one_after_the_other(("read", None), ("put", 1)),
    "a chain of compare-and-sets": one_after_the_other(("cas", 1, None), ("cas", 2, 1), ("conflict", None, 1), ("read", 2)),
    "one delete finds it": one_after_the_other(("put", 1), ("delete",), ("nothing",), ("read", None)),
    "reads beside a put": [Call("put", 0, 10, 1), Call("read", 1, 2, None), Call("read", 3, 4, 1)],
    "an unknown put that was seen late": [
        Call("put", 0, 1, 1), Call("put", 2, NEVER, 2, known=False), Call("read", 3, 4, 1), Call("read", 50, 51, 2),
    ],
    "an unknown put that was never seen": [Call("put", 0, 1, 1), Call("put", 2, NEVER, 2, known=False), Call("read", 3, 4, 1)],
    "a superseded put beside a put": [Call("put", 0, 10, 1), Call("put", 2, 3, 2), Call("read", 11, 12, 2)],
}  # fmt: skip
BAD = {
    "a stale read": one_after_the_other(("put", 1), ("put", 2), ("read", 1)),
    "a lost put": one_after_the_other(("put", 1), ("read", None)),
    "back and forth": [
        Call("put", 0, 9, 1), Call("put", 0, 9, 2), *(Call("read", 10 + n, 10.5 + n, v) for n, v in enumerate((1, 2, 1))),
    ],
    # C: a put is applied again over the write that replaced it
    "applied twice": [
        Call("put", 0, 20, 1), Call("read", 2, 3, 1), Call("cas", 4, 5, 2, 1), Call("read", 6, 7, 2),
        Call("read", 21, 22, 1),
    ],
    # D: a compare-and-set passes a put, which is acknowledged as superseded
    "passed by a compare-and-set": [
        Call("put", 0, 1, 1), Call("put", 2, 9, 2), Call("cas", 3, 4, 3, 1), Call("read", 5, 6, 3), Call("read", 10, 11, 3),
    ],
    # E: two deletes of one module
    "deleted twice": [Call("put", 0, 1, 1), Call("delete", 2, 9), Call("delete", 3, 8)],
    # F: a miss of a module that exists
    "a false miss": one_after_the_other(("put", 1), ("read", None), ("read", 1)),
    "a conflict with what is there": one_after_the_other(("put", 1), ("conflict", None, 1)),
    "an unknown put that comes and goes": [
        Call("put", 0, 1, 1), Call("put", 2, NEVER, 2, known=False),
        *(Call("read", 3 + n, 3.5 + n, v) for n, v in enumerate((2, 1))),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_linear_history_is_accepted(name: str) -> None:
    assert explained(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_history_that_is_not_linear_is_refused(name: str) -> None:
    assert not explained(BAD[name])
