"""Slots move from master to master while agents read and write: nothing is lost, nothing is stale, and calls that have to wait
end within their deadline."""

from __future__ import annotations

import asyncio
import time
from typing import cast

import pytest

from distier import Item
from distier.errors import RedisUnavailable
from tests.cluster.conftest import SHARDS, Stores
from tests.cluster.load import Load
from tests.deadlines import short_deadline
from tests.servers import poll

KINDS_OF_STORE = ("sync", "async")


def epoch_of(store, index: int) -> int:
    return int(store.stats().epochs[index].epoch)


def test_slots_moving_under_load_lose_nothing(stores: Stores):
    """The classic way: MIGRATING, IMPORTING and MIGRATE by hand. Each slot moves there and back."""
    store, cluster = stores.store(), stores.cluster
    before = [epoch_of(store, i) for i in range(SHARDS)]
    ids = {stores.keys.shard(id): id for id in stores.ids(400)}
    with Load(stores.settings()) as load:
        load.await_calls(50)
        for shard in stores.keys.shards[:6]:
            home = cluster.owner(shard.slot)
            target = next(m for m in cluster.masters() if m is not home)
            for master in (target, home):
                cluster.move(shard.slot, master)
                store.put(ids[shard], "a write, so that the shard needs an epoch there")
                load.await_calls(20)
        load.await_calls(50)
    assert not load.failed and load.slowest_s < 60
    after = [epoch_of(store, i) for i in range(SHARDS)]
    assert all(a > b for a, b in zip(after[:6], before[:6], strict=True)), "a shard on another master has a new epoch"
    assert after[6:] == before[6:]
    cluster.await_agreement()


@pytest.mark.parametrize("cluster", ["valkey"], indirect=True)  # Redis 7 has no CLUSTER MIGRATESLOTS
def test_slots_moving_atomically_under_load_lose_nothing(stores: Stores):
    store, cluster = stores.store(), stores.cluster
    shard = stores.keys.shards[0]
    with Load(stores.settings()) as load:
        load.await_calls(50)
        home = cluster.owner(shard.slot)
        target = next(m for m in cluster.masters() if m is not home)
        if not cluster.move_atomically(shard.slot, target):
            pytest.skip("this server has no CLUSTER MIGRATESLOTS")
        load.await_calls(50)
        for other in stores.keys.shards[1:4]:
            away = next(m for m in cluster.masters() if m is not cluster.owner(other.slot))
            cluster.move_atomically(other.slot, away)
            load.await_calls(20)
    assert not load.failed
    assert epoch_of(store, 0) > 1
    cluster.await_agreement()


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("kind", KINDS_OF_STORE)
async def test_reads_work_and_writes_wait_while_a_slot_moves(stores: Stores, kind: str):
    face, cluster, shard = await stores.open(kind), stores.cluster, stores.keys.shards[3]
    ids = [id for id in stores.ids(200) if stores.keys.shard(id) is shard][:4]
    others = [id for id in stores.ids(60) if stores.keys.shard(id) is not shard]
    await face.put_many([Item(id, f"text of {id}") for id in (*ids, *others)])
    await face.demote(ids[3], to="warm")
    patient = stores.store(deadline="15s")
    source, target = cluster.owner(shard.slot), next(m for m in cluster.masters() if m is not cluster.owner(shard.slot))
    cluster.begin_move(shard.slot, target)
    moved = [shard.module(ids[0]).encode(), shard.module(ids[3]).encode(), shard.frame(ids[3]).encode()]
    cluster.move_keys(source, target, moved)
    for id in ids:  # on both masters
        assert (await face.get(id)).text == f"text of {id}"
    found = await face.get_many([*ids, *others])
    assert all(found[id].text == f"text of {id}" for id in found)
    began_s = time.monotonic()
    with short_deadline(face, 1.0), pytest.raises(RedisUnavailable, match="moving to another master"):
        await face.put(ids[1], "new")
    assert 0.5 < time.monotonic() - began_s < 30
    with short_deadline(face, 1.0), pytest.raises(RedisUnavailable, match="moving to another master"):
        await face.get(
            next(id for id in stores.ids(999, "no") if stores.keys.shard(id) is shard)
        )  # a miss needs a proof
    # Other shards do not wait, not even in the same call.
    with short_deadline(face, 2.0):
        results = await face.put_many([Item(id, "new") for id in (ids[1], *others[:5])])
    assert isinstance(results[0], RedisUnavailable) and [r.tier for r in results[1:]] == ["hot"] * 5
    late = asyncio.ensure_future(asyncio.to_thread(patient.put, ids[2], "late"))
    await asyncio.sleep(0.2)
    assert not late.done()
    cluster.move_keys(source, target, cluster.keys_in(source, shard.slot))
    cluster.end_move(shard.slot, target)
    await late
    assert (await face.get(ids[2])).text == "late"
    await face.put(ids[1], "newest")
    assert (await face.get(ids[1])).text == "newest" and (await face.get(ids[3])).text == f"text of {ids[3]}"
    cluster.move(shard.slot, source)
    assert (await face.get(ids[1])).text == "newest"


async def test_new_master_means_a_new_epoch_and_checked_reads(stores: Stores):
    """Knowledge about the old master no longer counts, even if the client was connected to both all the time."""
    one, two = stores.store(), await stores.open("async")
    shard, cluster = stores.keys.shards[5], stores.cluster
    id = stores.id_in(shard)
    first = one.put(id, "x", durability="archived").version
    assert (await two.get(id)).version == first
    home = cluster.owner(shard.slot)
    cluster.move(shard.slot, next(m for m in cluster.masters() if m is not home))
    verified = one._driver.counters.snapshot().get("recover.verified", 0)
    assert one.get(id).version == first and (await two.get(id)).version == first
    assert one._driver.counters.snapshot().get("recover.verified", 0) == verified + 1, "compared with the archive"
    assert one.space.process.epochs[shard_of(one, shard.index)].epoch > first.epoch
    assert one.put(id, "y").version.epoch > first.epoch
    cluster.move(shard.slot, home)


def shard_of(store, index: int):
    return store.space.keys.shards[index]


def test_listing_restarts_a_shard_that_moved_meanwhile(stores: Stores):
    """SCAN names no key, so the old master would reply, with nothing."""
    store, cluster = stores.store(), stores.cluster
    ids = [id for id in stores.ids(3000) if stores.keys.shard(id).index == 0]
    store.put_many([Item(id, "x") for id in stores.ids(200) + ids])
    shard = stores.keys.shards[0]
    cluster.move(shard.slot, next(m for m in cluster.masters() if m is not cluster.owner(shard.slot)))
    assert set(store.list()) == set(stores.ids(200) + ids)
    listing = store.list()
    first = next(listing)
    cluster.move(shard.slot, next(m for m in cluster.masters() if m is not cluster.owner(shard.slot)))
    assert {first, *listing} == set(stores.ids(200) + ids)


@pytest.mark.parametrize("kind", KINDS_OF_STORE)
async def test_events_continue_on_the_new_master(stores: Stores, kind: str):
    stores.shards = 1
    face, cluster, shard = await stores.open(kind), stores.cluster, stores.keys.shards[0]
    await face.put("a", "x")
    seen = await face.events(since="0", wait=False)
    cluster.move(shard.slot, next(m for m in cluster.masters() if m is not cluster.owner(shard.slot)))
    await face.put("b", "x")
    assert {e.id for e in await face.events(since=seen[-1].stream_id, wait=False)} >= {"b"}


# -- the near cache ------------------------------------------------------------------------------------------------------


def hits(store) -> int:
    return int(store.stats().near.hits)


def near_on(store, id: str) -> None:
    """Wait until the near cache serves `id`."""

    def hit() -> bool:
        before = hits(store)
        store.get(id)
        return hits(store) > before

    poll(hit, what=f"a near hit of {id} ({store.near.status})")


def shows(store, id: str, text: str | None) -> None:
    """Wait until a read returns this text."""

    def does() -> bool:
        module = store.get(id)
        return bool((module.text if module else None) == text)

    poll(does, what=f"{id} as {text} ({store.near.status})")


@pytest.mark.usefixtures("takes_seconds")
def test_near_cache_follows_all_masters_and_moving_slots(stores: Stores):
    store, writer, cluster = stores.store(near__enabled=True), stores.store(), stores.cluster
    ids = stores.ids(32)
    writer.put_many([Item(id, "1") for id in ids])
    for id in ids:
        near_on(store, id)
    assert {cluster.owner(stores.keys.shard(id).slot).port for id in ids} == {m.port for m in cluster.masters()}
    for id in ids:
        writer.put(id, "2")
    poll(lambda: all(store.get(id).text == "2" for id in ids), what="the change")
    for shard in stores.keys.shards[:3]:
        id = next(id for id in ids if stores.keys.shard(id) is shard)
        near_on(store, id)
        target = next(m for m in cluster.masters() if m is not cluster.owner(shard.slot))
        cluster.move(shard.slot, target)
        writer.put(id, "3")
        shows(store, id, "3")
        near_on(store, id)
        writer.put(id, "4")
        shows(store, id, "4")
        with target.client() as client:  # by hand, on the master
            assert client.delete(shard.module(id)) == 1
        shows(store, id, None)


@pytest.mark.usefixtures("takes_seconds")
def test_near_cache_distrusts_a_master_that_lost_a_slot(stores: Stores):
    """There are only hits, and no call that could get MOVED, so the heartbeat must notice. The slot is taken over without its
    keys, so the old master has nothing to push."""
    store, cluster = stores.store(near__enabled=True), stores.cluster
    shard = stores.keys.shards[7]
    id = stores.id_in(shard)
    store.put(id, "old", durability="archived")
    near_on(store, id)
    home = cluster.owner(shard.slot)
    target = next(m for m in cluster.masters() if m is not home)
    assert cluster.keys_in(home, shard.slot)
    cluster.ask(target, "CLUSTER", "SETSLOT", shard.slot, "IMPORTING", cluster.id_of(home))
    cluster.ask(target, "CLUSTER", "SETSLOT", shard.slot, "NODE", cluster.id_of(target))  # wins by its greater epoch
    writer = stores.store(redis__url=f"cluster://127.0.0.1:{target.port}")
    writer.put(id, "new")
    poll(
        lambda: cluster.topology(home).owner(shard.slot) == ("127.0.0.1", target.port), what="the old master's insight"
    )
    poll(lambda: store.get(id).text == "new", what="the new version")
    cluster.await_agreement()


@pytest.mark.usefixtures("takes_seconds")
def test_near_cache_distrusts_a_partitioned_master(stores: Stores):
    """The master replies to PING and pushes nothing, as a partitioned master does that knows about its partition."""
    store, cluster = stores.store(near__enabled=True), stores.cluster
    shard = stores.keys.shards[9]
    id = stores.id_in(shard)
    store.put(id, "x")
    near_on(store, id)
    home = cluster.owner(shard.slot)
    cluster.ask(home, "CLUSTER", "DELSLOTS", shard.slot)
    try:
        poll(lambda: not store.near.status.startswith("on"), what="the heartbeat's insight")
        assert id not in store.near.cache
        with short_deadline(store, 0.5), pytest.raises(RedisUnavailable, match="CLUSTERDOWN"):
            store.get(id)
    finally:
        cluster.ask(home, "CLUSTER", "ADDSLOTS", shard.slot)
    near_on(store, id)
    cluster.await_agreement()


async def test_listing_while_a_slot_moves_has_every_module(stores: Stores):
    face, cluster, shard = await stores.open("sync"), stores.cluster, stores.keys.shards[0]
    ids = [id for id in stores.ids(400) if stores.keys.shard(id) is shard]
    await face.put_many([Item(id, "x") for id in ids])
    found, after = list[str](), cast(str | None, "")
    while after is not None:
        page = await face.page(after=after, limit=7)
        found, after = found + [module.id for module in page.modules], page.after
        if len(found) == 7:
            cluster.move(shard.slot, next(m for m in cluster.masters() if m is not cluster.owner(shard.slot)))
    assert found == sorted(ids)
