"""`get_range`: any part of any module, and only that part of a large hot one is sent."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from distier import Invalid
from distier.lua import read_range
from distier.plans.get.part import CUT_BYTES
from tests.integration.test_api import with_shards
from tests.integration.world import World

LARGE = bytes(range(256)) * (CUT_BYTES // 128)


@with_shards
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("tier", ["hot", "warm", "cold"])
@pytest.mark.parametrize("content", [b"", b"0123456789", LARGE], ids=["empty", "small", "large"])
async def test_every_range_is_that_of_the_content(world: World, tier: str, content: bytes, near: bool) -> None:
    face = await world.open(near__enabled=near)
    version = (await face.put("a", content, content_type="application/x-own")).version
    if tier != "hot":
        await face.demote("a", to=tier)
    points = [0, 1, 5, 9, 10, len(content) // 2, len(content), len(content) + 1, 2**40]
    for start, length in itertools.product(points, [*points, None]):
        part = await face.get_range("a", start, length)
        assert part.content == content[start : None if length is None else start + length]
        assert (part.id, part.start, part.size_bytes, part.version) == ("a", start, len(content), version)
        assert part.end == start + len(part.content)
        assert part.content_type == "application/x-own"
    assert (await face.get_range("a")).content == content


async def test_a_large_hot_module_is_not_sent_whole(world: World) -> None:
    face = await world.open()
    assert (await face.put("a", LARGE * 8, tokens=1)).tier == "hot"
    await face.get_range("a", 0, 1)  # loads the script

    def sent() -> int:
        return int(world.raw.info("stats")["total_net_output_bytes"])

    before = sent()
    for start in range(0, 100_000, 1000):
        assert (await face.get_range("a", start, 100)).content == (LARGE * 8)[start : start + 100]
    assert sent() - before < len(LARGE * 8) // 4
    await face.put("a", "other")
    assert (await face.get_range("a", 1, 3)).content == b"the"


async def test_parts_count_as_uses(world: World) -> None:
    face = await world.open()
    await face.put("a", LARGE)
    for _ in range(3):
        await face.get_range("a", 0, 10)
    assert face.store._driver.counters.snapshot()["hits.hot"] == 3


async def test_what_is_missing_is_none_and_impossible_ranges_are_refused(world: World) -> None:
    face = await world.open()
    assert await face.get_range("none", 5, 5) is None
    await face.put("a", LARGE)
    await face.delete("a")
    assert await face.get_range("a") is None
    wrong: list[tuple[Any, Any]] = [(-1, None), (0, -1), ("0", 1), (0, 1.5), (True, 1)]
    for start, length in wrong:
        with pytest.raises(Invalid, match="must be a number of bytes"):
            await face.get_range("a", start, length)
    with pytest.raises(Invalid):
        await face.get_range("")


async def test_after_a_loss_the_archives_version_is_read(world: World) -> None:
    """A record of an earlier epoch is compared with the archive first, as for `get`."""
    face = await world.open()
    await face.put("a", LARGE, durability="archived")
    world.raw.flushall()
    other = await world.open()
    assert (await other.get_range("a", 256, 3)).content == b"\x00\x01\x02"
    await other.promote("a")
    shard = world.shard("a")
    assert await other.run(read_range(shard, "a", 0, 2, 1).__iter__()) is not None
    world.raw.hset(shard.module("a"), "seen", 0)
    world.raw.hset(shard.epoch, "verified", 0)
    assert await other.run(read_range(shard, "a", 0, 2, 1).__iter__()) is None
    assert (await other.get_range("a", 256, 3)).content == b"\x00\x01\x02"
