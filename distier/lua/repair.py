"""Scripts with which `fsck` compares and repairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.effects import RunScript
from distier.lua.loader import script
from distier.lua.replies import Applied, Mended, Moving, Ranking, Refused, pairs_of, parse_change, parse_number, word_of


def mend(shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    """Find inconsistencies between the records and the copies of modules; with `repair`, repair those that need no content."""
    return _mending("mend", shard, ids, repair=repair)


def reindex(shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    """Find differences between the sets and the records of modules; with `repair`, correct the sets."""
    return _mending("reindex", shard, ids, repair=repair)


def _mending(verb: str, shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    def parse(reply: Any) -> list[Mended]:
        word_of(reply)
        words = [[w.decode() for w in found] for found in reply[1]]
        return [
            Mended(id, tuple(w.lstrip("+") for w in found), frozenset(w[1:] for w in found if w.startswith("+")))
            for id, found in zip(ids, words, strict=True)
        ]

    return RunScript(shard, script(verb), (*shard.fixed, *pairs_of(shard, ids)), (int(repair), *ids), parse)


def enlist(shard: Shard, ids: Sequence[str]) -> RunScript[int]:
    """Add those of `ids` that are modules to the index of ids. The result is the number that was added."""
    return RunScript(shard, script("enlist"), (*shard.fixed, *pairs_of(shard, ids)), tuple(ids), parse_number)


def rank(shard: Shard, ids: Sequence[str]) -> RunScript[Ranking]:
    """Rank those of `ids` that are in hot or warm for the eviction policy of the shard."""

    def parse(reply: Any) -> Ranking:
        word_of(reply)
        return Ranking(int(reply[1]), reply[2] == b"1")

    return RunScript(shard, script("rank"), (*shard.fixed, *pairs_of(shard, ids)), tuple(ids), parse)


def redirty(shard: Shard, id: str, write_id: str) -> RunScript[Applied | Refused]:
    """Make a clean version dirty, so that it is archived again from its copy in Redis.

    The second of two transmissions gets the refusal `CHANGED`.
    """
    keys = (*shard.fixed, *pairs_of(shard, [id]))
    return RunScript(shard, script("redirty"), keys, (id, write_id), parse_change)  # type: ignore[arg-type]


def account(
    shard: Shard, sums: Mapping[str, int], changed: Sequence[str], last_event: str, *, repair: bool
) -> RunScript[dict[str, int] | Moving]:
    """Return the errors of the accounts (stored minus counted).

    Args:
        shard: the shard.
        sums: the recount of all records but those of `changed`.
        changed: ids that changed during the recount, which the script counts itself.
        last_event: the last event of the shard at the recount. A later one makes the result `Moving`.
        repair: set the accounts to the recount.
    """

    def parse(reply: Any) -> dict[str, int] | Moving:
        if word_of(reply) == "CHANGED":
            return Moving()
        return {name.decode(): int(off) for name, off in zip(reply[1::2], reply[2::2], strict=True)}

    keys = (*shard.fixed, *(shard.module(id) for id in changed))
    flat = tuple(word for item in sums.items() for word in item)
    return RunScript(shard, script("account"), keys, (int(repair), last_event, *changed, *flat), parse)
