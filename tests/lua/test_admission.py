"""What hot and warm admit: a module may take the place of others with eight times its uses for each token or byte."""

from __future__ import annotations

from typing import Any

import pytest

from distier import lua
from distier.domain.outcome import Refusal
from distier.domain.schema import VICTIMS_WORTH
from distier.effects import RunScript
from distier.lua import Over, Refused
from distier.stores.redis import Exchange
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
