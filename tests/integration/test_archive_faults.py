"""The API while the archive is unreachable, slow or wrong. Calls end in time, never return a miss or wrong bytes, and
everything recovers by itself when the fault ends. `faulty_s3.py` makes the faults; Redis is real.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any

import pytest

from distier import Store, connect
from distier.effects import Command
from distier.errors import ArchiveUnavailable, ConfigError, Conflict, Corrupt, DistierError, Full, Unavailable
from distier.plans.fleet.sweep import sweep
from distier.plans.fleet.sweep import sweep as sweep_plan
from distier.plans.put.delete import delete
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.fsck.findings import KINDS
from distier.plans.recovery.rescue import rescue
from distier.plans.recovery.walk import Skipped
from distier.worker import Worker
from tests.deadlines import short_deadline
from tests.integration.faulty_s3 import FaultyS3
from tests.servers import TestServer, poll

DEADLINE_S = 1.0  # of calls that a fault fails; those that must succeed have the time that a busy machine needs
SLACK_S = 10.0  # for a busy machine

TEXT = {f"m/{i}": f"module {i} says something. ".encode() * 40 for i in range(6)}

# Faults between the store and the archive, and the verbs that they are tried with.
OUTAGES: dict[str, Callable[[FaultyS3], AbstractContextManager[None]]] = {
    "refuses connections": lambda s3: s3.refusing(),
    "resets connections": lambda s3: s3.fault("reset"),
    "stalls": lambda s3: s3.fault("stall"),
    "500": lambda s3: s3.fault("500"),
    "503 SlowDown": lambda s3: s3.fault("503"),
    "drops replies": lambda s3: s3.fault("drop-reply"),
    "is behind a login page": lambda s3: s3.fault("login-page"),
    "replies with nothing": lambda s3: s3.fault("empty"),
    "cuts bodies": lambda s3: s3.fault("cut-body", "GET", "LIST"),
}
DAMAGES = {"truncate": Corrupt, "flip": Corrupt}
HARMLESS = ["ignore-conditions", "invert-conditions", "drop-metadata"]


@pytest.fixture(scope="session")
def server(valkey_server: TestServer) -> TestServer:
    """The faults are those of the archive, so one kind of server is enough."""
    return valkey_server


@pytest.fixture
def s3() -> Iterator[FaultyS3]:
    with FaultyS3() as server:
        yield server


@pytest.fixture
def open_store(redis_url: str, s3: FaultyS3) -> Iterator[Callable[..., Store]]:
    stores: list[Store] = []

    def open(**overrides: Any) -> Store:
        settings: dict[str, Any] = {
            "redis__url": redis_url, "namespace": "t", "deadline": "60s", "near__enabled": False,
            "storage_tiers__cold__timeout": "60s", **s3.settings(), **overrides,
        }  # fmt: skip
        stores.append(connect({"counter": "estimate"}, **settings))
        return stores[-1]

    yield open
    for store in stores:
        with suppress(DistierError):
            store.close()


@pytest.fixture
def store(open_store: Callable[..., Store]) -> Store:
    """m/0 and m/1 are cold, m/2 is warm and m/3 is hot, all archived; m/4 (hot) and m/5 (warm) are dirty."""
    store = open_store()
    for id in ("m/0", "m/1", "m/2", "m/3"):
        store.put(id, TEXT[id], content_type="text/plain", meta={"id": id})
    store.archive_now()
    assert all(m.tier == "cold" for m in store.demote_many(["m/0", "m/1"], to="cold"))  # type: ignore[union-attr]
    store.demote("m/2")
    for id in ("m/4", "m/5"):
        store.put(id, TEXT[id])
    store.demote("m/5")
    return store


@contextmanager
def in_time(store: Store) -> Iterator[None]:
    """Calls end at a deadline of `DEADLINE_S`."""
    begin = time.monotonic()
    with short_deadline(store, DEADLINE_S):
        yield
    took = time.monotonic() - begin
    assert took < DEADLINE_S + SLACK_S, f"took {took:.2f} s"


def all_is_well(store: Store) -> None:
    for id, content in TEXT.items():
        module = store.get(id)
        assert module is not None, id
        assert module.content == content, id
    found = store.run(fsck(store.space, checksums=1), deadline_s=60)
    assert not [f for f in found.listed if KINDS[f.kind].level != "note"], found.listed


@pytest.mark.parametrize("name", OUTAGES)
def test_archive_outage_fails_reads_of_cold_in_time_and_loses_nothing(
    store: Store, open_store: Callable[..., Store], s3: FaultyS3, name: str
) -> None:
    # Only for what has to fail: a busy machine may take longer.
    hasty = open_store(storage_tiers__cold__timeout="800ms")
    with OUTAGES[name](s3):
        for call in (lambda: hasty.get("m/0"), lambda: hasty.get_many(["m/0", "m/3"]), lambda: hasty.promote("m/1")):
            with in_time(hasty), pytest.raises(ArchiveUnavailable):
                call()
        for id in ("m/2", "m/3", "m/4", "m/5"):
            assert store.get(id).content == TEXT[id]  # type: ignore[union-attr]
        assert store.exists("m/0")
        assert store.where("m/0").tier == "cold"  # type: ignore[union-attr]
        assert store.get("none") is None  # the records are enough to know that this is a miss
        if name != "cuts bodies":  # PUTs have no body to cut
            with in_time(hasty), pytest.raises(Unavailable):
                hasty.archive_now(deadline_s=DEADLINE_S)
            stats = store.stats()
            assert (stats.dirty_count, stats.count) == (2, 6)
        store.put("m/6", "while it is away")
    assert store.get("m/0").content == TEXT["m/0"]  # type: ignore[union-attr]
    store.archive_now()
    assert store.stats().dirty_count == 0
    all_is_well(store)


@pytest.mark.parametrize("name", DAMAGES)
def test_damaged_object_raises_corrupt_and_never_returns_wrong_bytes(store: Store, s3: FaultyS3, name: Any):
    with s3.fault(name, "GET", match=".xz"):
        for id in ("m/0", "m/1"):
            with pytest.raises(DAMAGES[name], match=id):
                store.get(id)
        assert store.get("m/2").content == TEXT["m/2"]  # type: ignore[union-attr]
    all_is_well(store)


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_faults_of_a_server_do_no_harm(store: Store, s3: FaultyS3, name: Any):
    with s3.fault(name):
        for id, content in TEXT.items():
            assert store.get(id).content == content  # type: ignore[union-attr]
        store.run(put(store.space, Item("m/4", TEXT["m/4"], durability="archived")))
        assert store.archive_now() == 1
        assert all(m.tier == "cold" for m in store.demote_many(TEXT, to="cold"))  # type: ignore[union-attr]
        all_is_well(store)
        assert store.run(sweep_plan(store.space), deadline_s=30) == 0
    assert s3.conditional == 0  # nothing rests on conditional requests, so none are made


def forget_manifest(s3: FaultyS3) -> None:
    for key in [key for key in s3.objects if "/manifest/" in key]:
        del s3.objects[key]


def test_dropped_metadata_loses_descriptions_and_no_bytes(store: Store, s3: FaultyS3, server: TestServer):
    """On a server that drops metadata, the manifest has it, and `sidecar: always` keeps it."""
    store.archive_now()
    forget_manifest(s3)
    with server.client() as raw:
        raw.flushall()
    with s3.fault("drop-metadata"):
        report = store.run(rescue(store.space), deadline_s=60)
        assert (report.adopted, report.unreadable) == (6, {})
        for id, content in TEXT.items():
            assert store.get(id).content == content  # type: ignore[union-attr]
        assert store.get("m/0").meta == {}  # type: ignore[union-attr]


def test_full_cache_refuses_writes_during_an_outage_and_recovers(open_store: Callable[..., Store], s3: FaultyS3):
    store = open_store(storage_tiers__hot__max_size=50, storage_tiers__warm__max_modules=2)
    for i in range(7):
        store.put(f"f/{i}", f"content {i}", tokens=10)
    for name in ("refuses connections", "503 SlowDown", "stalls"):
        with OUTAGES[name](s3):
            if name == "stalls":
                with in_time(store), pytest.raises((Full, Unavailable)):
                    store.put("one too many", "x", tokens=10)
            else:  # with all the time that a busy machine needs for the reply
                with pytest.raises(Full):
                    store.put("one too many", "x", tokens=10)
            for i in range(7):
                assert store.get(f"f/{i}").text == f"content {i}"  # type: ignore[union-attr]
            assert not store.exists("one too many")
    assert store.put("one too many", "x", tokens=10).tier == "hot"
    assert store.stats().count == 8


def test_worker_continues_after_an_outage(store: Store, s3: FaultyS3):
    from distier.worker import Worker

    worker = Worker(store)
    object.__setattr__(store.space.config.storage_tiers.cold, "archive_after", 0)
    with s3.fault("503"):
        assert not worker.run_once()
        assert store.stats().dirty_count == 2
    assert worker.run_once()
    assert store.stats().dirty_count == 0
    all_is_well(store)


# -- durable writes --------------------------------------------------------------------------------------------------


def archived(store: Store, s3: FaultyS3, id: str, version: Any) -> bool:
    return any(f"/{id}/{version.stem}." in f"/{key}" for key in s3.objects)


@pytest.mark.parametrize("name", [*OUTAGES, "slow"])
def test_durable_put_is_acknowledged_only_once_archived(store: Store, s3: FaultyS3, name: str):
    fault = OUTAGES.get(name) or (lambda s3: s3.fault("slow"))
    acknowledged: dict[str, Any] = {}

    def attempt(i: int) -> None:
        id = f"m/{i % 6}"
        content = f"durable {name} {i}"
        try:
            landed = store.run(put(store.space, Item(id, content, durability="archived")))
        except Unavailable:
            return
        assert archived(store, s3, id, landed.version), f"{id} {landed} was acknowledged"
        acknowledged[id] = content

    for i in range(6):
        attempt(i)
    assert len(acknowledged) == 6
    with fault(s3):
        for i in range(6, 9):
            with in_time(store):
                attempt(i)
    for id, content in acknowledged.items():
        found = store.get(id)
        assert found is not None
        newer = found.text.startswith("durable") and found.text != content  # outcome unknown, so allowed
        assert found.text == content or newer
    for i in range(12, 18):
        attempt(i)
    for id, content in acknowledged.items():
        assert store.get(id).text == content  # type: ignore[union-attr]


@pytest.mark.parametrize("verb", ["PUT", "LIST"])
def test_lost_reply_of_a_durable_put_writes_once(store: Store, s3: FaultyS3, verb: str):
    """One reply is lost after the request was applied. boto3 or distier repeats the request, and the write is there
    once.
    """
    with s3.fault("drop-reply", verb, times=1):
        landed = store.run(put(store.space, Item("m/0", "durable", durability="archived")))
    assert archived(store, s3, "m/0", landed.version)
    assert store.get("m/0").text == "durable"  # type: ignore[union-attr]
    assert len([k for k in s3.objects if "/m/0/" in k]) == 2  # the old version and this one
    assert store.run(sweep_plan(store.space), deadline_s=30) == 1


def test_durable_delete_during_an_outage_fails_and_changes_nothing(store: Store, s3: FaultyS3):
    with s3.fault("503"), in_time(store), pytest.raises(ArchiveUnavailable):
        store.run(delete(store.space, "m/3", durability="archived"))
    assert store.get("m/3").content == TEXT["m/3"]  # type: ignore[union-attr]
    assert store.run(delete(store.space, "m/3", durability="archived"))
    assert store.get("m/3") is None
    assert any("/m/3/" in k and k.endswith(".deleted") for k in s3.objects)


def test_refused_durable_put_leaves_the_current_version(store: Store, s3: FaultyS3):
    """Another version is written between the reservation of its position and its application, and the sweep runs while
    its object exists.
    """
    version = store.where("m/0").version  # type: ignore[union-attr]
    plan = put(store.space, Item("m/0", "refused", if_version=version, durability="archived"))

    def run_until_put(plan: Any) -> Any:
        """Perform the plan's effects up to and including the PUT; return the next effect."""
        effect = next(plan)
        while True:
            done = type(effect).__name__ == "ArchivePut"
            result = store._driver.perform(effect, time.monotonic() + 5)
            effect = plan.send(result)
            if done:
                return effect

    def finish(plan: Any, effect: Any) -> Any:
        try:
            while True:
                effect = plan.send(store._driver.perform(effect, time.monotonic() + 5))
        except StopIteration as stop:
            return stop.value

    second = run_until_put(plan)
    store.put("m/0", "wins")
    assert store.demote("m/0", to="cold").tier == "cold"
    store.run(sweep_plan(store.space), deadline_s=30)
    with pytest.raises(Conflict):
        finish(plan, second)
    assert store.get("m/0").text == "wins"  # type: ignore[union-attr]


@pytest.mark.parametrize("fault", ["login-page", "empty", "redirect"])
def test_invalid_listing_is_not_taken_for_an_empty_archive(
    open_store: Callable[..., Store], store: Store, s3: FaultyS3, fault: Any
):
    """Redis has lost all data. Nothing may be reported as a miss, and no shard may count as compared with the archive."""
    store.archive_now()
    keys = set(s3.objects)
    store._driver.run(wipe(store.space))
    with s3.fault(fault, "LIST"):
        for call in (lambda: store.get("m/0"), lambda: store.get_many(["m/0"]), lambda: store.exists("m/0")):
            with in_time(store), pytest.raises((ArchiveUnavailable, ConfigError)):
                call()
        with in_time(store), pytest.raises((ArchiveUnavailable, ConfigError)):
            store.run(rescue(store.space))
        with pytest.raises((ArchiveUnavailable, ConfigError)):
            store._driver.archive.check()
    assert store.get("m/0").content == TEXT["m/0"]  # type: ignore[union-attr]
    assert store.run(rescue(store.space), deadline_s=60).modules == len(TEXT)
    assert keys <= set(s3.objects)
    all_is_well(store)


@pytest.mark.parametrize("fault", ["redirect", "login-page"])
def test_worker_survives_redirects_and_login_pages(open_store: Callable[..., Store], s3: FaultyS3, fault: Any):
    store = open_store(worker__interval="10ms", storage_tiers__cold__archive_after="0s")
    with s3.fault(fault):
        store.put("m/0", TEXT["m/0"])
        with Worker(store) as worker:
            poll(lambda: worker.report.failures >= 2, what="rounds fail")
            assert worker._thread is not None and worker._thread.is_alive()
    with Worker(store) as worker:
        poll(lambda: store.stats().dirty_count == 0, what="it is archived")


def wipe(space: Any) -> Any:
    yield from Command(space.keys.shards[0], ("FLUSHALL",), lambda reply: reply)


def _copied(s3: FaultyS3, id: str, to: str, kind: str) -> None:
    """Copy all objects of a module under another module's name, as `aws s3 cp --recursive` does."""
    for key, found in list(s3.objects.items()):
        if f"/modules/{id}/@" in key and key.endswith(kind):
            s3.objects[key.replace(f"/modules/{id}/", f"/modules/{to}/")] = found


@pytest.mark.parametrize("sidecar", ["auto", "always"])
def test_object_that_names_another_module_is_reported_as_foreign(
    open_store: Callable[..., Store], s3: FaultyS3, sidecar: str
):
    """Copies of `m/0` exist under `copy`, which is no module, and under `m/1`, with a greater version than its own."""
    store = open_store(storage_tiers__cold__sidecar=sidecar)
    for id in ("m/1", "m/0"):
        store.put(id, TEXT[id], durability="archived")
    store.put("gone", b"x", durability="archived")
    store.delete("gone", durability="archived")
    for to in ("copy", "m/1"):
        _copied(s3, "m/0", to, "")
    _copied(s3, "gone", "m/0", ".deleted")
    keys = set(s3.objects)
    found = store.run(fsck(store.space))
    assert not found.count("lost")
    for _ in range(2):
        store._driver.run(wipe(store.space))
        assert store.get("copy") is None and not store.exists("copy")
        assert store.get("m/1").content == TEXT["m/1"]  # type: ignore[union-attr]
        assert store.get("m/0").content == TEXT["m/0"]  # type: ignore[union-attr]
        store._driver.run(wipe(store.space))
        report = store.run(rescue(store.space), deadline_s=60)
        assert report.foreign == ["copy"] and not report.unreadable
        assert store.get("m/1").content == TEXT["m/1"]  # type: ignore[union-attr]
    found = store.run(fsck(store.space, repair=True), deadline_s=60)
    assert {f.id for f in found.listed if f.kind == "foreign-object"} <= {"copy", "m/1", "m/0"}
    assert not found.remaining and keys - set(s3.objects) <= {k for k in keys if "/gone/" in k or "/m/0/" in k}


@pytest.mark.parametrize("fault", ["denied", "500", "cut-body"])
def test_one_unreadable_object_does_not_block_the_others(open_store: Callable[..., Store], s3: FaultyS3, fault: Any):
    """The metadata and the manifest are dropped, so that a rescue has to read each object."""
    store = open_store(storage_tiers__cold__sidecar="never", storage_tiers__cold__timeout="60s")
    ids = [f"n/{i}" for i in range(40)]
    for put_twice in range(2):
        store.put_many([Item(id, f"{id} {put_twice}") for id in ids])
        store.archive_now()
    for found in s3.objects.values():
        found.headers.clear()
    forget_manifest(s3)
    store._driver.run(wipe(store.space))
    with s3.fault(fault, "GET", match="n/7/"):
        report = store.run(rescue(store.space), deadline_s=100)
        assert list(report.unreadable) == ["n/7"] and (report.adopted, report.damaged) == (39, 0)
        assert {id for id in ids if id != "n/7" and store.get(id) is None} == set()
        with in_time(store), pytest.raises((ConfigError, ArchiveUnavailable)):
            store.get("n/7")
        done = store.run(fsck(store.space, checksums=1), deadline_s=100)
        assert {f.id for f in done.listed if f.kind == "unreadable-object"} == {"n/7"}
        worker = Worker(store)
        assert not worker.run_once() and "n/7" in str(worker.report.last_failure)
        asked = s3.gets.total()
        worker.run_once()
        assert s3.gets.total() == asked, "it is not read again in each round"
        skipped = Skipped()
        store.run(sweep(store.space, skipped), deadline_s=100)
        assert list(skipped.why) == ["n/7"]
        assert sum("/modules/" in key for key in s3.objects) == len(ids) + 1, "the others' old versions are swept"
    assert store.run(rescue(store.space), deadline_s=100).unreadable == {}
    assert store.get("n/7").text == "n/7 1"  # type: ignore[union-attr]
    assert not store.run(fsck(store.space, repair=True), deadline_s=100).remaining


def test_one_undeletable_object_does_not_block_the_others(open_store: Callable[..., Store], s3: FaultyS3):
    store = open_store()
    for n in range(3):
        for id in ("n/1", "n/2", "n/3"):
            store.put(id, f"{n}", durability="archived")
    locked = min(key for key in s3.objects if "/n/2/@" in key and key.endswith(".xz"))
    with s3.fault("denied", "DELETE", match=locked.rsplit("/", 1)[1]):
        skipped = Skipped()
        assert store.run(sweep(store.space, skipped), deadline_s=60) == 5
        assert [key in locked for key in skipped.why] == [True] and isinstance(
            next(iter(skipped.why.values())), ConfigError
        )
        done = store.run(fsck(store.space, repair=True), deadline_s=60)
        assert [f.kind for f in done.listed if f.level != "note"] == ["unreadable-object"]
    assert store.run(sweep(store.space), deadline_s=60) == 1


def test_rescue_stops_early_when_the_archive_is_down(open_store: Callable[..., Store], s3: FaultyS3):
    store = open_store(storage_tiers__cold__sidecar="never")
    store.put_many([Item(f"n/{i}", f"{i}") for i in range(40)])
    store.archive_now()
    for found in s3.objects.values():
        found.headers.clear()
    store._driver.run(wipe(store.space))
    with s3.fault("500", "GET"), pytest.raises(ArchiveUnavailable):
        store.run(rescue(store.space), deadline_s=100)
    assert s3.gets.total() < 40
