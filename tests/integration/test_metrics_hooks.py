"""Hooks of real stores, blocking and asyncio: they get what `stats().counters` has."""

from __future__ import annotations

from tests.integration.world import World, until
from tests.unit.test_hooks import Sums


class Fails(Sums):
    def count(self, name: str, amount: int) -> None:
        raise RuntimeError("a fault of the hook")

    def observe(self, name: str, seconds: float) -> None:
        raise RuntimeError("a fault of the hook")


async def test_hook_gets_all_counters_and_archive_requests(world: World):
    hook = Sums()
    face = await world.open(metrics=[hook])
    await face.put("a", "text")
    await face.put("b", "text", durability="archived")
    await face.archive_now()
    assert (await face.demote("b", to="cold")).tier == "cold"
    await face.get_many(["a", "b", "none"])
    await face.get("a")
    await face.delete("a")
    counters = (await face.stats()).counters
    assert hook.counts == counters
    assert {"puts", "deletes", "hits.hot", "hits.cold", "misses", "moves.archived"} <= set(counters)
    assert {"archive.put", "archive.get", "archive.list"} <= {name for name, _ in hook.times}


async def test_calls_succeed_although_a_hook_raises(world: World):
    good = Sums()
    face = await world.open(metrics=[Fails(), good])
    await face.put("a", "text", durability="archived")
    assert (await face.get("a")).text == "text"
    assert await face.get("none") is None
    assert good.counts == (await face.stats()).counters


async def test_hook_gets_hits_of_the_near_cache(world: World):
    hook = Sums()
    face = await world.open(metrics=[hook], near__enabled=True)
    near = face.store.near
    await face.put("a", "text")
    await face.get("a")
    await until(lambda: near.status == "on", what="a near cache")

    while "a" not in near.cache:
        await face.get("a")
    hits = hook.counts["hits.near"] + sum(near.get("a") is not None for _ in range(50))
    await face.get("none")  # the next other count takes them along
    await until(lambda: hook.counts["hits.near"] >= hits, what="the hits")  # the tracker's thread may have had them
    assert (await face.stats()).counters == hook.counts
    hits = hook.counts["hits.near"] + sum(near.get("a") is not None for _ in range(50))
    await until(lambda: hook.counts["hits.near"] >= hits, what="the sum of the tracker's thread")
    hits = hook.counts["hits.near"] + sum(near.get("a") is not None for _ in range(50))
    await face.close()
    assert hook.counts["hits.near"] == hits > 50
