"""Corner cases of "nothing lost": durable compare-and-set under contention, foreign keys, leases of dead processes."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distier import Store
from distier.domain.archived import content_key
from distier.domain.outcome import Refusal
from distier.effects import ArchiveDelete, Plan
from distier.errors import Conflict, Recovering
from distier.lua import Adopted, Adoption, Refused, Reserved, adopt, reserve
from distier.plans.common.commands import record_command
from distier.plans.fleet.maintain import BATCH, _upload_alone, expire_warm, write_back_due
from distier.plans.recovery.rescue import rescue
from distier.plans.tier.writeback import compressed, put_object
from tests.integration.world import Open
from tests.servers import poll


def test_concurrent_durable_increments_are_all_counted(open_store: Open) -> None:
    """Each thread reads, adds one, and puts on the condition that no other thread was faster."""
    store = open_store()
    store.put("n", "0", durability="archived")
    threads_n, each = 4, 6
    refused = [0] * threads_n

    def work(me: int) -> None:
        for _ in range(each):
            while True:
                now = store.get("n")
                assert now is not None
                try:
                    store.put("n", str(int(now.text) + 1), if_version=now.version, durability="archived")
                    break
                except Conflict:
                    refused[me] += 1

    threads = [threading.Thread(target=work, args=(i,)) for i in range(threads_n)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    found = store.get("n")
    assert found is not None
    assert int(found.text) == threads_n * each
    assert sum(refused) > 0, "they never met: the test shows nothing"


def test_conditional_writes_wait_for_each_other_but_not_for_a_dead_one(open_store: Open) -> None:
    store = open_store()
    version = str(store.put("a", "x").version)
    shard = store.space.shard("a")

    def plan(write_id: str) -> Plan[Any]:
        return (yield from reserve(shard, "a", version, write_id))

    first = store.run(plan("aa"))
    assert isinstance(first, Reserved)
    assert store.run(plan("bb")) == Refused(Refusal.BUSY, "aa")
    assert isinstance(store.run(plan("aa")), Reserved), "its own position does not block another try"
    # No process continues with `aa`: the next write waits for two seconds and then no longer.
    assert store.put("a", "y", if_version=version, durability="archived").version.ver > first.ver
    with pytest.raises(Conflict):
        store.put("a", "z", if_version=version, durability="archived")


def test_module_key_of_a_foreign_type_does_not_stop_a_rescue(open_store: Open, redis_url: str, server: Any) -> None:
    store = open_store()
    contents = {f"m/{i}": f"text {i}" for i in range(30)}
    for id, text in contents.items():
        store.put(id, text, durability="archived")
    with server.client() as raw:
        raw.flushall()
        raw.set(store.space.shard("m/7").module("m/7"), "of another program")
    report = store.run(rescue(store.space))
    assert list(report.unreadable) == ["m/7"]
    assert report.adopted == 29
    for id, text in contents.items():
        if id != "m/7":
            found = store.get(id)
            assert found is not None
            assert found.text == text
    with server.client() as raw:
        raw.unlink(store.space.shard("m/7").module("m/7"))
    assert store.run(rescue(store.space)).unreadable == {}


def test_foreign_ids_in_the_warm_set_do_not_stop_expiry(open_store: Open, server: Any) -> None:
    store = open_store()
    store.put("a", "text " * 100)
    store.archive_now()
    store.demote("a", to="warm")
    shard = store.space.shard("a")
    with server.client() as raw:
        raw.zadd(shard.warm, {b"\xff%d" % i: 1 for i in range(3 * BATCH)})
        raw.zadd(shard.warm, {"a": 1})
        raw.unlink(shard.frame("a"))
    assert store.run(expire_warm(store.space, shard)) == 1
    placement = store.where("a")
    assert placement is not None
    assert placement.tier == "cold"


def test_lease_of_a_dead_worker_ends_within_the_patience(open_store: Open, server: Any) -> None:
    store = open_store(storage_tiers__cold__timeout="300ms", storage_tiers__cold__archive_after="0s")
    store.put("a", "text")
    shard = store.space.shard("a")
    taken: list[int] = []

    def plan() -> Plan[int]:
        """A worker that dies between its lease and its upload."""
        one = _upload_alone({}, store.space.locate("a"))
        effect = next(one)
        while "SET" not in getattr(effect, "args", ()):
            effect = one.send((yield effect))
        yield effect
        one.close()
        with server.client() as raw:
            taken.append(raw.pttl(shard.write_back_lease("a")))
        return 0

    store.run(plan())
    assert 0 < taken[0] <= 100
    poll(lambda: store.run(write_back_due(store.space, shard)), what="the write-back")
    placement = store.where("a")
    assert placement is not None
    assert placement.clean


def test_reserved_position_does_not_block_a_greater_epoch(open_store: Open) -> None:
    """An old primary continues to count its versions. The chaos scenario `partition` found readers that had lost their
    object for ever.
    """
    store = open_store()
    landed = store.put("a", b"old", durability="archived")
    shard = store.space.shard("a")
    assert isinstance(store.run(iter(reserve(shard, "a", str(landed.version), "f" * 32))), Reserved)
    fields = ("sha256", "0" * 64, "type", "text/plain")

    def adopted(epoch: int, ver: int) -> int:
        found = Adoption("a", epoch, ver, "e" * 32, "content", 1, 3, 60, fields=fields)
        reply = store.run(iter(adopt(shard, landed.version.epoch, [found])))
        assert isinstance(reply, Adopted)
        return reply.adopted

    assert adopted(landed.version.epoch, landed.version.ver + 1) == 0, "what was reserved is not adopted"
    assert adopted(landed.version.epoch + 1, 1) == 1


def leave_by_old_primary(store: Store, id: str, content: bytes) -> None:
    """Do what the worker of an old primary does to a module that this store has cold: it archives a later version, of which
    this server knows nothing, and then sweeps the one that the record names. (The chaos scenario `partition` did it.)"""
    space = store.space
    was = store.run(iter(record_command(space.shard(id), id)))
    assert was is not None and was.clean and was.tier == "cold"
    order, sha256 = was.order._replace(ver=was.order.ver + 1, write_id="e" * 32), hashlib.sha256(content).hexdigest()
    later = replace(was, order=order, size_bytes=len(content), sha256=sha256)
    body = store.run(compressed(space, content))
    store.run(put_object(space, later, content_key(space.namespace, later), body))
    store.run(iter(ArchiveDelete([content_key(space.namespace, was)])))


def reserved(store: Store, id: str, write_id: str) -> Reserved:
    reply = store.run(iter(reserve(store.space.shard(id), id, "", write_id)))
    assert isinstance(reply, Reserved)
    return reply


def test_a_dead_holder_does_not_hide_what_an_old_primary_left(open_store: Open) -> None:
    """The position that it holds prevents an adoption, and the object of the record is gone."""
    store = open_store(deadline="2s", near__enabled=False)
    store.put("a", b"old", durability="archived")
    store.demote("a", to="cold")
    reserved(store, "a", "")
    holder = reserved(store, "a", "f" * 32)
    leave_by_old_primary(store, "a", b"left by the old primary")
    module = store.get("a")
    assert module is not None and module.content == b"left by the old primary"
    landed = store.put("a", b"new", durability="archived")
    assert landed.version.ver > holder.ver


def test_a_reader_waits_for_the_holder_that_prevents_an_adoption(open_store: Open) -> None:
    store, reader = open_store(), open_store(near__enabled=False)
    store.put("a", b"old", durability="archived")
    store.demote("a", to="cold")
    found: list[Any] = []
    put = store._driver.archive.put

    def then_another_reads(key: str, *args: Any, **more: Any) -> None:
        if key.endswith(".xz") and not threads:
            threads.append(threading.Thread(target=lambda: found.append(reader.get("a"))))
            leave_by_old_primary(store, "a", b"left by the old primary")
            threads[0].start()
            verified = reader._driver.counters.snapshot
            poll(lambda: verified().get("recover.verified", 0) >= 2, what="the reader waits")
            assert not found
        put(key, *args, **more)

    threads: list[threading.Thread] = []
    store._driver.archive.put = then_another_reads  # type: ignore[method-assign]
    reserved(store, "a", "")
    store.put("a", b"new", durability="archived")
    threads[0].join()
    assert found[0] is not None and found[0].content == b"new"


@pytest.mark.parametrize("there_was", [True, False])
def test_a_durable_delete_that_finds_nothing_looks_for_a_newer_epoch(
    open_store: Open, tmp_path: Path, there_was: bool
) -> None:
    """On an old primary, "nothing" says only what that server has: a worker may have archived its tombstone there, while the
    module goes on at the new one. (The chaos scenario `partition` found it.)"""
    store = open_store(deadline="2s")
    store.put("other", b"1", durability="archived")
    if there_was:
        store.put("a", b"1", durability="archived")
        store.delete("a")
        store.archive_now()
    assert store.delete("a", durability="archived") is False
    (tmp_path / "cold/t/epochs/0/@00000900-aaaaaaaa-00000000").touch()  # another primary
    with pytest.raises(Recovering):
        store.delete("a", durability="archived")
