"""The scenarios: pairs and triples of real plans on one or two modules."""

from __future__ import annotations

import time
from typing import Any
from weakref import WeakKeyDictionary

from distier.domain.dictionary import Dictionary, name_of
from distier.domain.module import Module
from distier.effects import Plan, collect
from distier.lua import expire as expire_script
from distier.plans.common.namespace import Namespace
from distier.plans.common.process_state import ProcessState
from distier.plans.fleet.dictionaries import keep_dictionaries, take_into_use
from distier.plans.fleet.maintain import delete_expired as delete_expired_plan
from distier.plans.fleet.maintain import write_back_due
from distier.plans.fleet.packing import pack_all
from distier.plans.fleet.sweep import sweep as sweep_plan
from distier.plans.fleet.sweep import sweep_listed as sweep_listed_plan
from distier.plans.get.many import get_many as read_many
from distier.plans.get.one import get as read
from distier.plans.put.delete import delete as delete_plan
from distier.plans.put.many import put_many as put_many_plan
from distier.plans.put.one import put as put_plan
from distier.plans.put.prepare import Item
from distier.plans.recovery.adopt import newest_record
from distier.plans.recovery.manifest import compact as compact_plan
from distier.plans.recovery.rescue import rescue as rescue_plan
from distier.plans.tier.demote import demote as demote_plan
from distier.plans.tier.promote import pin as pin_plan
from distier.plans.tier.promote import promote as promote_plan

from .explorer import ALL_FAULTS, CRASHES, Call, Scenario
from .judge import Op


def put(id: str, text: str, level: str = "redis") -> Call:
    content = text.encode()

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        return put_plan(space, Item(id, content, "text/plain", tokens=40, durability=level))  # type: ignore[arg-type]

    return Call("put-archived" if level == "archived" else "put", id, plan, level == "archived", content)


def cas(id: str, text: str, level: str = "redis") -> Call:
    """Read the version, then put if the module is still at that version."""
    content = text.encode()

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        record = yield from newest_record(space.locate(id))
        op.compares, op.expected = True, record.order[:2] if record else None
        expected = record.order if record else 0
        item = Item(id, content, "text/plain", tokens=40, durability=level, if_version=expected)  # type: ignore[arg-type]
        return (yield from put_plan(space, item))

    return Call("cas-archived" if level == "archived" else "cas", id, plan, level == "archived", content)


def delete(id: str, level: str = "redis") -> Call:
    durable = level == "archived"
    kind = "delete-archived" if durable else "delete"
    return Call(kind, id, lambda space, _: delete_plan(space, id, durability=level), durable)  # type: ignore[arg-type]


def delete_if(id: str, level: str = "redis") -> Call:
    def plan(space: Namespace, op: Op) -> Plan[Any]:
        record = yield from newest_record(space.locate(id))
        if record is None:
            return False
        op.compares, op.expected = True, record.order[:2]
        return (yield from delete_plan(space, id, record.order, durability=level))  # type: ignore[arg-type]

    durable = level == "archived"
    return Call("delete-if-archived" if durable else "delete-if", id, plan, durable)


def get(id: str) -> Call:
    return Call("get", id, lambda space, _: read(space, id))


_KEPT: WeakKeyDictionary[ProcessState, dict[str, Module]] = WeakKeyDictionary()


def near(id: str) -> Call:
    """Read as a process does whose near cache has its last result as a suspect."""

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        kept = _KEPT.setdefault(space.process, {})
        module = yield from read(space, id, kept.get(id))
        if module is not None:
            kept[id] = module
        return module

    return Call("get", id, plan)


def near_many(id: str) -> Call:
    """The same as a batch of one."""

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        kept = _KEPT.setdefault(space.process, {})
        module = (yield from read_many(space, ["x", id], kept))[id]
        if module is not None:
            kept[id] = module
        return module

    return Call("get", id, plan)


def put_many(id: str, text: str) -> Call:
    content = text.encode()

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        (result,) = yield from put_many_plan(space, [Item(id, content, "text/plain", tokens=40)])
        return collect(result)

    return Call("put", id, plan, False, content)


def get_many(id: str) -> Call:
    """Read as a batch of one."""

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        return (yield from read_many(space, ["x", id, "y"]))[id]

    return Call("get", id, plan)


def demote(id: str, to: str | None = None) -> Call:
    return Call(f"demote-{to or 'step'}", id, lambda space, _: demote_plan(space, id, to))  # type: ignore[arg-type]


def promote(id: str) -> Call:
    return Call("promote", id, lambda space, _: promote_plan(space, id))


def pin(id: str) -> Call:
    return Call("pin", id, lambda space, _: pin_plan(space, id, 1_000_000))


def put_brief(id: str, text: str, level: str = "redis") -> Call:
    """Put a module that has expired when the next call begins."""
    content = text.encode()

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        item = Item(id, content, "text/plain", tokens=40, durability=level, ttl=0.001)  # type: ignore[arg-type]
        landed = yield from put_plan(space, item)
        time.sleep(0.002)
        return landed

    return Call("put-archived" if level == "archived" else "put", id, plan, level == "archived", content, True)


def delete_expired(id: str) -> Call:
    """Delete the module if it has expired."""

    def plan(space: Namespace, op: Op) -> Plan[Any]:
        return (yield from delete_expired_plan(space, space.shard(id), grace_ms=0)) > 0

    return Call("delete-expired", id, plan)


def write_back() -> Call:
    return Call("write-back", "", lambda space, _: write_back_due(space, space.keys.shards[0], older_than_ms=0))


def expire(*ids: str) -> Call:
    return Call("expire", "", lambda space, _: expire_script(space.keys.shards[0], ids).__iter__())


def sweep() -> Call:
    return Call("sweep", "", lambda space, _: sweep_plan(space))


def sweep_listed() -> Call:
    return Call("sweep-listed", "", lambda space, _: sweep_listed_plan(space))


def compact() -> Call:
    return Call("compact", "", lambda space, _: compact_plan(space, space.keys.shards[0], least=2))


def pack() -> Call:
    return Call("pack", "", lambda space, _: pack_all(space, min_age_ms=-(10**15), everything=True))


def rescue() -> Call:
    return Call("rescue", "", lambda space, _: rescue_plan(space))


def long(name: str) -> str:
    """A text that a dictionary shortens."""
    return f"{name} " * 20


FIRST, SECOND = long("a0").encode(), long("b0").encode()


def use_dictionary(data: bytes) -> Call:
    return Call("dictionary", "", lambda space, _: take_into_use(space, Dictionary(name_of(data), data)))


def keep() -> Call:
    """Bring and drop dictionaries. The search of a process begins each time."""

    def plan(space: Namespace, _: Op) -> Plan[Any]:
        space.process.naming.clear()
        return (yield from keep_dictionaries(space, space.keys.shards[0]))

    return Call("dictionaries", "", plan)


ARCHIVED = "archived"
HOT = (put("a", "a0"),)
CLEAN = (put("a", "a0"), write_back())
WARM = (*CLEAN, demote("a", "warm"))
COLD = (*CLEAN, demote("a", "cold"))
DURABLE = (put("a", "a0", ARCHIVED),)
TWO = (*COLD, put("b", "b0", ARCHIVED), demote("b", "cold"))
PACKED = (*TWO, pack())
DICTIONARY = (put("a", long("a0")), write_back(), use_dictionary(FIRST), demote("a", "warm"))

SCENARIOS: tuple[Scenario, ...] = (
    Scenario("put/put", ((put("a", "a1"), get("a")), (put("a", "a2"), get("a"))), HOT),
    Scenario("put/get/write-back", ((put("a", "a1"),), (get("a"), get("a")), (write_back(),)), HOT),
    Scenario("put/write-back", ((put("a", "a1"), put("a", "a2")), (write_back(), write_back()), (get("a"),))),
    Scenario("demote/put", ((demote("a", "warm"),), (put("a", "a1"), get("a"))), HOT),
    Scenario("demote/write-back/expire", ((demote("a", "warm"), get("a")), (write_back(),), (expire("a"), get("a"))), HOT),
    Scenario("demote-cold/put", ((demote("a", "cold"), get("a")), (put("a", "a1"), get("a"))), HOT),
    Scenario("get-cold/put", ((get("a"),), (put("a", "a1"), get("a"))), COLD),
    Scenario("get-cold/get-cold", ((get("a"), get("a")), (get("a"),), (demote("a", "cold"),)), COLD),
    Scenario("get-cold/delete", ((get("a"), get("a")), (delete("a"), get("a")), (write_back(),)), COLD),
    Scenario("get-warm/put/expire", ((get("a"),), (put("a", "a1"),), (expire("a"), get("a"))), WARM),
    Scenario("many/get-warm/put", ((get_many("a"), get_many("a")), (put_many("a", "a1"),), (expire("a"), get("a"))), WARM),
    Scenario("many/get-cold/demote", ((get_many("a"), get("a")), (demote("a"), put_many("a", "a1")), (write_back(),)), COLD),
    Scenario("many/put/put", ((put_many("a", "a1"), get_many("a")), (put("a", "a2"), delete("a")), (get_many("a"),)), HOT),
    Scenario("get-warm/put/demote", ((get("a"), get("a")), (put("a", "a1"), demote("a", "warm")), (get("a"),)), WARM),
    Scenario("two/drop", ((get("b"), get("a")), (get("b"), put("a", "a1"), demote("a", "warm"))),
             (*CLEAN, put("b", "b0"), write_back(), demote("b", "cold"), put("a", "a2"), demote("a", "warm")), warm_modules=1),
    Scenario("ranked/drop", ((get("b"), get("a"), get("b")), (get("b"), put("a", "a1"), demote("a", "warm"))),
             (*CLEAN, put("b", "b0"), write_back(), demote("b", "cold"), put("a", "a2"), demote("a", "warm")), warm_modules=1,
             eviction="gdsf"),
    Scenario("ranked/promote/delete", ((promote("a"), get("b")), (put("b", "b1"), delete("a")), (write_back(), expire("a"))),
             (*WARM, put("b", "b0")), hot_tokens=3, eviction="s3fifo"),
    Scenario("near/put/demote", ((near("a"), near("a"), near("a")), (put("a", "a1"), demote("a")), (write_back(), delete("a"))),
             CLEAN),
    Scenario("near/many/put", ((near_many("a"), near_many("a"), near_many("a")), (put("a", "a1 long"), demote("a")),
             (expire("a"),)), WARM),
    Scenario("near/epoch", ((near("a"), get("b"), near("a")), (put("a", "a1", ARCHIVED),), (near("a"), near("a"))), DURABLE,
             ("promote", "loss", "restart", "replicate"), 2),
    Scenario("near/again", ((put("a", "a1"),), (near("a"), get("b"), near("a"))), (), ("lost", "flush"), 2),
    Scenario("promote/demote", ((promote("a"), get("a")), (demote("a"), demote("a")), (write_back(),)), WARM),
    Scenario("promote/put", ((promote("a"), get("a")), (put("a", "a1"), get("a"))), COLD),
    Scenario("delete/write-back", ((delete("a"), get("a")), (write_back(), write_back()), (get("a"),)), HOT),
    Scenario("delete/put/write-back", ((delete("a"), get("a")), (put("a", "a1"), get("a")), (write_back(),)), CLEAN),
    Scenario("delete/put-archived", ((delete("a"), get("a")), (put("a", "a1", ARCHIVED), get("a")), (write_back(),)), CLEAN),
    Scenario("delete-archived/put", ((delete("a", ARCHIVED), get("a")), (put("a", "a1"), get("a")), (write_back(),)), HOT),
    Scenario("delete-archived/put-archived", ((delete("a", ARCHIVED), get("a")), (put("a", "a1", ARCHIVED),), (sweep(),)),
             DURABLE),
    Scenario("put-archived/put-archived", ((put("a", "a1", ARCHIVED), get("a")), (put("a", "a2", ARCHIVED), get("a")))),
    Scenario("put-archived/put", ((put("a", "a1", ARCHIVED), get("a")), (put("a", "a2"), get("a")), (write_back(),)), HOT),
    Scenario("put-archived/claim/claim", ((put("a", "a1", ARCHIVED), get("a")), (get("a"), put("a", "a2")), (get("a"),)),
             DURABLE, ("failover", "promote", "loss", "flush", "restart", "replicate", "kill", "late"), 4),
    Scenario("sweep/put-archived", ((sweep(), sweep()), (put("a", "a1", ARCHIVED),), (get("a"), get("a"))), COLD),
    Scenario("sweep/write-back", ((sweep(),), (put("a", "a1"), write_back()), (get("a"), demote("a", "cold"))), CLEAN),
    Scenario("cas/cas", ((cas("a", "a1"), get("a")), (cas("a", "a2"), get("a"))), HOT),
    Scenario("cas-archived/cas-archived", ((cas("a", "a1", ARCHIVED), get("a")), (cas("a", "a2", ARCHIVED),), (sweep(),)),
             DURABLE),
    Scenario("cas-archived/put/sweep", ((cas("a", "a1", ARCHIVED), get("a")), (put("a", "a2"),), (sweep(),)), DURABLE),
    Scenario("delete-if-archived/put-archived", ((delete_if("a", ARCHIVED),), (put("a", "a1", ARCHIVED), get("a"))), DURABLE),
    Scenario("rescue/put", ((rescue(), get("a")), (put("a", "a1"), get("a")), (get("a"),)), CLEAN, faults_max=4),
    Scenario("rescue/put-archived", ((rescue(), get("a")), (put("a", "a1", ARCHIVED), get("a"))), DURABLE, faults_max=4),
    Scenario("cas-archived/rescue", ((cas("a", "a1", ARCHIVED), get("a")), (rescue(), sweep()), (get("a"),)), DURABLE,
             ("loss", "restart", "kill", "lost", "late")),
    Scenario("cas-archived/put/rescue", ((cas("a", "a1", ARCHIVED),), (rescue(), get("a")), (put("a", "a2"), get("a"))),
             DURABLE, ("kill", "lost", "failover", "replicate")),
    Scenario("put-archived/old-primary", ((put("a", "a1", ARCHIVED),), (get("a"), get("a"))),
             DURABLE, ("replicate", "failover"), 2),
    Scenario("sweep/put-archived/old-primary", ((put("a", "a1"), write_back(), sweep()), (put("a", "a2", ARCHIVED), get("a")),
             (get("a"), get("a"))), COLD, ("kill",), 1, first="failover", unaware=(0,)),
    Scenario("delete-archived/nothing/old-primary", ((delete("a"), write_back(), delete("a", ARCHIVED)), (get("a"), get("a"))),
             COLD, ("kill",), 1, first="failover", unaware=(0,)),
    Scenario("claim/claim/loss", ((get("a"), get("a")), (put("a", "a1", ARCHIVED),)), (), ("loss",), 1, first="loss"),
    Scenario("claim/claim/put-archived", ((get("a"),), (get("a"),)), DURABLE, ("kill", "lost"), 1, first="restart",
             last=(put("a", "a1", ARCHIVED),)),
    Scenario("claim/claim/twice", ((get("a"),), (put("a", "a1", ARCHIVED), get("a"))), (), ("loss", "restart"), 2),
    Scenario("adopt/put", ((get("a"), put("a", "a1")), (get("a"), get("a"))), COLD,
             ("loss", "flush", "restart", "promote", "replicate", "kill", "lost"), 4),
    Scenario("adopt/delete", ((get("a"), delete("a")), (get("a"), get("a")), (write_back(),)), COLD,
             ("loss", "flush", "restart", "promote", "replicate", "kill", "lost"), 4),
    Scenario("two/evict", ((put("b", "b1"), put("c", "c1")), (get("a"), put("a", "a1")), (write_back(), get("b"))), CLEAN,
             warm_modules=1),
    Scenario("two/promote", ((promote("a"), get("b")), (put("b", "b1"), get("a"))), (*COLD, put("b", "b0")), hot_tokens=50),
    Scenario("evict/expire", ((put("b", "b1"), get("a")), (put("a", "a1"), expire("a", "b"))), (*WARM, put("b", "b0")),
             CRASHES, hot_tokens=50, warm_modules=1),
    Scenario("delete/put-archived/replica", ((delete("a"), put("a", "a1", ARCHIVED)), (write_back(), get("a"))), CLEAN,
             ("replicate", "promote"), 2),
    Scenario("cas-archived/old-primary", ((cas("a", "a1", ARCHIVED),), (put("a", "a2"),), (get("a"), get("a"))), DURABLE,
             ("failover",), 1),
    Scenario("put/again/write-back", ((put("a", "a1"), get("a")), (write_back(),)), (), ("lost", "flush"), 2),
    Scenario("claim/claim/flush", ((get("a"),), (put("a", "a1", ARCHIVED), get("a")), (get("a"), put("a", "a2"))), (),
             ("flush",), 1, first="restart"),
    Scenario("put-archived/cas", ((put("a", "a1", ARCHIVED), get("a")), (cas("a", "a2"), get("a"))), DURABLE, CRASHES),
    Scenario("put-archived/cas/delete", ((put("a", "a1", ARCHIVED), get("a")), (cas("a", "a2"), get("a")), (delete("a"),)),
             DURABLE, CRASHES),
    Scenario("put-archived/epoch", ((put("a", "a1", ARCHIVED), get("a")), (cas("a", "a2", ARCHIVED), get("a")), (get("a"),)),
             DURABLE, ("restart", "promote", "loss", "lost", "late"), 2),
    Scenario("delete-archived/twice", ((delete("a", ARCHIVED), get("a")), (delete("a", ARCHIVED),)), DURABLE, CRASHES),
    Scenario("delete-archived/delete", ((delete("a", ARCHIVED), get("a")), (delete("a"), put("a", "a1"))), DURABLE, CRASHES),
    Scenario("delete-archived/epoch", ((delete("a", ARCHIVED), get("a")), (cas("a", "a2", ARCHIVED), get("a"))), DURABLE,
             ("restart", "promote", "loss", "lost", "late"), 2),
    Scenario("verbs/flush", ((pin("a"), get("a")), (promote("a"), demote("a"), get_many("a")), (delete("a", ARCHIVED),)),
             DURABLE, ("flush",), 2),
    Scenario("together/flush", ((get("a"), get_many("a")), (rescue(), pin("a")), (get("a"), promote("a"))), DURABLE,
             ("flush",), 2, together=True),
    Scenario("together/restart", ((get("a"), get_many("a")), (rescue(),), (put("a", "a1", ARCHIVED), get("a"))), DURABLE,
             ("promote", "replicate", "restart", "loss"), 3, together=True),
    Scenario("sidecar/rescue", ((rescue(), get("a")), (put("a", "a1", ARCHIVED),), (sweep(),)), DURABLE, keeps_metadata=False),
    Scenario("manifest/compact/sweep", ((compact(), compact()), (sweep_listed(), sweep_listed()),
             (put("a", "a1", ARCHIVED), put("a", "a2", ARCHIVED), get("a"))), (*DURABLE, put("a", "a9", ARCHIVED))),
    Scenario("manifest/write-back/compact", ((put("a", "a1"), write_back()), (compact(), sweep_listed()),
             (compact(), get("a"))), (*DURABLE, put("b", "b0", ARCHIVED))),
    Scenario("manifest/sweep/sweep", ((sweep(),), (sweep_listed(), compact()),
             (put("a", "a1", ARCHIVED), delete("a", ARCHIVED))), (*DURABLE, put("a", "a9", ARCHIVED))),
    Scenario("manifest/rescue", ((rescue(), get("a")), (compact(), sweep_listed()), (put("a", "a1", ARCHIVED), get("a"))),
             (*DURABLE, put("a", "a9", ARCHIVED)), faults_max=4),
    Scenario("packs/get", ((pack(),), (get("a"), demote("a", "cold"), get("a")), (get("b"), put("a", "a1", ARCHIVED))), TWO),
    Scenario("packs/sweep", ((pack(), pack()), (sweep(), sweep_listed()), (put("a", "a1", ARCHIVED), get("b"))), PACKED),
    Scenario("packs/rivals", ((pack(), pack()), (pack(), sweep_listed()), (put("a", "a1", ARCHIVED), delete("b", ARCHIVED))),
             TWO),
    Scenario("packs/replace", ((pack(), get("b")), (pack(), sweep()), (get("b"), put("a", "a1", ARCHIVED), get("a"))), PACKED),
    Scenario("packs/rescue", ((rescue(), get("a")), (pack(), sweep_listed()), (put("a", "a1", ARCHIVED), get("b"))), TWO,
             faults_max=4),
    Scenario("packs/unapplied", ((put("a", "a1", ARCHIVED),), (pack(), pack()), (get("a"), get("b"))), PACKED, CRASHES),
    Scenario("packs/rescue-alone", ((rescue(), get("a")), (pack(),)), TWO, (), 0, first="loss"),
    Scenario("packs/adopt", ((get("a"), get("b")), (pack(), get("a")), (get("b"), put("b", "b1", ARCHIVED))), PACKED,
             ("loss", "flush", "restart", "promote", "replicate", "kill", "lost"), 4),
    Scenario("ttl/put", ((delete_expired("a"), get("a"), delete_expired("a")), (put("a", "a1"), get("a")), (cas("a", "a2"),)),
             (put_brief("a", "a0"),)),
    Scenario("ttl/write-back", ((delete_expired("a"), get("a")), (write_back(), get("a")), (put_many("a", "a1"), near("a"))),
             (put_brief("a", "a0"),)),
    Scenario("ttl/rescue", ((delete_expired("a"), put("a", "a1", ARCHIVED)), (rescue(), get("a")), (sweep(), get("a"))),
             (put_brief("a", "a0", ARCHIVED),), faults_max=4),
    Scenario("ttl/adopt", ((get("a"), delete_expired("a")), (get("a"), cas("a", "a1", ARCHIVED)), (write_back(),)),
             (put_brief("a", "a0"), write_back()), ("loss", "flush", "restart", "promote", "replicate", "kill", "lost"), 4),
    Scenario("dictionary/replace", ((use_dictionary(SECOND), keep()), (demote("a", "cold"), get("a"), get("a")),
             (promote("a"), demote("a"), keep())), DICTIONARY, CRASHES),
    Scenario("dictionary/put", ((use_dictionary(SECOND), use_dictionary(FIRST), keep()), (put("a", long("a1")), demote("a")),
             (write_back(), promote("a"), demote("a", "warm"), get("a"))), DICTIONARY, CRASHES),
    Scenario("dictionary/loss", ((get("a"), get("a")), (use_dictionary(SECOND), promote("a"), demote("a")), (rescue(),)),
             DICTIONARY, ("loss", "flush", "restart", "kill", "lost"), 3),
)  # fmt: skip
BY_NAME = {s.name: s for s in SCENARIOS}
assert len(BY_NAME) == len(SCENARIOS)
__all__ = ["ALL_FAULTS", "BY_NAME", "SCENARIOS"]
