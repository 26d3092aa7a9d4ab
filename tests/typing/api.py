"""The types that users of distier see, checked by mypy --strict. Nothing here runs.

`assert_type` states the type that a call returns. A line with `# type: ignore[CODE]` must be an error: mypy reports an
unneeded ignore. `test_typing.py` checks that no public call is missing.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any, Literal, assert_type

import distier
from distier import (
    ArchiveTimeout,
    ArchiveUnavailable,
    AsyncSession,
    AsyncStore,
    Choice,
    Config,
    ConfigError,
    Conflict,
    Content,
    Context,
    Corrupt,
    DeadlineExceeded,
    Described,
    DistierError,
    Durability,
    Event,
    Fitted,
    Found,
    Full,
    HistoryEntry,
    Invalid,
    Item,
    Landed,
    Listed,
    Module,
    Moved,
    NeedsRestore,
    NotFound,
    Order,
    OutOfStep,
    Part,
    Placement,
    Prediction,
    Recovering,
    RedisUnavailable,
    Session,
    Stats,
    Store,
    Tier,
    TokenCounter,
    Unavailable,
    Worker,
    connect,
    connect_async,
    load_config,
)
from distier.observe import MetricsHook
from distier.plans.get.explain import Explained


class Hook:
    """What a program passes as a hook."""

    def count(self, name: str, amount: int) -> None: ...

    def observe(self, name: str, seconds: float) -> None: ...


def opening() -> None:
    hook: MetricsHook = Hook()
    assert_type(connect(metrics=[Hook(), hook]), Store)
    connect(metrics=[object()])  # type: ignore[list-item]
    assert_type(connect(), Store)
    assert_type(connect("redis://host:6379/0", namespace="team", storage_tiers__hot__max_size=20_000), Store)
    assert_type(connect({"namespace": "team"}, counter="estimate"), Store)
    assert_type(load_config("distier.yaml"), Config)
    connect(b"redis://host")  # type: ignore[arg-type]
    with connect() as store:
        assert_type(store, Store)


async def opening_async() -> None:
    assert_type(await connect_async(), AsyncStore)
    assert_type(await connect_async(metrics=[Hook()]), AsyncStore)
    async with await connect_async() as store:
        assert_type(store, AsyncStore)


class Words:
    """A user's own token counter."""

    name = "words"

    def count(self, content: bytes) -> int:
        return len(content.split())


def counting(counter: TokenCounter) -> None:
    assert_type(counter.count(b"text"), int)
    connect(counter=Words())
    connect(counter=len)  # type: ignore[arg-type]


def writing(store: Store, content: Content, level: Durability, order: Order) -> None:
    assert_type(store.put("id", "text"), Landed)
    store.put("id", b"bytes", content_type="text/markdown", keywords=["a"], meta={"n": 1}, tokens=3, durability=level)
    store.put("id", content, if_version=order)
    store.put("id", content, if_version="3-41")
    store.put("id", content, if_version=0)
    store.put("id", 3)  # type: ignore[arg-type]
    store.put("id", "text", durability="soon")  # type: ignore[arg-type]
    store.put("id", "text", "text/plain")  # type: ignore[call-arg]
    assert_type(store.put_many([Item("id", "text", keywords=["a"])]), list[Landed | DistierError])
    assert_type(store.delete("id", if_version=order, durability="archived"), bool)


def reading(store: Store) -> None:
    assert_type(store.get("id"), Module | None)
    assert_type(store.get_many(["id"]), dict[str, Module | None])
    fitted = store.fit("prefix/", 50_000)
    assert_type(store.fit(["id"], 50_000, required=["id"], keep=fitted, predicted={"id": 0.5}), Fitted)
    store.fit(["id"], 50_000, keep=("id",))
    store.fit(["id"], "50k")  # type: ignore[arg-type]
    for choice in fitted:
        assert_type(choice, Choice)
    assert_type(fitted.chosen[0].form, Literal["whole", "outline", "none"])
    assert_type(fitted.left_out[0].reason, Literal["missing", "too large", "outranked"] | None)
    assert_type(fitted.ids, tuple[str, ...])
    assert_type(store.exists("id"), bool)
    assert_type(store.where("id"), Placement | None)
    assert_type(store.put("id", "text", ttl=3600), Landed)
    assert_type(store.get_range("id", 0, 100), Part | None)
    assert_type(store.where_many(["id"]), dict[str, Placement | None])
    assert_type(store.describe(["id"]), dict[str, Described | None])
    assert_type(store.page("prefix/", after="id", limit=3, tier="hot"), Listed)
    assert_type(store.page().modules, tuple[Described, ...])
    assert_type(store.search("pdf -draft", prefix="skills/", start=0, limit=3), Found)
    assert_type(store.search("pdf").modules, tuple[Described, ...])
    assert_type(store.explain("id"), Explained | None)
    assert_type(store.get("id", version="1-2"), Module | None)
    assert_type(store.history("id", limit=3), list[HistoryEntry])
    assert_type(store.rollback("id", "1-2", if_version="1-3"), Landed)
    assert_type(store.rename("id", "new", if_version="1-3"), Landed)
    assert_type(store.list("prefix/", tier="hot", limit=3), Iterator[str])
    assert_type(store.scan(), Iterator[tuple[str, Tier]])
    with store.session(keywords=["pdf"]) as session:
        assert_type(session, Session)
        assert_type(session.get("id"), Module | None)
        assert_type(session.get_many(["id"]), dict[str, Module | None])
    assert_type(store.predict_access(Context(("id",), ("pdf",))), list[Prediction])
    store.predict_access("id")  # type: ignore[arg-type]
    store.list(tier="tepid")  # type: ignore[arg-type]
    print(store.get("id").text)  # type: ignore[union-attr]


def moving(store: Store) -> None:
    assert_type(store.promote("id"), Moved)
    assert_type(store.demote("id", to="cold"), Moved)
    assert_type(store.promote_many(["id"]), list[Moved | DistierError])
    assert_type(store.demote_many(["id"], to="warm"), list[Moved | DistierError])
    assert_type(store.pin("id", ttl=0.5), int)
    assert_type(store.restore("id", days=1, tier="Bulk", wait_s=60), bool)
    store.unpin("id")
    store.demote("id", to="frozen")  # type: ignore[arg-type]


def looking(store: Store) -> None:
    assert_type(store.stats(), Stats)
    assert_type(store.archive_now(deadline_s=10), int)
    assert_type(store.flush(), int)  # its deprecated name
    assert_type(store.events(since="0", wait=False), Iterator[Event])
    assert_type(store.on("tier_change", print), Callable[[], None])
    store.open()
    store.open_existing(reading=True)
    store.close()


async def everything_async(store: AsyncStore, order: Order) -> None:
    await store.open()
    assert_type(await store.put("id", "text", if_version=order), Landed)
    assert_type(await store.put_many([Item("id", b"")]), list[Landed | DistierError])
    assert_type(await store.get("id"), Module | None)
    assert_type(await store.get_many(["id"]), dict[str, Module | None])
    assert_type(await store.fit("prefix/", 50_000), Fitted)
    async with store.session() as session:
        assert_type(session, AsyncSession)
        assert_type(await session.get("id"), Module | None)
        assert_type(await session.get_many(["id"]), dict[str, Module | None])
    assert_type(await store.predict_access(Context(("id",))), list[Prediction])
    assert_type(await store.delete("id"), bool)
    assert_type(await store.exists("id"), bool)
    assert_type(await store.where("id"), Placement | None)
    assert_type(await store.put("id", "text", ttl=0.5), Landed)
    assert_type(await store.get_range("id", start=5), Part | None)
    assert_type(await store.where_many(["id"]), dict[str, Placement | None])
    assert_type(await store.describe(["id"]), dict[str, Described | None])
    assert_type(await store.page("prefix/", after="id", limit=3, tier="hot"), Listed)
    assert_type(await store.search("pdf -draft", prefix="skills/", start=0, limit=3), Found)
    assert_type(await store.explain("id"), Explained | None)
    assert_type(await store.get("id", version="1-2"), Module | None)
    assert_type(await store.history("id", limit=3), list[HistoryEntry])
    assert_type(await store.rollback("id", "1-2", if_version="1-3"), Landed)
    assert_type(await store.rename("id", "new", if_version="1-3"), Landed)
    assert_type(store.list("prefix/"), AsyncIterator[str])
    assert_type(store.scan(), AsyncIterator[tuple[str, Tier]])
    assert_type(await store.promote("id"), Moved)
    assert_type(await store.demote("id"), Moved)
    assert_type(await store.promote_many(["id"]), list[Moved | DistierError])
    assert_type(await store.demote_many(["id"]), list[Moved | DistierError])
    assert_type(await store.pin("id", 600), int)
    assert_type(await store.restore("id"), bool)
    await store.unpin("id")
    assert_type(await store.stats(), Stats)
    assert_type(await store.archive_now(), int)
    assert_type(await store.flush(), int)
    assert_type(store.events(), AsyncIterator[Event])
    assert_type(await store.on("event", print), Callable[[], None])
    await store.close()


def values(module: Module, landed: Landed, placement: Placement, moved: Moved, event: Event, stats: Stats) -> None:
    assert_type(module.text, str)
    assert_type(module.content, bytes)
    assert_type(bytes(module), bytes)
    assert_type(module.tokens, int)
    assert_type(module.keywords, tuple[str, ...])
    assert_type(module.meta, Mapping[str, Any])
    assert_type(module.version, Order)
    assert_type(module.tier, Literal["hot", "warm", "cold"])
    module.tier = "hot"  # type: ignore[misc]
    assert_type(landed.version, Order)
    assert_type(landed.reason, str | None)
    assert_type(placement.ratio, float | None)
    assert_type(placement.clean, bool)
    assert_type(placement.nodes, tuple[str, ...])
    assert_type(moved.moved, bool)
    assert_type(event.is_tier_change, bool)
    assert_type(stats.hot.tokens, int)
    assert_type(stats.hits, Mapping[str, int])
    assert_type(module.version < landed.version, bool)
    assert_type(stats.prediction.precision, float | None)
    assert_type(stats.prediction.sources["sequence"].used, int)


def working(store: Store) -> None:
    worker = Worker(store)
    assert_type(worker.start(), Worker)
    assert_type(worker.run_once(), bool)
    assert_type(worker.stop().failures, int)


def errors() -> None:
    """Errors by the action that they ask for: each class is caught by its group."""
    unavailable: list[type[Unavailable]] = [
        ArchiveTimeout, ArchiveUnavailable, DeadlineExceeded, Full, NeedsRestore, Recovering, RedisUnavailable,
    ]  # fmt: skip
    corrupt: list[type[Corrupt]] = [OutOfStep]
    invalid: list[type[Invalid]] = [ConfigError, NotFound]
    every: list[type[DistierError]] = [*unavailable, *corrupt, *invalid, Conflict]
    assert_type(every[0]("message"), DistierError)
    assert_type(distier.__version__, str)
