"""The checker of histories: histories that it must accept, and histories that it must refuse, for each of its rules."""

from __future__ import annotations

from typing import Any

import pytest

from tests.history import NEVER, NONE, SEEN, Call, History, Promises, explained, may_return


def one_after_the_other(*calls: tuple[Any, ...]) -> list[Call]:
    return [Call(kind, 2 * i, 2 * i + 1, *values) for i, (kind, *values) in enumerate(calls)]


GOOD = {
    "a read of what was put": one_after_the_other(("put", 1), ("read", 1), ("put", 2), ("read", 2)),
    "nothing before the first put": one_after_the_other(("read", None), ("put", 1)),
    "a chain of compare-and-sets": one_after_the_other(("cas", 1, None), ("cas", 2, 1), ("conflict", None, 1), ("read", 2)),
    "one delete finds it": one_after_the_other(("put", 1), ("delete",), ("nothing",), ("read", None)),
    "reads during a put": [Call("put", 0, 10, 1), Call("read", 1, 2, None), Call("read", 3, 4, 1)],
    "an unknown put that was seen late": [
        Call("put", 0, 1, 1), Call("put", 2, NEVER, 2, known=False), Call("read", 3, 4, 1), Call("read", 50, 51, 2),
    ],
    "an unknown put that was never seen": [Call("put", 0, 1, 1), Call("put", 2, NEVER, 2, known=False), Call("read", 3, 4, 1)],
    "a superseded put during a put": [Call("put", 0, 10, 1), Call("put", 2, 3, 2), Call("read", 11, 12, 2)],
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


@pytest.mark.parametrize(
    ("found", "need", "deleted", "may"),
    [
        ((1, 2), (1, 2), False, True),
        ((2, 1), (1, 2), False, True),
        ((1, 1), (1, 2), False, False),
        ((1, 1), (1, 2), True, False),
        (None, NONE, False, True),
        (None, (1, 2), False, False),
        (None, (1, 2), True, True),
    ],
)
def test_read_returns_what_it_needs_or_later(found: Any, need: Any, deleted: bool, may: bool) -> None:
    assert may_return(found, need, lambda: deleted) == may


# -- promises ----------------------------------------------------------------------------------------------------------

LOSSLESS = Promises(frozenset({"redis", SEEN}), ordered=frozenset({"redis"}))
FAILOVER = Promises(frozenset({"archived"}), ordered=frozenset({"archived"}))


def put(began: float, ended: float, epoch: int, ver: int, level: str = "redis", value: str = "", **more: Any) -> Call:
    return Call("put", began, ended, value or f"{epoch}-{ver}", version=(epoch, ver), epoch=epoch, level=level, **more)


def lost_put(began: float, value: str) -> Call:
    """A put of unknown outcome."""
    return Call("put", began, NEVER, value, known=False, level="redis")


def read(began: float, ended: float, epoch: int, ver: int, at: int | None = None, value: str = "", **more: Any) -> Call:
    return Call("read", began, ended, value or f"{epoch}-{ver}", version=(epoch, ver), epoch=at, **more)


def miss(began: float, ended: float, at: int | None = None, **more: Any) -> Call:
    return Call("read", began, ended, epoch=at, **more)


def delete(began: float, ended: float, epoch: int | None = None, level: str = "redis") -> Call:
    return Call("delete", began, ended, epoch=epoch, level=level)


KEPT: dict[str, tuple[Promises, list[Call]]] = {
    "reads of what was put": (LOSSLESS, [put(0, 1, 1, 1), read(2, 3, 1, 1), put(4, 5, 1, 2), read(6, 7, 1, 2)]),
    "a read during a put": (LOSSLESS, [put(0, 1, 1, 1), put(2, 9, 1, 2), read(3, 4, 1, 1), read(5, 6, 1, 2)]),
    "an unknown put that is read": (LOSSLESS, [put(0, 1, 1, 1), lost_put(2, "1-2"), read(3, 4, 1, 2)]),
    "a miss after a delete": (LOSSLESS, [put(0, 1, 1, 1), delete(2, 3), miss(4, 5)]),
    "a miss after an unknown delete": (LOSSLESS, [put(0, 1, 1, 1), delete(2, NEVER), miss(4, 5)]),
    "puts at once in any order": (LOSSLESS, [put(0, 9, 1, 2), put(1, 8, 1, 1)]),
    "a put after a delete": (LOSSLESS, [put(0, 1, 1, 1), delete(2, 3), put(4, 5, 1, 2), read(6, 7, 1, 2)]),
    "a loss under a new epoch": (FAILOVER, [put(0, 1, 1, 1), miss(2, 3, at=2)]),
    "an archived put after a failover": (FAILOVER, [put(0, 1, 1, 1, "archived"), put(2, 3, 1, 2), read(4, 5, 1, 1, at=2)]),
    "an old read of a zombie": (FAILOVER, [
        put(0, 1, 1, 1, "archived"), put(2, 3, 2, 1, "archived"), read(4, 5, 1, 1, at=1, zombie=True),
    ]),
    "a tombstone of the new epoch, found by a zombie": (FAILOVER, [
        delete(0, 1, epoch=2, level="archived"), put(2, 3, 1, 1, zombie=True), miss(4, 5, at=1, zombie=True),
    ]),
    "a version of the new epoch, overwritten by a zombie": (FAILOVER, [
        put(0, 1, 2, 1, "archived"), read(2, 3, 2, 1, at=1, zombie=True), put(4, 5, 1, 2, zombie=True),
        read(6, 7, 1, 2, at=1, zombie=True),
    ]),
}  # fmt: skip
BROKEN: dict[str, tuple[str, Promises, list[Call]]] = {
    "a stale read": ("ACK LOST", LOSSLESS, [put(0, 1, 1, 1), put(2, 3, 1, 2), read(4, 5, 1, 1)]),
    "older than a read": ("ACK LOST", LOSSLESS, [
        put(0, 1, 1, 1), lost_put(2, "1-2"), read(3, 4, 1, 2), read(5, 6, 1, 1),
    ]),
    "a miss": ("ACK LOST", LOSSLESS, [put(0, 1, 1, 1), miss(2, 3)]),
    "a miss with a delete before the put": ("ACK LOST", LOSSLESS, [delete(0, 1), put(2, 3, 1, 1), miss(4, 5)]),
    "a miss with a delete after the read": ("ACK LOST", LOSSLESS, [put(0, 1, 1, 1), miss(2, 3), delete(4, 5)]),
    "a miss with a delete before one of two puts": ("ACK LOST", LOSSLESS, [
        put(0, 9, 1, 2), delete(1, 3), put(4, 9, 1, 1), miss(10, 11),
    ]),
    "an archived version is lost": ("ACK LOST", FAILOVER, [put(0, 1, 1, 1, "archived"), miss(2, 3, at=2)]),
    "a loss within an epoch": ("STALE within an epoch", FAILOVER, [put(0, 1, 1, 1), miss(2, 3, at=1)]),
    "back within an epoch": ("STALE within an epoch", FAILOVER, [
        put(0, 1, 1, 1), put(0, 9, 1, 2), read(2, 3, 1, 2, at=1), read(4, 5, 1, 1, at=1),
    ]),
    "a zombie misses what is of its epoch": ("STALE within an epoch", FAILOVER, [
        put(0, 1, 1, 1), miss(2, 3, at=1, zombie=True),
    ]),
    "a put before its predecessor": ("ORDER", LOSSLESS, [put(0, 1, 1, 2), put(2, 3, 1, 1)]),
    "an archived put before its predecessor": ("ORDER", FAILOVER, [put(0, 1, 1, 2), put(2, 3, 1, 1, "archived")]),
    "deleted, and read again": ("RESURRECTED after a delete", LOSSLESS, [put(0, 1, 1, 1), delete(2, 3), read(4, 5, 1, 1)]),
    "deleted durably": ("RESURRECTED after a delete", FAILOVER, [
        put(0, 1, 1, 1), delete(2, 3, epoch=1, level="archived"), read(4, 5, 1, 1, at=2),
    ]),
    "deleted in this epoch": ("RESURRECTED within an epoch", FAILOVER, [
        put(0, 1, 1, 1), delete(2, 3, epoch=1), read(4, 5, 1, 1, at=1),
    ]),
    "contents that were never put": ("torn or foreign", FAILOVER, [put(0, 1, 1, 1), read(2, 3, 1, 2, value="x")]),
    "contents of the future": ("torn or foreign", FAILOVER, [read(0, 1, 1, 1), put(2, 3, 1, 1)]),
    "two writes of one version": ("(1, 1) is a and b", FAILOVER, [put(0, 1, 1, 1, value="a"), put(2, 3, 1, 1, value="b")]),
    "two contents of one version": ("(1, 1) is a and b", FAILOVER, [
        put(0, 1, 1, 1, value="a"), lost_put(0, "b"), read(2, 3, 1, 1, value="b"),
    ]),
}  # fmt: skip


def faults(promises: Promises, calls: list[Call]) -> list[str]:
    history = History(promises)
    for call in sorted(calls, key=lambda call: (call.kind, call.value or "")):  # in any order
        history.add(call)
    return list(history.faults("m"))


@pytest.mark.parametrize("name", KEPT)
def test_history_that_keeps_the_promises_is_accepted(name: str) -> None:
    assert not faults(*KEPT[name])


@pytest.mark.parametrize("name", BROKEN)
def test_broken_promise_is_reported(name: str) -> None:
    fault, promises, calls = BROKEN[name]
    assert faults(promises, calls)[0].startswith(f"'m': {fault}")


def test_lost_version_is_noted_with_the_epoch_of_the_read() -> None:
    history = History(FAILOVER)
    first, second = put(0, 1, 1, 1), put(2, 3, 1, 2)
    for call in (first, second, read(4, 5, 1, 1, at=2), read(6, 7, 1, 1, at=3)):
        history.add(call)
    assert not list(history.faults("m"))
    assert history.lost == {second: 2}
