"""The plans of a node with copies on its own disk, stopped and failing at every effect, as in `test_stopped.py`.

The disk is not reset with the rest of the world, so after a fault it holds copies from runs that were undone. By rule 1 that
makes no difference: its copies are clean, and it serves only the version in the record. With STOPPED_EVERY set,
`placement: both`, a disk that keeps nothing, and the last row are stopped everywhere too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from distier.domain.module import Record
from distier.domain.tokens import token_counter
from distier.effects import Effect, LocalDelete, LocalGet, LocalHas, LocalPut, Peers, PeerSilent
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.maintain import keep_headroom, maintain
from distier.plans.get.many import get_many
from distier.plans.get.one import get
from distier.plans.put.delete import delete
from distier.plans.put.one import put
from distier.plans.recovery.epochs import open_space
from distier.plans.tier.demote import demote
from distier.plans.tier.promote import promote, promote_many
from distier.plans.tier.writeback import write_back
from distier.stores.memory import MemoryArchive
from tests.fakes import World, own_exchange, small_config
from tests.plans import test_stopped as stopped
from tests.plans.test_stopped import FULL, MIXED, Row, content, item
from tests.scripted import PlanRunner

Disk = dict[str, tuple[str, bytes]]


@dataclass
class NodeRunner(PlanRunner):
    disk: Disk = field(default_factory=dict)
    keeps: bool = True

    def perform(self, effect: Effect[Any]) -> Any:
        match effect:
            case LocalGet(record):
                write_id, content = self.disk.get(record.id, ("", b""))
                return content if write_id == record.order.write_id and is_content(record, content) else None
            case LocalPut(record, content):
                assert record.clean, "it would be the only copy"
                assert is_content(record, content)
                if self.keeps:
                    self.disk[record.id] = (record.order.write_id, content)
                return self.keeps
            case LocalHas(id, write_id):
                return self.disk.get(id, ("", b""))[0] == write_id
            case LocalDelete(id):
                return self.disk.pop(id, None) is not None
            case Peers():
                return ()
            case PeerSilent():
                return None
        return super().perform(effect)


def is_content(record: Record, content: bytes) -> bool:
    return hashlib.sha256(content).hexdigest() == record.sha256


@dataclass
class NodeWorld(World):
    disk: Disk = field(default_factory=dict)
    keeps: bool = True

    @staticmethod
    def of(placement: str, *, keeps: bool = True, **overrides: Any) -> NodeWorld:
        config = small_config(storage_tiers__warm__placement=placement, **overrides)
        space = Namespace(config, token_counter("estimate"), False, node="here")
        world = NodeWorld(space, own_exchange(), MemoryArchive(), keeps=keeps)
        world.process("opener").run(open_space(space))
        return world

    def process(self, name: str = "p", **options: Any) -> PlanRunner:
        plain = super().process(name, **options)
        known = {f: getattr(plain, f) for f in ("fault", "on_sleep", "archive_down")}
        return NodeRunner(self.redis, self.archive, name, **known, disk=self.disk, keeps=self.keeps)


def mixed(placement: str, *, keeps: bool = True) -> NodeWorld:
    """As `test_stopped.mixed`, with `warm-clean` on the disk."""
    world = NodeWorld.of(placement, keeps=keeps, storage_tiers__promotion_threshold=3)
    space, shard = world.space, world.shard
    for id in ("hot-dirty", "hot-clean", "warm-dirty", "warm-clean", "cold", "expired", "deleted"):
        world.run(put(space, item(id)), id)
    for id in ("hot-clean", "warm-clean", "cold", "expired"):
        world.run(write_back(space.locate(id)))
    for id, to in [("warm-dirty", "warm"), ("warm-clean", "warm"), ("expired", "warm"), ("cold", "cold")]:
        assert world.run(demote(space, id, to)).moved  # type: ignore[arg-type]
    world.disk.pop("expired", None)
    world.run(delete(space, "deleted"), "deleter")
    world.ask([("DEL", shard.frame("expired"))])
    return world


def full(placement: str, *, keeps: bool = True) -> NodeWorld:
    """Hot is full and half of it is clean; warm is full of dirty versions."""
    world = NodeWorld.of(placement, keeps=keeps)
    for i in range(6):
        world.run(put(world.space, item(f"w{i}", tokens=10)), f"w{i}")
        assert world.run(demote(world.space, f"w{i}", "warm")).moved
    for i in range(5):
        world.run(put(world.space, item(f"h{i}", tokens=20)), f"h{i}")
        if i % 2:
            world.run(write_back(world.space.locate(f"h{i}")))
    return world


def has(tier: str) -> Callable[[Any], bool]:
    return lambda result: result.tier == tier


def rows(placement: str, *, keeps: bool = True) -> Sequence[Row]:
    def make() -> World:
        return mixed(placement, keeps=keeps)

    def crowded() -> World:
        return full(placement, keeps=keeps)

    def promotable(world: World) -> None:
        world.space.process.guess_warm("warm-clean", 1000.0)

    plans: dict[str, Callable[[Namespace], Any]] = {
        f"read {id}": partial(get, id=id) for id in ("warm-dirty", "warm-clean", "cold", "expired")
    }
    here = {"warm": has("warm"), "hot": has("hot")}
    return [
        *(Row(name, make, plan, MIXED) for name, plan in plans.items()),
        Row("read, promoted", make, lambda s: get(s, "warm-clean"), MIXED, before=promotable),
        Row("read many", make, lambda s: get_many(s, [*MIXED, "missing"]), MIXED, check=lambda r: len(r) == 7),
        Row("put over the disk's", make, lambda s: put(s, item("warm-clean", text="2")), MIXED,
            {"warm-clean": content("2")}),
        Row("demote hot, clean", make, lambda s: demote(s, "hot-clean"), MIXED, check=here["warm"]),
        Row("demote hot, dirty", make, lambda s: demote(s, "hot-dirty"), MIXED, check=here["warm"]),
        Row("demote the disk's", make, lambda s: demote(s, "warm-clean", "cold"), MIXED),
        Row("promote the disk's", make, lambda s: promote(s, "warm-clean"), MIXED, check=here["hot"]),
        Row("promote cold", make, lambda s: promote(s, "cold"), MIXED, check=here["hot"]),
        Row("promote many", make, lambda s: promote_many(s, ["warm-dirty", "warm-clean", "cold"]), MIXED),
        Row("write back, warm", make, lambda s: write_back(s.locate("warm-dirty")), MIXED),
        Row("put, evicting", crowded, lambda s: put(s, item("new", tokens=90)), FULL, {"new": content("new")},
            here["hot"]),
        Row("promote, all is full", crowded, lambda s: promote(s, "w3"), FULL, check=here["hot"]),
        Row("head-room", crowded, lambda s: keep_headroom(s, s.keys.shards[0]), FULL),
        Row("maintain", crowded, lambda s: maintain(s, s.keys.shards[0]), FULL,
            before=stopped.idle),
    ]  # fmt: skip


ROWS = [
    pytest.param(row, id=f"{name}: {row.name}")
    for name, found in (("local", rows("local")), ("both", rows("both")), ("a full disk", rows("local", keeps=False)))
    for row in found
]


@pytest.mark.parametrize("row", ROWS)
def test_plan_runs_to_the_end(row: Row) -> None:
    stopped.test_plan_runs_to_the_end(row)


@pytest.mark.parametrize("row", ROWS if stopped.EVERY else ROWS[: len(rows("local")) - 1])
def test_plan_with_a_fault_at_every_effect(row: Row) -> None:
    stopped.test_plan_with_a_fault_at_every_effect(row)


def test_clean_victims_go_to_disk_and_dirty_stay_in_redis() -> None:
    world = full("local")
    world.run(put(world.space, item("new", tokens=90)))
    shard, left = world.shard, {}
    for i in range(5):
        tier, clean = world.ask([("HMGET", shard.module(f"h{i}"), "tier", "clean")])[0]
        left[i] = (tier, clean, f"h{i}" in world.disk)
    for i, (tier, clean, on_disk) in left.items():
        if tier == b"cold":
            assert clean == b"1"
            assert on_disk or i % 2 == 0  # dirty modules without room in warm were archived first
        else:
            assert tier in (b"hot", b"warm")
    assert left[1] == left[3] == (b"cold", b"1", True)
