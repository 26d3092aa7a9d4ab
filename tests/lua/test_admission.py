"""What hot and warm admit, and how warm learns to admit more or less."""

from __future__ import annotations

from typing import Any

import pytest

from distier import lua
from distier.domain.order import Order
from distier.domain.outcome import Refusal
from distier.domain.schema import VICTIMS_WORTH, WORTH_FIRST, WORTH_MAX, WORTH_STEP
from distier.effects import RunScript
from distier.lua import Over, Refused
from distier.policy.admission import is_sampled
from distier.stores.redis import Exchange
from tests.fakes import ids_of
from tests.lua.test_policies import LIMITS, SHARD
from tests.lua.test_scripts_model import open_shard, run_script
from tests.lua.test_scripts_text import down, write_id


def put(id: str, tier: str, tokens: int, size_bytes: int) -> RunScript[Any]:
    return lua.put(
        SHARD, id, write_id(id), tier=tier, expected="", tokens=tokens, size_bytes=size_bytes, body=b"x" * size_bytes,
        codec="" if tier == "hot" else "raw", fields=("type", "t/x"),
    )  # fmt: skip


@pytest.mark.parametrize("budget", ["tokens", "bytes"])
@pytest.mark.parametrize(
    ("size", "victims_uses", "uses", "admitted"),
    [
        pytest.param(4, (VICTIMS_WORTH, 0), 1, True, id="an eighth of the uses of one of its size"),
        pytest.param(4, (VICTIMS_WORTH + 1, 0), 1, False, id="less"),
        pytest.param(4, (0, 99), 1, True, id="only what has to leave counts"),
        pytest.param(8, (VICTIMS_WORTH, VICTIMS_WORTH), 2, True, id="an eighth of the uses of both together"),
        pytest.param(8, (VICTIMS_WORTH, VICTIMS_WORTH + 1), 2, False, id="less than both together"),
        pytest.param(2, (VICTIMS_WORTH * 2, 0), 1, True, id="half as large, so half as many uses"),
        pytest.param(2, (VICTIMS_WORTH * 2 + 1, 0), 1, False, id="half as large, fewer uses"),
    ],
)
def test_hot_admits_by_uses_for_each_token(
    exchange: Exchange, budget: str, size: int, victims_uses: tuple[int, int], uses: int, admitted: bool
) -> None:
    def sized(n: int) -> dict[str, int]:
        return {"tokens": n, "size_bytes": 1} if budget == "tokens" else {"tokens": 1, "size_bytes": n}

    limits = {"hot_tokens": 8} if budget == "tokens" else {"hot_bytes": 8}
    exchange.exchange(SHARD, [("FLUSHALL",)], 10.0)
    open_shard(exchange, SHARD, LIMITS | {"hot_tokens": 99, "hot_bytes": 99} | limits)
    for id in ("first", "second"):
        run_script(exchange, put(id, "hot", **sized(4)))
    run_script(exchange, put("new", "warm", **sized(size)))
    for id, n in zip(("new", "first", "second"), (uses, *victims_uses), strict=True):
        if n:
            run_script(exchange, lua.touch(SHARD, [(id, n)]))
    exchange.exchange(SHARD, [("ZADD", SHARD.hot, 1, "first", 2, "second")], 10.0)
    content = b"x" * sized(size)["size_bytes"]
    reply = run_script(exchange, lua.promote(SHARD, "new", write_id("new"), content, "uses"))
    assert isinstance(reply, Over) if admitted else reply == Refused(Refusal.NOT_ADMITTED), reply
    assert isinstance(run_script(exchange, lua.promote(SHARD, "new", write_id("new"), content, "request")), Over)
    if admitted:
        leaving = [down("first")] if size <= 4 else [down("first"), down("second")]
        assert isinstance(
            run_script(exchange, lua.promote(SHARD, "new", write_id("new"), content, "uses", leaving)), lua.Applied
        )


# -- warm ----------------------------------------------------------------------------------------------------------------

SAMPLED, EVICTED, OTHER = "s5", "s14", "s6"


class Warm:
    """A shard whose warm tier holds `EVICTED`, which was used often, and has no room for a second frame."""

    def __init__(self, exchange: Exchange, uses: int, policy: str = "") -> None:
        self.exchange = exchange
        exchange.exchange(SHARD, [("FLUSHALL",)], 10.0)
        open_shard(exchange, SHARD, LIMITS | {"warm_bytes": 4}, policy)
        for id in (SAMPLED, OTHER, EVICTED):
            self.add(id, "warm" if id == EVICTED else "cold")
        run_script(exchange, lua.touch(SHARD, [(EVICTED, uses)]))

    def add(self, id: str, tier: str = "cold") -> None:
        """Put a module, archive it, and demote it to `cold`, unless it is to stay warm."""
        run_script(self.exchange, put(id, "warm" if tier == "warm" else "hot", 1, 4))
        version = run_script(self.exchange, lua.where(SHARD, id)).fields  # type: ignore[union-attr]
        order = Order(int(version[b"epoch"]), int(version[b"ver"]), write_id(id))
        run_script(self.exchange, lua.archived(SHARD, id, order, 9))
        if tier == "cold":
            run_script(self.exchange, lua.demote(SHARD, "request", [lua.Move(id, write_id(id), "cold")]))

    def read(self, id: str, uses: int = 1, **more: Any) -> bool:
        """A read from the archive ends, perhaps with a copy."""
        reply = run_script(
            self.exchange, lua.install(SHARD, id, write_id(id), "raw", b"f" * 4, "get", uses=uses, **more)
        )
        return isinstance(reply.change, lua.Applied)

    def ask(self, *command: Any) -> Any:
        return self.exchange.exchange(SHARD, [command], 10.0)[0]

    @property
    def ghosts(self) -> dict[str, str]:
        found = self.ask("ZRANGE", GHOSTS, 0, -1, "WITHSCORES")
        return {id: "refused" if score < 0 else "evicted" for id, score in ids_of(found).items()}

    @property
    def worth(self) -> float:
        return float(self.ask("HGET", SHARD.epoch, "worth") or WORTH_FIRST)


GHOSTS = f"{SHARD.root}ghosts:warm"


def test_sample_is_the_same_in_python_and_in_the_scripts(exchange: Exchange) -> None:
    warm = Warm(exchange, uses=10_000)
    ids = [f"{name}{i}" for name in ("m/", "skills/\u00e9-", "a-long-prefix/of-a-module/", "") for i in range(20)]
    seen: set[str] = set()
    for id in ids:
        warm.ask("DEL", GHOSTS)
        warm.add(id)
        assert not warm.read(id)
        seen |= warm.ghosts.keys()
    assert seen == set(filter(is_sampled, ids)) and 3 < len(seen) < 25


def test_a_refused_module_that_is_read_again_makes_warm_less_strict(exchange: Exchange) -> None:
    warm = Warm(exchange, uses=1000)
    assert not warm.read(SAMPLED)
    assert warm.ghosts == {SAMPLED: "refused"} and warm.worth == WORTH_FIRST
    assert not warm.read(SAMPLED)
    assert warm.worth == pytest.approx(WORTH_FIRST * WORTH_STEP) and warm.ghosts == {SAMPLED: "refused"}
    assert any(warm.read(SAMPLED) for _ in range(20)), "with more uses, and a less strict warm"
    assert warm.ghosts == {EVICTED: "evicted"}
    warm = Warm(exchange, uses=100_000)
    for _ in range(40):
        assert not warm.read(SAMPLED)
    assert warm.worth == WORTH_MAX


def test_an_evicted_module_that_is_read_again_makes_warm_stricter(exchange: Exchange) -> None:
    warm = Warm(exchange, uses=4)
    assert warm.read(OTHER) and warm.ghosts == {EVICTED: "evicted"}
    assert warm.read(EVICTED)
    assert warm.worth == pytest.approx(WORTH_FIRST / WORTH_STEP) and warm.ghosts == {}
    for _ in range(20):
        warm.read(OTHER, uses=20)
        warm.read(EVICTED, uses=20)
    assert warm.worth == 1


@pytest.mark.parametrize("what", ["another id", "a prediction", "another policy", "a key of a wrong type"])
def test_what_leaves_no_ghost(exchange: Exchange, what: str) -> None:
    warm = Warm(exchange, uses=1000, policy="lfu" if what == "another policy" else "")
    if what == "a key of a wrong type":
        warm.ask("SET", GHOSTS, "x")
    for _ in range(2):
        assert not warm.read(OTHER if what == "another id" else SAMPLED, uses=0 if what == "a prediction" else 1)
    assert warm.worth == WORTH_FIRST
    if what == "a key of a wrong type":
        assert warm.read(OTHER, uses=10_000) and warm.worth == WORTH_FIRST
    else:
        assert warm.ghosts == {}


def test_ghosts_are_bounded(exchange: Exchange) -> None:
    """With few modules in warm, two of each kind."""
    warm = Warm(exchange, uses=10_000)
    ids = [id for id in (f"n{i}" for i in range(200)) if is_sampled(id)][:9]
    for id in ids:
        warm.add(id)
        assert not warm.read(id)
    assert warm.ghosts == dict.fromkeys(ids[-2:], "refused")
    for id in ids:
        assert warm.read(id, uses=1_000_000)
    assert warm.ghosts == dict.fromkeys(ids[-3:-1], "evicted")
