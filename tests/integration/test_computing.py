"""Calls that compute for long: they end at their deadline too, and say what took the time. What is loaded once is loaded before
the clock starts."""

from __future__ import annotations

import random
import time

import pytest

from distier.domain.tokens import O200k
from distier.errors import DeadlineExceeded
from distier.plans.write import Item
from tests.integration.world import World

LARGE_BYTES = 12 << 20


def large() -> bytes:
    """Text that xz needs most of a second a MiB for."""
    source = random.Random(7)
    words = [f"{source.getrandbits(24):x}" for _ in range(20_000)]
    return " ".join(source.choices(words, k=LARGE_BYTES // 6)).encode()[:LARGE_BYTES]


@pytest.mark.parametrize("verb", ["put", "demote"])
async def test_compressing_ends_with_the_call(world: World, verb: str) -> None:
    """All of it takes some ten seconds."""
    face = await world.open(
        deadline="1s" if verb == "put" else "2s", max_module_bytes=LARGE_BYTES, storage_tiers__hot__max_bytes=4 * LARGE_BYTES,
        storage_tiers__warm__max_bytes=4 * LARGE_BYTES,
    )  # fmt: skip
    content = large()
    if verb == "demote":  # has to be read before
        await face.put("large", content, tokens=1)
    begin = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="xz"):
        if verb == "put":
            await face.put("large", content, tokens=1, durability="archived")
        else:
            await face.demote("large", to="cold")
    assert time.monotonic() - begin < 30


class SlowCounter:
    """Slow to load, or to count."""

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
async def test_the_counter_is_loaded_before_the_clock_starts(world: World, verb: str) -> None:
    face = await world.open(counter=SlowCounter(load_s=1.5), deadline="1s")
    if verb == "put":
        assert (await face.put("a", "text")).tier == "hot"
    else:
        assert (await face.put_many([Item("a", "text")]))[0].tier == "hot"


async def test_a_slow_counter_is_named(world: World) -> None:
    face = await world.open(counter=SlowCounter(count_s=1.5), deadline="1s")
    with pytest.raises(DeadlineExceeded, match="tokens"):
        await face.put("a", "x" * 200_000)


def test_loading_loads() -> None:
    pytest.importorskip("bpe_openai")
    counter = O200k()
    assert "_count" not in vars(counter)
    counter.load()
    assert "_count" in vars(counter)
