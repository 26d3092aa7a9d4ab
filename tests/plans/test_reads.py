"""Reading: damaged and missing copies, races, and one fetch for many readers."""

from __future__ import annotations

from typing import Any

import pytest

from distier.domain.module import Module
from distier.errors import ArchiveUnavailable, Corrupt
from distier.plans.fleet.maintain import write_back_due
from distier.plans.fleet.sweep import sweep
from distier.plans.get.many import get_many
from distier.plans.get.one import get as get_plan
from distier.plans.put.delete import delete
from distier.plans.put.one import put
from distier.plans.put.prepare import Item
from distier.plans.recovery.adopt import need_record
from distier.plans.recovery.epochs import recover
from distier.plans.recovery.rescue import rescue
from distier.plans.tier.demote import demote
from distier.plans.tier.promote import promote
from distier.plans.tier.writeback import write_back
from tests.fakes import World
from tests.plans.audit import audit, audit_contents
from tests.plans.test_stopped import MIXED, content, item, mixed


@pytest.fixture(params=["get", "get_many"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with `get` and with `get_many`."""
    if request.param == "get_many":
        monkeypatch.setattr(f"{__name__}.get", get_in_a_batch)


def get(world: World, id: str, name: str = "reader") -> Module | None:
    return world.run(get_plan(world.space, id), name)


def get_in_a_batch(world: World, id: str, name: str = "reader") -> Module | None:
    return world.run(get_many(world.space, ["none", id]), name)[id]


def tier(world: World, id: str) -> str:
    return world.run(need_record(world.space, id)).tier


def gets_of(world: World) -> list[str]:
    """Note the objects that are fetched from now on."""
    fetched: list[str] = []
    real = world.archive.get

    def get(key: str, *, max_bytes: int) -> Any:
        fetched.append(key)
        return real(key, max_bytes=max_bytes)

    world.archive.get = get  # type: ignore[method-assign]
    return fetched


# -- damage ----------------------------------------------------------------------------------------------------------

DAMAGES = {
    "garbage": lambda frame, other: b"garbage",
    "empty": lambda frame, other: b"",
    "cut": lambda frame, other: frame[:-1],
    "one bit": lambda frame, other: frame[:20] + bytes([frame[20] ^ 1]) + frame[21:],
    "of another module": lambda frame, other: other,
}


def damage(world: World, id: str, how: str) -> None:
    frame, other = world.ask(
        [("GET", world.shard.frame(i)) for i in (id, "warm-clean" if id != "warm-clean" else "warm-dirty")]
    )
    world.ask([("SET", world.shard.frame(id), DAMAGES[how](frame, other), "KEEPTTL")])


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_frame_of_clean_module_heals_from_archive(how: str) -> None:
    world = mixed()
    damage(world, "warm-clean", how)
    found = get(world, "warm-clean")
    assert found is not None
    assert (found.content, found.tier) == (content("warm-clean"), "cold")
    again = get(world, "warm-clean")
    assert again is not None
    assert (again.content, again.tier) == (content("warm-clean"), "warm"), "the copy was renewed"
    audit(world)


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_frame_of_dirty_module_is_an_error_and_stays(how: str) -> None:
    """The damaged only copy is neither served nor archived nor dropped."""
    world = mixed()
    damage(world, "warm-dirty", how)
    before = world.ask([("GET", world.shard.frame("warm-dirty"))])
    with pytest.raises(Corrupt, match="warm-dirty"):
        get(world, "warm-dirty")
    with pytest.raises(Corrupt, match="warm-dirty"):
        world.run(write_back(world.space.locate("warm-dirty")))
    with pytest.raises(Corrupt, match="warm-dirty"):
        world.run(promote(world.space, "warm-dirty"))
    assert world.ask([("GET", world.shard.frame("warm-dirty"))]) == before
    assert not [key for key in world.objects() if "/warm-dirty/" in key]
    audit_contents(world, {id: {c} for id, c in MIXED.items() if id != "warm-dirty"})


def test_promote_of_clean_module_with_damaged_frame_heals_it() -> None:
    world = mixed()
    damage(world, "warm-clean", "one bit")
    assert world.run(promote(world.space, "warm-clean")).tier == "hot"
    audit(world)
    audit_contents(world, {"warm-clean": {content("warm-clean")}})


def test_missing_object_is_an_error_not_a_miss() -> None:
    world = mixed()
    world.archive.delete([key for key in world.objects() if "/cold/" in key])
    with pytest.raises(Corrupt, match="has no object"):
        get(world, "cold")
    assert world.ask([("KEYS", "*:lease:*")]) == [[]], "the lease was released"


@pytest.mark.parametrize(
    "change", [lambda b: b[:-4], lambda b: b + b"x", lambda b: b"", lambda b: b[:40] + b"\xff" + b[41:]]
)
def test_damaged_object_is_an_error(change: Any) -> None:
    world = mixed()
    (key,) = [key for key in world.objects() if "/cold/" in key]
    data = world.objects()[key]
    world.archive.delete([key])
    world.archive.put(key, change(data), content_type="", metadata={})
    with pytest.raises(Corrupt):
        get(world, "cold")
    assert tier(world, "cold") == "cold"


def test_unavailable_archive_is_an_error_not_a_miss() -> None:
    world = mixed()
    process = world.process(archive_down=True)
    with pytest.raises(ArchiveUnavailable):
        process.run(get_plan(world.space, "cold"))
    assert process.run(get_plan(world.space, "missing")) is None
    assert world.ask([("KEYS", "*:lease:*")]) == [[]]


@pytest.mark.parametrize("target", ["hot", "warm", "cold"])
def test_empty_content_is_read_from_every_tier(target: str) -> None:
    world = World.make()
    world.run(put(world.space, Item("e", b"", tokens=0)))
    if target != "hot":
        assert world.run(demote(world.space, "e", target)).tier == target  # type: ignore[arg-type]
    found = get(world, "e")
    assert found is not None
    assert (found.content, found.tier) == (b"", target)
    audit(world)


# -- races -----------------------------------------------------------------------------------------------------------


def before_once(world: World, when: Any, act: Any) -> list[bool]:
    """Another client acts, once, just before the first command for which `when` is true."""
    done: list[bool] = []

    def hook(command: Any) -> None:
        if not done and when(command):
            done.append(True)
            act()

    world.redis.before = hook
    return done


def is_get_of(key: str) -> Any:
    return lambda command: command[0] == "GET" and command[1] == key


@pytest.mark.parametrize("tokens", [10, 101], ids=["into hot", "into warm"])
@pytest.mark.parametrize("id", ["warm-dirty", "warm-clean"])
def test_overwrite_between_record_and_frame_returns_a_whole_version(id: str, tokens: int) -> None:
    """The reader gets the old version or the new one, never the record of one with the bytes of the other."""
    world = mixed()
    new = Item(id, content("n", 200), tokens=tokens)  # as long as the old one
    done = before_once(world, is_get_of(world.shard.frame(id)), lambda: world.run(put(world.space, new), "rival"))
    found = get(world, id)
    world.redis.before = None
    assert done
    assert found is not None
    assert found.content == content("n", 200)
    assert found.version == world.run(need_record(world.space, id)).order
    audit(world)


@pytest.mark.parametrize("act", ["promote", "overwrite", "delete"])
def test_move_during_write_back_is_no_loss(act: str) -> None:
    """A module that moves between the two reads of a write-back is not reported as lost."""
    world = mixed()
    acts = {
        "promote": lambda: world.run(promote(world.space, "warm-dirty"), "rival"),
        "overwrite": lambda: world.run(put(world.space, item("warm-dirty", text="2", tokens=101)), "rival"),
        "delete": lambda: world.run(delete(world.space, "warm-dirty"), "rival"),
    }
    done = before_once(world, is_get_of(world.shard.frame("warm-dirty")), acts[act])
    world.run(write_back(world.space.locate("warm-dirty")))
    world.redis.before = None
    assert done
    audit(world)
    expected = {"promote": content("warm-dirty"), "overwrite": content("2"), "delete": None}[act]
    audit_contents(world, {"warm-dirty": {expected}})


def test_delete_during_a_read() -> None:
    world = mixed()
    done = before_once(
        world,
        is_get_of(world.shard.frame("warm-dirty")),
        lambda: world.run(delete(world.space, "warm-dirty"), "x"),
    )
    assert get(world, "warm-dirty") is None
    world.redis.before = None
    assert done


# -- single flight ----------------------------------------------------------------------------------------------------


def test_waiter_reads_the_copy_that_the_lease_holder_left() -> None:
    """There is one GET to the archive: the waiter finds the warm copy, and fetches nothing itself."""
    world = mixed()
    fetched = gets_of(world)
    world.ask([("SET", world.shard.lease("cold"), "holder", "PX", 10_000)])

    def holder_is_done(slept_s: float) -> None:
        world.ask([("DEL", world.shard.lease("cold"))])
        assert get(world, "cold", "holder") is not None

    found = world.process("waiter", on_sleep=holder_is_done).run(get_plan(world.space, "cold"))
    assert found is not None
    assert (found.content, found.tier) == (content("cold"), "warm")
    assert len(fetched) == 1
    audit(world)


def test_waiter_overtakes_a_dead_lease_holder() -> None:
    world = mixed()
    world.ask([("SET", world.shard.lease("cold"), "dead", "PX", 10_000)])
    process = world.process("waiter")
    found = process.run(get_plan(world.space, "cold"))
    assert found is not None
    assert found.content == content("cold")
    assert process.counters["waits.lease"] > 1
    assert world.ask([("EXISTS", world.shard.lease("cold"))]) == [0]


def test_waiter_sees_a_deletion() -> None:
    world = mixed()
    world.ask([("SET", world.shard.lease("cold"), "holder", "PX", 10_000)])
    deleted: list[bool] = []

    def delete_it(slept_s: float) -> None:
        if not deleted:
            deleted.append(world.run(delete(world.space, "cold"), "rival"))

    assert world.process("waiter", on_sleep=delete_it).run(get_plan(world.space, "cold")) is None
    assert deleted == [True]


# -- after a loss: the sweep between the listing and the fetch --------------------------------------------------------


def overwrite_before_the_look(world: World, id: str) -> list[bool]:
    """A newer version is written, and the sweep deletes the listed one, just before it is fetched for its description."""
    done: list[bool] = []
    real = world.archive.get

    def get(key: str, *, max_bytes: int) -> Any:
        if not done and f"/{id}/@" in key:
            done.append(True)
            new = Item(id, content("new", 50), tokens=10, durability="archived")
            world.run(put(world.space, new), "rival")
            world.run(sweep(world.space), "rival")
        return real(key, max_bytes=max_bytes)

    world.archive.get = get  # type: ignore[method-assign]
    return done


def lost(world: World) -> None:
    """Redis loses everything; the archive is complete."""
    world.run(write_back_due(world.space, world.shard, older_than_ms=0))
    world.ask([("FLUSHALL",)])
    world.run(recover(world.space, world.shard))


def test_version_swept_between_listing_and_fetch() -> None:
    world = mixed()
    lost(world)
    done = overwrite_before_the_look(world, "cold")
    found = get(world, "cold")
    assert done
    assert found is not None and found.content == content("new", 50)


def test_version_swept_between_listing_of_a_rescue_and_fetch() -> None:
    world = mixed()
    lost(world)
    world.archive.delete([key for key in world.archive._objects if "/manifest/" in key])  # else no object is read
    done = overwrite_before_the_look(world, "cold")
    report = world.run(rescue(world.space))
    assert done
    assert not report.unreadable
    found = get(world, "cold")
    assert found is not None and found.content == content("new", 50)
