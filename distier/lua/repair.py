"""What `fsck` compares and repairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.effects import RunScript
from distier.lua.loader import script
from distier.lua.replies import Applied, Mended, Moving, Refused, pairs_of, parse_change, word_of


def mend(shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    """What does not fit together of the records and copies of these modules; with `repair`, put right as far as it needs
    no content."""
    return _mending("mend", shard, ids, repair=repair)


def reindex(shard: Shard, ids: Sequence[str], *, repair: bool) -> RunScript[list[Mended]]:
    """Where the sets do not agree with the records of these modules; with `repair`, made to."""
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


def redirty(shard: Shard, id: str, write_id: str) -> RunScript[Applied | Refused]:
    """Have this version archived anew from its copy here. Sent twice, the second finds it done: `CHANGED`."""
    keys = (*shard.fixed, *pairs_of(shard, [id]))
    return RunScript(shard, script("redirty"), keys, (id, write_id), parse_change)  # type: ignore[arg-type]


def account(
    shard: Shard, sums: Mapping[str, int], changed: Sequence[str], last_event: str, *, repair: bool
) -> RunScript[dict[str, int] | Moving]:
    """What the accounts are off by (kept less counted): `sums` is the recount of all records but those of `changed`."""

    def parse(reply: Any) -> dict[str, int] | Moving:
        if word_of(reply) == "CHANGED":
            return Moving()
        return {name.decode(): int(off) for name, off in zip(reply[1::2], reply[2::2], strict=True)}

    keys = (*shard.fixed, *(shard.module(id) for id in changed))
    flat = tuple(word for item in sums.items() for word in item)
    return RunScript(shard, script("account"), keys, (int(repair), last_event, *changed, *flat), parse)
