"""The promises of the public API, tested once for `Store` and `AsyncStore`, on Valkey and on Debian's Redis.

Each test is one scenario over `world.open()`; see `world.py`. Faults (servers that are down, full or stalled) are in
`test_faults.py`.
"""

from __future__ import annotations

import hashlib
import lzma
import time
from typing import Any

import pytest

from distier import Event, Item
from distier.errors import Conflict, Invalid, NotFound
from distier.plans.fleet.sweep import sweep
from distier.plans.put.one import put_prepared
from distier.plans.put.prepare import prepare
from tests.integration.world import World, until

ODD_IDS = [
    "plain", "a/b/c", "a//b", "/lead", "trail/", "..", "a/../b", ".", "sp ace", "per%cent", "{tag}", "star*?[x]",
    "ünï/cödé", "日本語", "new\nline", "@at/@0001", "quote'\"", "back\\slash", "wb/looks-like-a-lease", "x" * 256,
]  # fmt: skip
TEXT = "Grüße, 世界 🌍\r\n\tand\x00a NUL\n" * 50
BINARY = bytes(range(256)) * 20
with_shards = pytest.mark.parametrize("shards", [1, 4], indirect=True)


def text_of(n_bytes: int, seed: str = "x") -> bytes:
    """Text that compresses about as well as prose, different for each seed."""
    words = " ".join(hashlib.sha256(f"{seed}{i}".encode()).hexdigest()[:5] for i in range(n_bytes // 6 + 1))
    return words.encode()[:n_bytes]


# -- put and get ---------------------------------------------------------------------------------------------------


@with_shards
@pytest.mark.parametrize(
    ("content", "content_type"),
    [(TEXT, "text/markdown"), (BINARY, "application/octet-stream"), ("", None), (b"", None), (bytearray(b"ab"), None)],
    ids=["text", "binary", "empty text", "empty bytes", "bytearray"],
)
async def test_get_returns_exact_bytes_from_every_tier(world: World, content: Any, content_type: str | None):
    face = await world.open()
    wanted = content.encode() if isinstance(content, str) else bytes(content)
    landed = await face.put("docs/a", content, content_type=content_type)
    assert (landed.tier, landed.size_bytes, landed.replayed, landed.reason) == ("hot", len(wanted), False, None)
    for tier in ("hot", "warm", "cold"):
        if tier != "hot":
            assert (await face.demote("docs/a", to=tier)).tier == tier
        module = await face.get("docs/a")
        assert (module.content, module.tier, module.version) == (wanted, tier, landed.version)
        assert module.sha256 == hashlib.sha256(wanted).hexdigest()
        assert bytes(module) == wanted


async def test_archive_object_is_complete_and_readable_by_xz(world: World):
    face = await world.open()
    await face.put("docs/a.md", TEXT)
    assert await face.archive_now() == 1
    placed = await face.where("docs/a.md")
    assert placed.clean
    packed = (world.archive / placed.archived_key).read_bytes()
    assert lzma.decompress(packed, format=lzma.FORMAT_XZ) == TEXT.encode()
    assert placed.archived_bytes == len(packed)
    assert placed.archived_key.endswith(".md.xz")


async def test_put_of_maximum_size_succeeds_and_one_byte_more_is_refused(world: World):
    face = await world.open(max_module_bytes=100_000)
    content = text_of(100_000)
    await face.put("a", content)
    assert (await face.get("a")).content == content
    with pytest.raises(Invalid, match="max_module_bytes"):
        await face.put("b", content + b"!")
    assert not await face.exists("b")


@pytest.mark.parametrize("bad", ["", "x" * 257, "é" * 129, "\ud800", 7, None, b"a"], ids=repr)
async def test_every_call_rejects_invalid_ids(world: World, bad: Any):
    face = await world.open()
    calls = (face.put(bad, "x"), face.get(bad), face.delete(bad), face.exists(bad), face.where(bad),
             face.promote(bad), face.demote(bad), face.pin(bad, 1), face.unpin(bad), face.get_many([bad]),
             face.promote_many([bad]), face.demote_many([bad]))  # fmt: skip
    for call in calls:
        with pytest.raises(Invalid):
            await call
    assert isinstance((await face.put_many([Item(bad, "x")]))[0], Invalid)


async def test_put_many_rejects_arguments_that_are_not_items(world: World):
    face = await world.open()
    for bad in ([("a", "b")], ["a"], "a", {"a": "b"}, [Item("a", "b"), None]):
        with pytest.raises(Invalid, match=r"takes one distier\.Item\(id, content"):
            await face.put_many(bad)
    assert not await face.exists("a")


@pytest.mark.parametrize(
    "options",
    [
        {"content": 7}, {"content": None}, {"content": "\udc00"}, {"keywords": "one"}, {"keywords": [1]},
        {"keywords": [""]}, {"meta": {"a": {1}}}, {"meta": {1: "a"}}, {"meta": {"a": float("nan")}}, {"meta": []},
        {"tokens": -1}, {"tokens": True}, {"tokens": 1.5}, {"content_type": "no type"}, {"if_version": 1},
        {"if_version": "x"}, {"if_version": -1}, {"if_version": True},
    ],
    ids=repr,
)  # fmt: skip
async def test_invalid_arguments_are_rejected_and_write_nothing(world: World, options: dict[str, Any]):
    face = await world.open()
    with pytest.raises(Invalid):
        await face.put("a", **({"content": "x"} | options))
    assert not await face.exists("a")


async def test_content_type_is_guessed_from_id_unless_given(world: World):
    face = await world.open()
    guesses = {"a.md": "text/markdown", "a.py": "text/x-python", "a.json": "application/json"}
    for id, content_type in guesses.items():
        await face.put(id, "{}")
        assert (await face.get(id)).content_type.startswith(content_type), id
    await face.put("a.md", "x", content_type="text/x-mine")
    assert (await face.where("a.md")).content_type == "text/x-mine"
    await face.put("picture", b"\x89PNG\r\n\x1a\n" + bytes(50))
    assert not (await face.get("picture")).content_type.startswith("text/")


async def test_keywords_and_meta_round_trip(world: World):
    face = await world.open()
    keywords, meta = ["pdf", "forms, and more", "ü"], {"a": [1, 2.5, None], "b": {"c": "d"}, "ü": True}
    await face.put("a", "x", keywords=keywords, meta=meta)
    for tier in ("hot", "warm", "cold"):
        if tier != "hot":
            await face.demote("a", to=tier)
        module = await face.get("a")
        assert (list(module.keywords), module.meta) == (keywords, meta)
    await face.put("a", "y")  # a put replaces the whole version
    module = await face.get("a")
    assert (module.keywords, module.meta) == ((), {})


async def test_tokens_are_counted_or_given_and_the_record_says_which(world: World):
    face = await world.open()
    counted = await face.put("a", "one two three")
    given = await face.put("b", "one two three", tokens=77)
    assert (await face.get("a")).counter == "estimate"
    assert 3 <= counted.tokens <= 5
    module = await face.get("b")
    assert (given.tokens, module.tokens, module.counter) == (77, 77, "given")


# -- versions ------------------------------------------------------------------------------------------------------


async def test_if_version_is_a_compare_and_set(world: World):
    face = await world.open()
    first = await face.put("a", "1", if_version=0)
    with pytest.raises(Conflict, match="'a'"):
        await face.put("a", "2", if_version=0)
    second = await face.put("a", "2", if_version=first.version)
    with pytest.raises(Conflict, match=str(second.version)):
        await face.put("a", "3", if_version=str(first.version))
    third = await face.put("a", "3", if_version=str(second.version))
    assert first.version < second.version < third.version
    assert (await face.get("a")).text == "3"
    with pytest.raises(Conflict):
        await face.delete("a", if_version=second.version)
    assert await face.delete("a", if_version=third.version)
    with pytest.raises(Conflict):
        await face.put("a", "4", if_version=third.version)
    await face.put("a", "5", if_version=0)
    with pytest.raises(Conflict):
        await face.put("none", "x", if_version="1-1")


async def test_retried_put_is_applied_once(world: World):
    face = await world.open()
    prepared = await face.run(prepare(face.space, Item("a", "x")))
    first = await face.run(put_prepared(face.space, prepared))
    again = await face.run(put_prepared(face.space, prepared))
    assert (again.version, again.tier, again.replayed) == (first.version, "hot", True)
    await face.put("a", "newer")
    late = await face.run(put_prepared(face.space, prepared))
    assert (late.version, late.replayed) == (first.version, True)
    assert (await face.get("a")).text == "newer"


@with_shards
@pytest.mark.parametrize("state", ["hot", "warm", "cold"])
async def test_put_after_delete_gets_a_greater_version(world: World, state: str):
    face = await world.open()
    first = await face.put("a", "1")
    if state != "hot":
        await face.demote("a", to=state)
    assert await face.delete("a")
    assert not await face.delete("a")
    assert await face.get("a") is None
    assert not await face.exists("a")
    assert await face.where("a") is None
    assert await face.list() == []
    with pytest.raises(NotFound):
        await face.promote("a")
    await face.archive_now()  # the tombstone is archived, and its record is dropped
    assert world.usage() == {} == await face.recount()
    assert any(name.endswith(".deleted") for name in world.objects())
    again = await face.put("a", "2")
    assert again.version > first.version
    assert (await face.get("a")).text == "2"


# -- looking -------------------------------------------------------------------------------------------------------


@with_shards
async def test_exists_where_list_and_stats_do_not_count_as_uses(world: World):
    face = await world.open()
    for id, tier in (("h", None), ("w", "warm"), ("c", "cold")):
        await face.put(id, text_of(500))
        if tier:
            await face.demote(id, to=tier)
    before = world.scores()
    assert [(await face.where(id)).tier for id in "hwc"] == ["hot", "warm", "cold"]
    assert [await face.exists(id) for id in "hwcx"] == [True, True, True, False]
    assert sorted(await face.list()) == ["c", "h", "w"]
    await face.stats()
    other = await world.open()
    await other.exists("h")
    await face.close()  # sends the uses that were gathered
    assert world.scores() == before


async def test_where_describes_a_module(world: World):
    face = await world.open()
    content = text_of(3000)
    landed = await face.put("a", content, tokens=9)
    hot = await face.where("a")
    assert (hot.tier, hot.version, hot.tokens, hot.size_bytes, hot.clean) == ("hot", landed.version, 9, 3000, False)
    assert (hot.stored_bytes, hot.ratio, hot.archived_key, hot.ttl_ms) == (3000, None, None, None)
    assert hot.dirty_since_ms is not None
    assert abs(hot.dirty_since_ms - time.time() * 1000) < 60_000
    assert hot.last_use_ms is not None
    await face.demote("a")
    warm = await face.where("a")
    assert (warm.tier, warm.clean, warm.ttl_ms) == ("warm", False, None)
    assert warm.ratio is not None
    assert warm.stored_bytes == world.raw.strlen(world.shard("a").frame("a")) < 3000
    await face.archive_now()
    clean = await face.where("a")
    assert clean.clean
    assert clean.dirty_since_ms is None
    assert 86_000_000 < clean.ttl_ms <= 86_400_000
    await face.demote("a")
    cold = await face.where("a")
    assert (cold.tier, cold.stored_bytes) == ("cold", (world.archive / cold.archived_key).stat().st_size)
    assert cold.sha256 == hashlib.sha256(content).hexdigest()
    assert world.raw.object("encoding", world.shard("a").module("a")) == b"listpack"  # a third of a hash table's memory
    assert cold.created_ms <= cold.updated_ms


@with_shards
async def test_list_filters_by_prefix_tier_and_limit_with_odd_ids(world: World):
    face = await world.open()
    for id in ODD_IDS:
        await face.put(id, f"content of {id}")
    assert sorted(await face.list()) == sorted(ODD_IDS)
    for prefix in (
        "a",
        "a/",
        "a//",
        "/",
        ".",
        "..",
        "per%",
        "ü",
        "日",
        "@at",
        "{",
        "star*",
        "x" * 200,
        "x" * 300,
        "no",
    ):
        assert sorted(await face.list(prefix)) == sorted(i for i in ODD_IDS if i.startswith(prefix)), prefix
    for limit in (0, 1, 7, 100):
        found = await face.list(limit=limit)
        assert len(found) == len(set(found)) == min(limit, len(ODD_IDS))
    for id in ODD_IDS[:6]:
        await face.demote(id, to="cold" if id < "a" else "warm")
    tiers = dict(await face.scan())
    for tier in ("hot", "warm", "cold"):
        assert sorted(await face.list(tier=tier)) == sorted(i for i, t in tiers.items() if t == tier)
    for id in ODD_IDS:
        module = await face.get(id)
        assert (module.id, module.text) == (id, f"content of {id}")
    for bad in ({"tier": "lukewarm"}, {"limit": -1}, {"limit": True}):
        with pytest.raises(Invalid):
            await face.list(**bad)


async def test_list_returns_many_modules(world: World):
    face = await world.open()
    ids = [f"m/{i}" for i in range(2500)]
    results = await face.put_many([Item(id, "x", tokens=1) for id in ids])
    assert all(landed.tier == "hot" for landed in results)
    assert sorted(await face.list("m/")) == sorted(ids)
    found = await face.get_many(ids)
    assert list(found) == ids
    assert all(module.text == "x" for module in found.values())


# -- moving --------------------------------------------------------------------------------------------------------


@with_shards
@pytest.mark.parametrize("clean", [False, True], ids=["dirty", "clean"])
@pytest.mark.parametrize(
    ("start", "call", "to", "ends", "moved"),
    [
        ("hot", "promote", None, "hot", False), ("warm", "promote", None, "hot", True),
        ("cold", "promote", None, "hot", True), ("hot", "demote", None, "warm", True),
        ("hot", "demote", "warm", "warm", True), ("hot", "demote", "cold", "cold", True),
        ("warm", "demote", None, "cold", True), ("warm", "demote", "warm", "warm", False),
        ("warm", "demote", "cold", "cold", True), ("cold", "demote", None, "cold", False),
        ("cold", "demote", "warm", "cold", False), ("cold", "demote", "cold", "cold", False),
    ],
)  # fmt: skip
async def test_moves_between_all_tiers(
    world: World, clean: bool, start: str, call: str, to: str | None, ends: str, moved: bool
):
    face = await world.open()
    content = text_of(2000)
    await face.put("a", content)
    await face.put("other", "x")
    if clean:
        await face.archive_now()
    if start != "hot":
        await face.demote("a", to=start)
    result = await (face.promote("a") if call == "promote" else face.demote("a", to=to))
    assert (result.tier, result.moved) == (ends, moved)
    assert (result.reason is None) == moved
    placed = await face.where("a")
    assert placed.tier == ends
    assert placed.clean == (clean or start == "cold" or ends == "cold")
    assert (await face.get("a")).content == content
    assert world.usage() == await face.recount()


@pytest.mark.parametrize("tier", ["warm", "cold"])
async def test_module_is_promoted_exactly_at_the_promotion_threshold(world: World, tier: str):
    face = await world.open(storage_tiers__promotion_threshold=3)
    await face.put("a", "x")
    await face.demote("a", to=tier)
    reads = []
    for _ in range(4):
        reads.append((await face.get("a")).tier)
        reads.append((await face.where("a")).tier)
    # tier of each read, then the tier after it; the first read of a cold module makes it warm
    assert reads == [tier, "warm", "warm", "warm", "warm", "hot", "hot", "hot"]


async def test_pinned_module_stays_hot_until_unpinned(world: World):
    face = await world.open(storage_tiers__hot__max_size=100)
    await face.put("pinned", "x", tokens=60)
    await face.demote("pinned")
    until_ms = await face.pin("pinned", 3600)
    placed = await face.where("pinned")
    assert (placed.tier, placed.pinned_until_ms) == ("hot", until_ms)
    assert (await face.demote("pinned")).reason == "pinned"
    await face.put("a", "x", tokens=40)
    landed = await face.put("b", "x", tokens=40)  # evicts a, although the pinned one was used less recently
    assert (landed.tier, landed.evicted) == ("hot", 1)
    assert (await face.where("a")).tier == "warm"
    big = await face.put("c", "x", tokens=80)
    assert (big.tier, big.reason) == ("warm", "no room in hot")
    await face.unpin("pinned")
    assert (await face.where("pinned")).pinned_until_ms is None
    assert (await face.put("d", "x", tokens=80)).tier == "hot"
    assert (await face.where("pinned")).tier == "warm"
    with pytest.raises(NotFound):
        await face.pin("none", 1)
    for bad in (0, -1, float("inf"), float("nan"), True, "1", 367 * 86400):
        with pytest.raises(Invalid):
            await face.pin("b", bad)


async def test_short_pin_expires(world: World):
    face = await world.open()
    await face.put("a", "x")
    await face.pin("a", 0.3)
    assert (await face.demote("a")).reason == "pinned"
    moved = await face.demote("a")
    end = time.monotonic() + 5
    while moved.reason == "pinned" and time.monotonic() < end:
        moved = await face.demote("a")
    assert moved.moved


async def test_put_too_large_for_hot_lands_in_warm_with_a_reason(world: World):
    face = await world.open(storage_tiers__hot__max_size=100, storage_tiers__hot__max_bytes=5000)
    await face.put("small", "x", tokens=90)
    by_tokens = await face.put("a", "x", tokens=101)
    by_bytes = await face.put("b", text_of(5001), tokens=1)
    for landed in (by_tokens, by_bytes):
        assert (landed.tier, landed.reason, landed.evicted) == ("warm", "too large for hot", 0)
        assert (await face.get(landed.id)).tier == "warm"
        promoted = await face.promote(landed.id)
        assert (promoted.moved, promoted.tier, promoted.reason) == (False, "warm", "too large for hot")
    assert (await face.where("small")).tier == "hot"
    many = await face.promote_many(["a", "b"])
    assert [m.reason for m in many] == ["too large for hot"] * 2


async def test_eviction_follows_least_recently_used_order(world: World):
    face = await world.open(storage_tiers__hot__max_size=30)
    for id in "abc":
        await face.put(id, "x", tokens=10)
    # The process gathers uses for up to a second; closing sends them.
    other = await world.open()
    await other.get("a")
    await other.close()
    assert (await face.put("d", "x", tokens=10)).evicted == 1
    assert {id: (await face.where(id)).tier for id in "abcd"} == {"a": "hot", "b": "warm", "c": "hot", "d": "hot"}
    landed = await face.put("e", "x", tokens=25)
    assert (landed.tier, landed.evicted) == ("hot", 3)


@with_shards
async def test_warm_overflow_goes_to_cold_without_losing_bytes(world: World):
    n = world.shards
    face = await world.open(
        storage_tiers__hot__max_size=300 * n, storage_tiers__warm__max_modules=4 * n,
        storage_tiers__warm__max_bytes=8000 * n, worker__headroom=0,
    )  # fmt: skip
    contents = {f"m/{i}": text_of(200 + 60 * i, str(i)) for i in range(40)}
    for id, content in contents.items():
        await face.put(id, content, tokens=60)
    stats = await face.stats()
    assert stats.count == 40
    assert stats.hot.tokens <= 300 * n
    assert stats.warm.count <= 4 * n
    assert stats.cold.count >= 40 - 9 * n
    for id, content in contents.items():
        assert (await face.get(id)).content == content
    found = await face.get_many(contents)
    assert {id: m.content for id, m in found.items()} == contents
    assert world.usage() == await face.recount()


# -- sums, events --------------------------------------------------------------------------------------------------


@with_shards
async def test_stats_equal_a_recount(world: World):
    face = await world.open()
    for i in range(12):
        await face.put(f"m/{i}", text_of(1000 + i, str(i)), tokens=10 + i)
    await face.demote_many([f"m/{i}" for i in range(8)])
    await face.demote_many([f"m/{i}" for i in range(3)], to="cold")
    await face.delete("m/11")
    for i in (0, 5, 10, 99):
        await face.get(f"m/{i}")
    stats, located = await face.stats(), [await face.where(f"m/{i}") for i in range(11)]
    by_tier = {t: [p for p in located if p.tier == t] for t in ("hot", "warm", "cold")}
    assert (stats.hot.count, stats.hot.tokens) == (len(by_tier["hot"]), sum(p.tokens for p in by_tier["hot"]))
    assert stats.hot.size_bytes == sum(p.size_bytes for p in by_tier["hot"])
    assert (stats.warm.count, stats.warm.stored_bytes) == (
        len(by_tier["warm"]), sum(p.stored_bytes for p in by_tier["warm"]))  # fmt: skip
    assert stats.warm.size_mb == stats.warm.stored_bytes / 1e6
    assert stats.warm.ratio == sum(p.size_bytes for p in by_tier["warm"]) / stats.warm.stored_bytes
    assert stats.cold.count == len(by_tier["cold"])
    clean = [p for p in located if p.clean]
    assert (stats.cold.archived_count, stats.cold.stored_bytes) == (len(clean), sum(p.archived_bytes for p in clean))
    assert stats.dirty_count == sum(not p.clean for p in located) + 1  # and the tombstone
    assert stats.dirty_bytes == sum(p.size_bytes for p in located if not p.clean)
    assert stats.hits == {"cold": 1, "warm": 1, "hot": 1}
    assert stats.misses == 1
    assert world.usage() == await face.recount()


@with_shards
async def test_events_are_complete_and_in_order(world: World):
    face = await world.open()
    await face.put("a", "x")
    await face.demote("a")
    await face.demote("a")
    await face.promote("a")
    await face.put("a", "y")
    await face.delete("a")
    events = await face.events(since="0", wait=False)
    story = [(e.from_, e.to, e.reason) for e in events]
    assert story == [("none", "hot", "put"), ("hot", "warm", "request"), ("warm", "warm", "archive"),
                     ("warm", "cold", "request"), ("cold", "hot", "request"), ("hot", "hot", "put"),
                     ("hot", "deleted", "delete")]  # fmt: skip
    assert all(e.id == "a" for e in events)
    assert events[0].version < events[-1].version
    assert await face.events(since="$", wait=False) == []
    later = await face.events(since=events[2].stream_id, wait=False)
    assert later == events[3:]


@with_shards
async def test_failing_listener_does_not_stop_the_others(world: World):
    face = await world.open()
    await face.put("before", "x")
    heard: list[Event] = []
    everything: list[Event] = []

    def broken(event: Event) -> None:
        raise RuntimeError("a listener's own fault")

    await face.on("tier_change", broken)
    off = await face.on("tier_change", heard.append)
    await face.on("event", everything.append)
    await face.put("a", "x")
    await face.demote("a", to="cold")
    await until(lambda: len(heard) >= 2 and len(everything) >= 3, what="both changes")
    assert [(e.id, e.from_, e.to) for e in heard] == [("a", "none", "hot"), ("a", "hot", "cold")]
    assert [e.reason for e in everything] == ["put", "archive", "request"]
    off()
    off()  # safe to call twice
    await face.promote("a")
    await until(lambda: len(everything) >= 4, what="the promotion")
    assert len(heard) == 2
    with pytest.raises(Invalid):
        await face.on("full_moon", heard.append)


# -- many ----------------------------------------------------------------------------------------------------------


@with_shards
async def test_batch_calls_return_a_result_or_an_error_for_each_item(world: World):
    face = await world.open()
    items = [Item("a", "1"), Item("", "bad id"), Item("b", "1", tokens=-1), Item("a", "2"), Item("c", "3", if_version="1-9"),
             Item("d", "4", keywords=["k"], meta={"m": 1})]  # fmt: skip
    results = await face.put_many(items)
    kinds = [type(r).__name__ for r in results]
    assert kinds == ["Landed", "Invalid", "Invalid", "Landed", "Conflict", "Landed"]
    found = await face.get_many(["a", "none", "d", "a"])
    assert {id: m and m.text for id, m in found.items()} == {"a": "2", "none": None, "d": "4"}
    assert (found["d"].keywords, found["d"].meta) == (("k",), {"m": 1})
    down = await face.demote_many(["a", "none", "d", "a"], to="cold")
    assert [getattr(r, "tier", type(r).__name__) for r in down] == ["cold", "NotFound", "cold", "cold"]
    up = await face.promote_many(["d", "none", "a"])
    assert [getattr(r, "tier", type(r).__name__) for r in up] == ["hot", "NotFound", "hot"]
    assert [r.moved for r in await face.promote_many(["a", "d"])] == [False, False]
    assert [await face.get_many([]), await face.put_many([]), await face.promote_many([])] == [{}, [], []]
    for call in (face.get_many, face.promote_many, face.demote_many):
        with pytest.raises(Invalid):
            await call("abc")
    with pytest.raises(Invalid):
        await face.demote("a", to="hot")
    assert world.usage() == await face.recount()


@with_shards
async def test_promote_many_makes_room_for_the_whole_batch(world: World):
    n = world.shards
    face = await world.open(storage_tiers__hot__max_size=1000 * n)
    ids = [f"m/{i}" for i in range(30)]
    await face.put_many([Item(id, text_of(300, id), tokens=20) for id in ids])
    await face.demote_many(ids, to="cold")
    await face.put_many([Item(f"old/{i}", "x", tokens=100) for i in range(10 * n)])
    results = await face.promote_many(ids)
    assert [r.tier for r in results] == ["hot"] * 30
    stats = await face.stats()
    assert stats.hot.tokens <= 1000 * n
    found = await face.get_many(ids)
    assert {m.tier for m in found.values()} == {"hot"}
    assert all(m.content == text_of(300, id) for id, m in found.items())


# -- maintenance ---------------------------------------------------------------------------------------------------


async def test_expired_clean_warm_frame_becomes_cold_and_readable(world: World):
    face = await world.open(storage_tiers__warm__ttl="1s", storage_tiers__cold__archive_after="1h")
    await face.put_many([Item("clean", TEXT), Item("dirty", TEXT)])
    await face.demote("clean", to="cold")
    await face.get("clean")  # leaves a warm copy
    await face.demote("dirty")
    frame = world.shard("clean").frame("clean")
    assert 0 < world.raw.pttl(frame) <= 1000
    assert world.raw.pttl(world.shard("dirty").frame("dirty")) == -1
    await until(lambda: not world.raw.exists(frame), what="the end of the frame")
    assert (await face.where("clean")).tier == "cold"  # before the accounts have noticed
    assert (await face.maintain())["expired"] == 1
    assert (await face.where("dirty")).tier == "warm"
    assert world.usage() == await face.recount()
    module = await face.get("clean")
    assert (module.text, module.tier) == (TEXT, "cold")
    assert (await face.get("dirty")).text == TEXT


@with_shards
async def test_worker_round_archives_due_demotes_idle_and_keeps_headroom(world: World):
    n = world.shards
    face = await world.open(
        storage_tiers__hot__max_size=1000 * n, storage_tiers__cold__archive_after="100ms",
        storage_tiers__demotion_threshold="1h", worker__headroom=0.5,
    )  # fmt: skip
    ids = [f"m/{i}" for i in range(40)]
    await face.put_many([Item(id, text_of(100, id), tokens=25) for id in ids])
    hot_before = (await face.stats()).hot.tokens
    did = await face.maintain()
    assert did["archived"] <= 40  # modules put in the last 100 ms are not due
    stats = await face.stats()
    assert stats.hot.tokens <= 500 * n
    assert did["headroom"] == (hot_before - stats.hot.tokens) // 25
    archived = did["archived"]
    end = time.monotonic() + 5
    while archived < 40 and time.monotonic() < end:
        archived += (await face.maintain())["archived"]
    assert archived == 40
    assert (await face.stats()).dirty_count == 0
    idle = (await face.list(tier="hot"))[:3]
    for id in idle:  # unused for two hours
        shard = world.shard(id)
        world.raw.zadd(shard.hot, {id: time.time() * 1000 - 7200_000}, xx=True)
    assert (await face.maintain())["idle"] == len(idle)
    assert [(await face.where(id)).tier for id in idle] == ["warm"] * len(idle)
    assert world.usage() == await face.recount()


async def test_pinned_idle_module_is_not_demoted(world: World):
    face = await world.open(storage_tiers__demotion_threshold="1s")
    await face.put("a", "x")
    await face.put("b", "x")
    await face.pin("a", 60)
    for id in "ab":
        world.raw.zadd(world.shard(id).hot, {id: 1000}, xx=True)
    assert (await face.maintain())["idle"] == 1
    assert [(await face.where(id)).tier for id in "ab"] == ["hot", "warm"]


@with_shards
async def test_sweep_keeps_only_the_greatest_version_of_each_module(world: World):
    face = await world.open()
    for round_ in range(3):
        for id in ("a", "a/b", "gone"):
            await face.put(id, f"{id} {round_}")
        await face.archive_now()
    await face.delete("gone")
    await face.archive_now()
    (world.archive / "t" / "modules" / "a" / "README").write_text("of another program")
    assert await face.run(sweep(face.space)) > 0
    left = [name for name in world.objects() if "/modules/" in name]
    contents = [name for name in left if name.endswith(".xz")]
    assert len(contents) == 2
    assert sum(name.endswith(".deleted") for name in left) <= 1
    assert any(name.endswith("README") for name in left)
    await face.demote_many(["a", "a/b"], to="cold")
    assert [(await face.get(id)).text for id in ("a", "a/b")] == ["a 2", "a/b 2"]
    assert await face.run(sweep(face.space)) == 0


@with_shards
async def test_archive_now_archives_all_dirty_modules(world: World):
    face = await world.open(storage_tiers__cold__archive_after="1h")
    await face.put_many([Item(f"m/{i}", text_of(50, str(i))) for i in range(150)])
    await face.demote_many([f"m/{i}" for i in range(20)])
    await face.delete("m/0")
    assert await face.archive_now() == 150  # 149 modules and a tombstone
    assert await face.archive_now() == 0
    assert (await face.stats()).dirty_count == 0
    for i in range(1, 150):
        assert (await face.where(f"m/{i}")).clean


# -- namespaces and settings ---------------------------------------------------------------------------------------


async def test_two_namespaces_do_not_mix(world: World):
    one, two = await world.open(namespace="t"), await world.open(namespace="t.2")
    await one.put("a", "one")
    await two.put("a", "two")
    await two.put("b", "two")
    await one.archive_now()
    await two.archive_now()
    assert [(await face.get("a")).text for face in (one, two)] == ["one", "two"]
    assert (await one.list(), sorted(await two.list())) == (["a"], ["a", "b"])
    assert await one.get("b") is None
    await one.delete("a")
    await one.archive_now()
    await one.run(sweep(one.space))
    await two.demote("a", to="cold")
    assert (await two.get("a")).text == "two"
    assert (await one.stats()).count == 0
    assert (await two.stats()).count == 2


async def test_opening_with_another_number_of_shards_is_refused(world: World):
    face = await world.open(shards=4)
    await face.put("a", "x")
    for wrong in (2, 8):
        with pytest.raises(Invalid, match="shards"):
            await world.open(shards=wrong)
    assert (await (await world.open(shards=4)).get("a")).text == "x"


@pytest.mark.parametrize("first", [1, 4])
async def test_one_shard_and_several_cannot_share_a_namespace(world: World, first: int):
    """With one shard the tag is `{ns}`, with several `{ns.0}`: a store with the other number would see an empty
    namespace.
    """
    await (await world.open(shards=first)).put("a", "x")
    with pytest.raises(Invalid, match="shards"):
        await world.open(shards=5 - first)


@with_shards
async def test_explicit_limits_replace_stored_ones_and_defaults_do_not(world: World):
    n = world.shards
    await world.open(storage_tiers__hot__max_size=1000 * n, storage_tiers__warm__max_modules=7 * n)
    bare = await world.open()
    assert [(await bare.stats()).hot.max_tokens, (await bare.stats()).warm.max_modules] == [1000 * n, 7 * n]
    await world.open(storage_tiers__hot__max_size=500 * n)
    assert [(await bare.stats()).hot.max_tokens, (await bare.stats()).warm.max_modules] == [500 * n, 7 * n]


async def test_lowered_limit_stops_growth_and_a_worker_enforces_it(world: World):
    face = await world.open(storage_tiers__hot__max_size=1000)
    await face.put_many([Item(f"m/{i}", "x", tokens=100) for i in range(10)])
    face = await world.open(storage_tiers__hot__max_size=300, worker__headroom=0)
    assert (await face.get("m/0")).tier == "hot"
    await face.maintain()
    assert (await face.stats()).hot.tokens == 300
    assert (await face.put("new", "x", tokens=100)).tier == "hot"
    assert (await face.stats()).hot.tokens == 300


async def test_close_is_final_and_safe_to_repeat(world: World):
    face = await world.open()
    await face.put("a", "x")
    await face.on("tier_change", lambda event: None)
    await face.close()
    await face.close()
    for call in (face.get("a"), face.put("a", "y"), face.stats(), face.exists("a"), face.get_many(["a"])):
        with pytest.raises(Invalid, match="closed"):
            await call
    assert (await (await world.open()).get("a")).text == "x"


async def test_close_sends_the_gathered_uses(world: World):
    face = await world.open()
    await face.put("a", "x")
    for _ in range(7):
        await face.get("a")
    await face.close()
    assert (await (await world.open()).where("a")).uses == 7


async def test_flush_is_a_deprecated_name_of_archive_now(world: World) -> None:
    face = await world.open()
    await face.put("a", "text")
    with pytest.warns(DeprecationWarning, match=r"call archive_now\(\)"):
        assert await face.flush() == 1
    assert await face.archive_now() == 0
