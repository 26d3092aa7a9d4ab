"""Masters die, hang and are replaced while agents read and write."""

from __future__ import annotations

import os
import signal
import time

import pytest

from distier import Item
from distier.errors import RedisUnavailable
from tests.children import freeze
from tests.cluster.conftest import SHARDS, Stores
from tests.cluster.load import Load
from tests.cluster.test_moves import near_on, shows
from tests.clusters import NODE_TIMEOUT_MS
from tests.deadlines import short_deadline
from tests.servers import poll

ANSWERED_S = NODE_TIMEOUT_MS / 1000 + 30
"""On an idle machine an election takes about as long as the node timeout."""


def victim_of(stores: Stores):
    """Return a master that serves some of the shards, and these shards."""
    master = max(stores.cluster.masters(), key=lambda m: len(stores.on(m)))
    return master, stores.on(master)


def test_killed_master_under_load_loses_nothing_durable(stores: Stores):
    store, cluster = stores.store(), stores.cluster
    dead, shards = victim_of(stores)
    before = {e.shard: e.epoch for e in store.stats().epochs}
    with Load(stores.settings(), durable=True) as load:
        load.await_calls(100)
        dead.kill9()
        cluster.await_failover(dead, [s.slot for s in shards])
        load.await_calls(100)
        cluster.revive(dead)
        load.await_calls(50)
    assert not load.failed, load.failed[:3]
    assert load.slowest_s < ANSWERED_S
    print("slowest call", round(load.slowest_s, 2), "s of", load.calls)
    after = {e.shard: e.epoch for e in store.stats().epochs}
    moved = {s.index for s in shards}
    assert {i for i in after if after[i] > before[i]} == moved, "only shards with a new master have a new epoch"
    everything = {id for a in load.agents for id in a.acked}
    assert all(store.get_many(sorted(everything)).values())


@pytest.mark.usefixtures("takes_seconds")
@pytest.mark.parametrize("kind", ("sync", "async"))
async def test_other_shards_work_while_a_master_is_dead(stores: Stores, kind: str):
    face, cluster = await stores.open(kind), stores.cluster
    ids = stores.ids(48)
    await face.put_many([Item(id, "x", durability="archived") for id in ids])  # so that the failover cannot lose them
    dead, shards = victim_of(stores)
    gone = {id for id in ids if stores.keys.shard(id) in shards}
    for replica in cluster.replicas():  # the failover waits for the end of this part, however long it takes
        cluster.ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "yes")
    dead.kill9()
    with short_deadline(face, 2.0):
        results = dict(zip(ids, await face.put_many([Item(id, "y") for id in ids]), strict=True))
    assert {id for id, r in results.items() if isinstance(r, RedisUnavailable)} == gone
    assert all((await face.get_many([id for id in ids if id not in gone])).values())
    with short_deadline(face, 0.3), pytest.raises(RedisUnavailable):
        await face.get_many(ids)
    for replica in cluster.replicas():
        cluster.ask(replica, "CONFIG", "SET", "cluster-replica-no-failover", "no")
    cluster.await_failover(dead, [s.slot for s in shards])
    found = (await stores.open(kind)).get_many(ids)
    assert all((await found).values())
    cluster.revive(dead)


@pytest.mark.usefixtures("takes_seconds")
def test_hanging_master_is_left_within_the_deadline(stores: Stores):
    """No connection is refused and none is reset, but nothing comes back. Meanwhile the replica replaces the master."""
    store, cluster = stores.store(), stores.cluster
    shard = stores.keys.shards[0]
    id, home = stores.id_in(shard), cluster.owner(shard.slot)
    store.put(id, "1", durability="archived")
    freeze(home.pid)
    try:
        began_s = time.monotonic()
        store.put(id, "2")
        assert time.monotonic() - began_s < ANSWERED_S
        assert store.get(id).text == "2"
    finally:
        os.kill(home.pid, signal.SIGCONT)
    cluster.await_agreement()
    assert cluster.owner(shard.slot) is not home
    assert store.get(id).text == "2"


async def test_demoted_live_master_is_left(stores: Stores):
    """`CLUSTER FAILOVER`: the old master keeps running as a replica and replies MOVED."""
    store, other, cluster = stores.store(), await stores.open("async"), stores.cluster
    ids = stores.ids(48)
    store.put_many([Item(id, "1") for id in ids])
    assert all((await other.get_many(ids)).values())
    home, _ = victim_of(stores)
    address = ("127.0.0.1", home.port)
    successor = cluster.at(cluster.topology().replicas_of(address)[0])
    assert address in store._driver.redis._masters and address in other.store._driver.redis._masters  # type: ignore[union-attr]
    cluster.ask(successor, "CLUSTER", "FAILOVER")
    poll(lambda: successor in cluster.masters(), what="the failover")
    for n in range(2, 5):
        store.put_many([Item(id, str(n)) for id in ids])
        assert {m.text for m in (await other.get_many(ids)).values()} == {str(n)}
    assert address not in store._driver.redis._masters and address not in other.store._driver.redis._masters  # type: ignore[union-attr]
    cluster.await_agreement()


@pytest.mark.usefixtures("takes_seconds")
def test_near_cache_has_no_stale_hit_after_failover(stores: Stores):
    store, writer, cluster = stores.store(near__enabled=True), stores.store(), stores.cluster
    dead, shards = victim_of(stores)
    ids = [stores.id_in(shard) for shard in stores.keys.shards]
    writer.put_many([Item(id, "1", durability="archived") for id in ids])
    for id in ids:
        near_on(store, id)
    dead.kill9()
    cluster.await_failover(dead, [s.slot for s in shards])
    for id in ids:
        writer.put(id, "2")
    for id in ids:
        shows(store, id, "2")
    for id in ids:
        near_on(store, id)
        writer.put(id, "3")
        shows(store, id, "3")
    cluster.revive(dead)


@pytest.mark.usefixtures("takes_seconds")
def test_worker_continues_after_a_failover(stores: Stores):
    from distier.worker import Worker

    store, cluster = stores.store(storage_tiers__cold__archive_after="0s"), stores.cluster
    worker = Worker(store)
    store.put_many([Item(id, "x") for id in stores.ids(3 * SHARDS)])
    assert worker.run_once(), worker.report.last_failure
    dead, shards = victim_of(stores)
    dead.kill9()
    cluster.await_failover(dead, [s.slot for s in shards])
    store.put_many([Item(id, "y") for id in stores.ids(3 * SHARDS)])
    poll(lambda: worker.run_once() and not store.stats().dirty_count, what="a good round")
    cluster.revive(dead)
