"""The keys of a module that a script makes from its id are those that Python makes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from distier.domain.ids import MAX_ID_BYTES
from distier.domain.keys import Shard
from distier.lua.loader import block
from distier.stores.redis import Exchange

SHARD = Shard("ns", 3, 4)
SCRIPT = (
    f"local ROOT = KEYS[1]\n{block('encode_id')}\n{block('keys_of')}\nlocal a, b = keys_of(ARGV[1]) return {{a, b}}"
)
pieces = st.sampled_from(
    ["/", ".", "..", "@", "%", "%2F", "a", "b c", "é", "{x}", "*", "\0", "\n", "\x7f", "'", '"', "\\", "~", "-"]
)
texts = st.lists(pieces | st.text(max_size=4), min_size=1, max_size=12).map("".join)


def test_script_and_python_make_the_same_keys(exchange: Exchange) -> None:
    @settings(max_examples=400, deadline=None)
    @given(texts.filter(lambda text: 1 <= len(text.encode()) <= MAX_ID_BYTES))
    def check(id: str) -> None:
        (keys,) = exchange.exchange(SHARD, [("EVAL", SCRIPT, 1, SHARD.root, id)], 10.0)
        assert [key.decode() for key in keys] == [SHARD.module(id), SHARD.frame(id)]

    check()
