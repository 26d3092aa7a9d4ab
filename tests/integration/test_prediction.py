"""Sessions on real servers: what one agent walks through, the next one finds near or warm; and what that must not cost."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from distier import AsyncStore, Context, Invalid, Item, Store, connect, connect_async
from distier.domain.learned import WHOLE
from distier.plans.recovery.fsck.check import fsck
from tests.integration.world import Open
from tests.servers import TestServer, poll

STEPS = [f"skills/step-{n}" for n in range(8)]
ON: dict[str, Any] = {"prediction__enabled": True, "prediction__archive_reads_per_second": 1000}
NEAR: dict[str, Any] = {**ON, "near__enabled": True}


def settings(redis_url: str, tmp_path: Path, **more: Any) -> dict[str, Any]:
    common = {"redis__url": redis_url, "namespace": "t", "counter": "estimate", "deadline": "20s"}
    return {**common, "storage_tiers__cold__directory": tmp_path / "cold", **more}


def fill(store: Store, ids: list[str] = STEPS) -> None:
    store.put_many([Item(id, f"text of {id} " * 20) for id in ids])
    store.archive_now()
    chill(store, ids)


def chill(store: Store, ids: list[str] = STEPS) -> None:
    """Make modules cold, whatever a round that is under way does."""

    def are_cold() -> bool:
        store.demote_many(ids, to="cold")
        return all(placement and placement.tier == "cold" for placement in map(store.where, ids))

    poll(are_cold, what="cold modules")


def walk(store: Store, ids: list[str] = STEPS, **session: Any) -> None:
    with store.session(**session) as reading:
        for id in ids:
            assert reading.get(id) is not None


def is_learned(store: Store, id: str) -> Callable[[], bool]:
    def look() -> bool:
        found = store.predict_access(Context((id,)))
        return bool(found)

    return look


def is_near(store: Store | AsyncStore, id: str) -> bool:
    return id in store.near.cache


def is_warm(store: Store, id: str) -> bool:
    placement = store.where(id)
    return placement is not None and placement.tier == "warm"


def lost_hints(store: Store) -> int:
    """Return how many predictions and copies were given up, because Redis did not reply in a hint's time."""
    counters = store.stats().counters
    return sum(counters.get(name, 0) for name in ("predict.failed", "predict.lost", "keeps.failed"))


def is_warm_or_lost(store: Store, id: str, before: int) -> bool:
    return is_warm(store, id) or lost_hints(store) > before


FIRST_AGENT = """
import sys, time
import distier
with distier.connect({}, redis__url=sys.argv[1], namespace="t", counter="estimate", prediction__enabled=True,
                     storage_tiers__cold__directory=sys.argv[2]) as store:
    with store.session() as session:
        for id in sys.argv[3:]:
            assert session.get(id) is not None
"""


def test_second_agent_in_another_process_finds_the_sequence_near(
    open_store: Open, redis_url: str, tmp_path: Path
) -> None:
    store = open_store(**NEAR)
    fill(store)
    command = [sys.executable, "-c", FIRST_AGENT, redis_url, str(tmp_path / "cold"), *STEPS]
    subprocess.run(command, check=True, timeout=60)
    chill(store)
    poll(lambda: store.near.status == "on" or store.get("none"), what="a near cache")
    with store.session() as session:
        session.get(STEPS[0])
        for id in STEPS[1:]:
            poll(partial(is_near, store, id), what=f"{id} near before it is read")
            assert session.get(id) is not None
    stats = store.stats()
    assert (stats.hits.get("cold"), stats.hits["near"]) == (1, len(STEPS) - 1)
    found = stats.prediction
    poll(lambda: store.stats().prediction.used == len(STEPS) - 1, what="all predictions used")
    assert found.issued == len(STEPS) - 1 and found.wasted == 0
    assert store.stats().prediction.sources["sequence"].precision == 1.0
    assert store.stats().counters["predict.fetched"] == len(STEPS) - 1


def test_without_a_near_cache_the_second_agent_finds_it_warm(open_store: Open) -> None:
    first, second = open_store(**ON), open_store(**ON)
    fill(first)
    walk(first)
    poll(is_learned(second, STEPS[0]), what="what the first has learned")
    for _ in range(3):
        chill(first)
        before, hits = lost_hints(second), second.stats().hits.get("warm", 0)
        with second.session() as session:
            session.get(STEPS[0])
            for id in STEPS[1:]:
                poll(partial(is_warm_or_lost, second, id, before), what=f"{id} warm")
                assert session.get(id) is not None
        if lost_hints(second) == before:  # else Redis was too slow for a hint, and the walk begins again
            break
    assert second.stats().hits["warm"] - hits == len(STEPS) - 1


async def test_second_agent_of_an_asyncio_store_finds_the_sequence_near(
    open_store: Open, redis_url: str, tmp_path: Path
) -> None:
    plain = open_store(**ON)
    fill(plain)
    store = await connect_async({}, **settings(redis_url, tmp_path, **NEAR))
    async with store:
        async with store.session() as session:
            for id in STEPS:
                assert await session.get(id) is not None
        await until(lambda: store._ahead_task is not None and store._ahead_task.is_over, "the end of the task")
        chill(plain)
        other = await connect_async({}, **settings(redis_url, tmp_path, **NEAR))
        async with other, other.session() as session:
            await other.get("none")
            await until(lambda: other.near.status == "on", "a near cache")
            await session.get(STEPS[0])
            for id in STEPS[1:]:
                await until(partial(is_near, other, id), f"{id} near")
                assert (await session.get_many([id]))[id] is not None
            assert (await other.stats()).hits["near"] == len(STEPS) - 1
            assert [p.id for p in await other.predict_access(Context((STEPS[0],)))] == STEPS[1:4]


async def until(condition: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_keywords_bring_the_first_modules_of_a_session(open_store: Open) -> None:
    first, second = open_store(**ON), open_store(**ON)
    fill(first)
    for n in range(3):
        walk(first, [STEPS[n], STEPS[7]], keywords=["pdf"])
    poll(
        lambda: STEPS[7] in {p.id for p in second.predict_access(Context((), ("pdf",)))},
        what="what the first has learned",
    )
    chill(first)
    with second.session(keywords=["pdf"]):
        poll(partial(is_warm, second, STEPS[7]), what="the module of that keyword")
    assert not is_warm(second, STEPS[6])
    poll(lambda: second.stats().prediction.sources["context"].issued >= 1, what="a prediction that was acted on")


def test_off_nothing_is_learned_and_no_thread_runs(open_store: Open, redis_url: str, server: TestServer) -> None:
    store = open_store()
    fill(store)
    threads = {thread.name for thread in threading.enumerate()}
    with store.session(keywords=["pdf"]) as session:
        assert session.get == store.get
        assert [session.get(id) and id for id in STEPS] == STEPS
        assert list(session.get_many(STEPS)) == STEPS
    assert {thread.name for thread in threading.enumerate()} == threads
    with server.client() as raw:
        assert not raw.exists(store.space.keys.shards[0].learned)
    assert store.stats().prediction.enabled is False
    assert store.predict_access(Context((STEPS[0],))) == []


def test_budget_of_archive_reads_is_kept(open_store: Open) -> None:
    first = open_store(**ON)
    second = open_store(prediction__enabled=True, prediction__archive_reads_per_second=0)
    fill(first)
    walk(first)
    poll(is_learned(second, STEPS[0]), what="what the first has learned")
    chill(first)
    with second.session() as session:
        session.get(STEPS[0])
        poll(lambda: second.stats().prediction.threshold > 0.5, what="predictions without a budget")
    assert second.stats().counters.get("predict.fetched", 0) == 0
    assert not is_warm(second, STEPS[1])


def test_predicted_modules_do_not_displace_what_is_used_more(open_store: Open, server: TestServer) -> None:
    store = open_store(**ON, storage_tiers__warm__max_modules=2, storage_tiers__promotion_threshold=1000)
    others = ["much-used-1", "much-used-2"]
    fill(store, STEPS + others)
    for _ in range(4):
        walk(store)
        chill(store)
    with server.client() as raw:
        raw.zadd(store.space.keys.shards[0].uses, dict.fromkeys(others, 500.0))
    assert all(store.get(id) for id in others)
    assert all(is_warm(store, id) for id in others)
    other = open_store(**NEAR)  # without a near cache, it fetches nothing that warm would refuse
    poll(is_learned(other, STEPS[0]), what="what was learned")
    poll(lambda: other.near.status == "on" or other.get("none"), what="a near cache")
    with other.session() as session:
        session.get(STEPS[0])
        poll(lambda: other.stats().prediction.issued > 0, what="a prediction that was fetched")
        for id in STEPS[1:]:
            session.get(id)
            time.sleep(0.02)
    assert other.stats().counters["keeps.not_admitted"] > 0
    assert all(is_warm(store, id) for id in others)


def test_predicted_module_that_leaves_the_near_cache_unused_is_wasted(open_store: Open) -> None:
    store = open_store(**NEAR, near__max_entries=8)
    others = [f"other-{n}" for n in range(20)]
    fill(store, STEPS + others)
    walk(store)
    chill(store)
    poll(lambda: store.near.status == "on" or store.get("none"), what="a near cache")
    store.get_many(others)
    with store.session() as session:
        session.get(STEPS[0])
        poll(lambda: store.stats().prediction.issued > 0, what="a prediction")
        store.get_many(others)
        poll(lambda: session.get(others[0]) and store.stats().prediction.wasted > 0, what="a wasted prediction")
    found = store.stats()
    assert found.prediction.precision is not None and found.prediction.precision < 1
    assert found.counters["predict.wasted"] == found.prediction.wasted
    assert found.prediction.threshold > 0.5


def test_damaged_learned_data_neither_fails_nor_delays_reads(open_store: Open, server: TestServer) -> None:
    store = open_store(**ON)
    fill(store)
    with server.client() as raw:
        raw.set(store.space.keys.shards[0].learned, "not a hash")
    walk(store)
    poll(lambda: store.stats().counters.get("predict.lost"), what="a lost reading")
    poll(lambda: store.predict_access(Context((STEPS[0],))), what="what this process has learned itself")


def test_learned_data_is_known_to_fsck_and_may_be_deleted(open_store: Open, server: TestServer) -> None:
    store = open_store(**ON)
    fill(store)
    walk(store, keywords=["pdf"])
    key = store.space.keys.shards[0].learned
    with server.client() as raw:
        poll(lambda: raw.hlen(key) > len(STEPS) - 2, what="learned counts in Redis")
        assert raw.hget(key, WHOLE) is not None
        found: list[Any] = []
        store.run(fsck(store.space), deadline_s=60, on_progress=found.append)
        assert not [f for f in found if getattr(f, "kind", "") == "foreign-key"]
        raw.delete(key)
    assert open_store(**ON).predict_access(Context((STEPS[0],))) == []
    walk(store)


def test_modules_that_are_gone_are_predicted_in_vain_only_once(open_store: Open) -> None:
    store = open_store(**NEAR)
    fill(store)
    walk(store)
    for id in STEPS[1:]:
        store.delete(id)
    with store.session() as session:
        for _ in range(5):
            session.get(STEPS[0])
            time.sleep(0.03)
    assert store.stats().prediction.issued == 0


def test_session_refuses_impossible_keywords_and_a_closed_store(open_store: Open) -> None:
    store = open_store(**ON)
    impossible: list[Any] = ["pdf", [""], ["x" * 129], [str(n) for n in range(17)], [3]]
    for wrong in impossible:
        with pytest.raises(Invalid):
            store.session(keywords=wrong)
    with pytest.raises(Invalid):
        store.predict_access("skills/pdf")  # type: ignore[arg-type]
    with pytest.raises(Invalid):
        store.predict_access(Context(("",)))
    session = store.session()
    session.close()
    session.close()
    assert session.get("none") is None
    store.close()
    with pytest.raises(Invalid):
        store.session()
    with pytest.raises(Invalid):
        session.get(STEPS[0])


def ahead_threads() -> int:
    return sum(thread.name == "distier-ahead" for thread in threading.enumerate())


def test_thread_ends_with_its_store(redis_url: str, tmp_path: Path) -> None:
    before = ahead_threads()
    store = connect({}, **settings(redis_url, tmp_path, **NEAR))
    store.put("a", "text")
    walk(store, ["a"])
    assert ahead_threads() == before + 1
    store.close()
    poll(lambda: ahead_threads() == before, what="the end after close")
    store = connect({}, **settings(redis_url, tmp_path, **NEAR))
    walk(store, ["a"])
    del store
    poll(lambda: gc.collect() is not None and ahead_threads() == before, what="the end of a store that was dropped")


def test_store_teaches_what_is_left_when_it_closes(open_store: Open, redis_url: str, tmp_path: Path) -> None:
    other = open_store(**ON)
    fill(other)
    with connect({}, **settings(redis_url, tmp_path, **ON)) as store:
        session = store.session()
        for id in STEPS:
            session.get(id)
        poll(lambda: not store._ahead.has_reads(), what="a round")  # type: ignore[union-attr]
    assert other.predict_access(Context((STEPS[0],)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_child_learns_with_a_thread_of_its_own(open_store: Open) -> None:
    store = open_store(**ON)
    fill(store)
    walk(store, STEPS[:2])
    child = os.fork()
    if child == 0:
        code = 1
        try:
            walk(store, STEPS[2:])
            store.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    assert open_store(**ON).predict_access(Context((STEPS[2],)))


async def test_async_session_is_off_by_default(redis_url: str, tmp_path: Path) -> None:
    store: AsyncStore = await connect_async({}, **settings(redis_url, tmp_path))
    async with store:
        await store.put("a", "text")
        async with store.session() as session:
            assert session.get == store.get
            assert await session.get("a") is not None
        assert store._ahead is None
