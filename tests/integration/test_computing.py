"""Calls with long computations. They end at their deadline too and name what took the time. What is loaded once is
loaded before the clock starts.
"""

from __future__ import annotations

import random
import time

import pytest
from redis.exceptions import TimeoutError as RedisTimeoutError

from distier.config import load_config
from distier.domain.tokens import O200k, token_counter
from distier.drive.deadline import End
from distier.drive.replies import lost
from distier.effects import Offload, Plan, Sleep
from distier.errors import DeadlineExceeded
from distier.plans.common.namespace import Namespace
from distier.plans.fleet.pacing import paced
from distier.plans.put import prepare
from distier.plans.put.prepare import Item, deadline_s_of
from distier.policy import transform
from distier.worker.pace import Pacer
from tests.deadlines import short_deadline
from tests.integration.world import World
from tests.servers import TestServer

LARGE_BYTES = 12 << 20


@pytest.fixture(scope="session")
def server(valkey_server: TestServer) -> TestServer:
    """The time goes in computations of the client, so one kind of server is enough."""
    return valkey_server


def large() -> bytes:
    """Text for which xz needs most of a second per MiB."""
    source = random.Random(7)
    words = [f"{source.getrandbits(24):x}" for _ in range(20_000)]
    return " ".join(source.choices(words, k=LARGE_BYTES // 6)).encode()[:LARGE_BYTES]


@pytest.mark.parametrize("verb", ["put", "demote"])
async def test_compression_ends_at_the_deadline(world: World, verb: str) -> None:
    """All of it would take some ten seconds."""
    face = await world.open(
        deadline="60s", max_module_bytes=LARGE_BYTES, storage_tiers__hot__max_bytes=4 * LARGE_BYTES,
        storage_tiers__warm__max_bytes=4 * LARGE_BYTES,
    )  # fmt: skip
    content = large()
    if verb == "demote":  # must be stored before the clock starts
        await face.put("large", content, tokens=1)
    begin = time.monotonic()
    with short_deadline(face, 2.0), pytest.raises(DeadlineExceeded, match="xz"):
        if verb == "put":
            await face.put("large", content, tokens=1, durability="archived")
        else:
            await face.demote("large", to="cold")
    assert time.monotonic() - begin < 30


class SlowCounter:
    """Slow to load, or slow to count."""

    name = "slow"

    def __init__(self, load_s: float = 0.0, count_s: float = 0.0) -> None:
        self._load_s, self._count_s = load_s, count_s
        self._is_loaded = False

    def load(self) -> None:
        if not self._is_loaded:
            time.sleep(self._load_s)
        self._is_loaded = True

    def count(self, content: bytes) -> int:
        self.load()
        time.sleep(self._count_s)
        return 1


@pytest.mark.parametrize("verb", ["put", "put_many"])
async def test_counter_is_loaded_before_the_clock_starts(world: World, verb: str) -> None:
    face = await world.open(counter=SlowCounter(load_s=4), deadline="3s")
    if verb == "put":
        assert (await face.put("a", "text")).tier == "hot"
    else:
        assert (await face.put_many([Item("a", "text")]))[0].tier == "hot"


async def test_slow_counter_is_named_in_the_error(world: World) -> None:
    face = await world.open(counter=SlowCounter(count_s=1.5), deadline="1s")
    with pytest.raises(DeadlineExceeded, match="tokens"):
        await face.put("a", "x" * 200_000)


def test_load_loads_the_counter() -> None:
    pytest.importorskip("bpe_openai")
    counter = O200k()
    assert not counter.is_loaded
    counter.load()
    assert counter.is_loaded


class SlowInParts(SlowCounter):
    """Half a minute for all parts of a large content."""

    def __init__(self, count_s: float = 0.25) -> None:
        super().__init__(count_s=count_s)
        self.counted = 0

    def parts(self, content: bytes) -> list[bytes]:
        return [content[start : start + (1 << 20) // 8] for start in range(0, len(content), (1 << 20) // 8)]

    def count(self, content: bytes) -> int:
        self.counted += 1
        return super().count(content)


@pytest.mark.parametrize("verb", ["put", "put_many"])
async def test_counting_ends_at_the_deadline(world: World, verb: str) -> None:
    counter = SlowInParts()
    face = await world.open(counter=counter, deadline="6s", max_module_bytes=LARGE_BYTES)
    with pytest.raises(DeadlineExceeded, match="tokens"):
        if verb == "put":
            await face.put("a", "x" * LARGE_BYTES)
        else:
            raise (await face.put_many([Item("a", "x" * LARGE_BYTES)]))[0]
    assert 1 <= counter.counted <= 25


@pytest.mark.parametrize("verb", ["put", "put_many"])
async def test_default_deadline_is_longer_for_large_contents(
    world: World, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has set a deadline. The counter takes six seconds, and the default for small contents is five."""
    monkeypatch.setattr(prepare, "COUNTING_S_PER_MIB", 10.0)
    counter = SlowInParts(count_s=6 * (1 << 20) / 8 / LARGE_BYTES)
    face = await world.open(counter=counter, deadline=None, max_module_bytes=LARGE_BYTES)
    if verb == "put":
        landed = await face.put("a", "x" * LARGE_BYTES)
    else:
        (landed,) = await face.put_many([Item("a", "x" * LARGE_BYTES)])
    assert (landed.size_bytes, counter.counted) == (LARGE_BYTES, 96)


def test_deadline_that_was_set_holds_for_large_contents_too() -> None:
    large, durable = Item("a", b"x" * (2 << 20)), Item("b", b"x" * (2 << 20), durability="archived")
    space, limited = (
        Namespace(load_config({}, **set), token_counter("estimate"), False) for set in ({}, {"deadline": "5s"})
    )
    assert deadline_s_of(space, [Item("s", b"x"), large]) == 5 + 2 * prepare.COUNTING_S_PER_MIB
    both_s = 2 * (prepare.COUNTING_S_PER_MIB + prepare.PACKING_S_PER_MIB)
    assert deadline_s_of(space, [large, durable]) == 5 + both_s
    assert deadline_s_of(space, [Item("s", b"x")]) is None
    assert deadline_s_of(limited, [large]) is None


async def test_late_batch_reports_what_landed(world: World) -> None:
    """Its first part landed before the count of the second part used up the time."""
    counter = SlowInParts()
    face = await world.open(counter=counter, deadline="4s", max_module_bytes=LARGE_BYTES)
    landed, late = await face.put_many([Item("a", "text", tokens=1), Item("b", "x" * LARGE_BYTES)])
    assert landed.tier == "hot"
    assert isinstance(late, DeadlineExceeded)


@pytest.mark.parametrize("verb", ["put", "put_many"])
async def test_transform_ends_at_the_deadline(world: World, verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    checked: list[str] = []

    def make(text: str) -> str:
        time.sleep(1.5)
        return text[:-1]

    monkeypatch.setitem(transform.TRANSFORMS, "json-whitespace", transform.Transform(make, checked.append, LARGE_BYTES))
    face = await world.open(deadline="1s", transforms={"application/json": "json-whitespace"})
    item = Item("a.json", "[" + " " * 400_000 + "]", tokens=1)
    with pytest.raises(DeadlineExceeded, match="transform"):
        if verb == "put":
            await face.put(item.id, item.content, tokens=1)
        else:
            raise (await face.put_many([item]))[0]
    assert not checked


def test_error_names_the_computation_when_redis_got_little_time() -> None:
    """The cause is not that Redis did not reply in the last milliseconds."""
    end = End(time.monotonic())
    end.begun_s = end - 5
    assert "most of" not in str(lost(RedisTimeoutError("nothing came"), end))
    end.spent = {"the archive": 4.9}
    assert "most of its 5 s went into the archive" in str(lost(RedisTimeoutError("nothing came"), end))


async def test_workers_plan_names_what_took_the_time(world: World) -> None:
    face = await world.open(deadline="1s")

    def plan() -> Plan[None]:
        yield Offload(1 << 20, lambda: time.sleep(1.1), "folding")
        yield Offload(1 << 20, lambda: None, "folding")

    with pytest.raises(DeadlineExceeded, match="folding"):
        await face.run(paced(plan(), Pacer(None, None)))


async def test_deadline_error_names_a_wait(world: World) -> None:
    face = await world.open(deadline="1s")

    def plan(*sleep: Sleep) -> Plan[None]:
        yield from sleep[0]

    with pytest.raises(DeadlineExceeded, match=r"passed while waiting for another process$"):
        await face.run(plan(Sleep(2)))
    with pytest.raises(DeadlineExceeded, match="passed while waiting for this worker's own pace"):
        await face.run(paced(plan(Sleep(2, "waiting for this worker's own pace")), Pacer(None, None)))
