"""Leases of shards and nodes, and the ledger of the shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distier.domain.keys import Shard
from distier.domain.outcome import Refusal
from distier.effects import Arg, RunScript
from distier.errors import Invalid
from distier.lua.loader import script
from distier.lua.replies import Over, Refused, over_of, refused_of, word_of


def ledger(
    shard: Shard, version: int, write_id: str, fields: Mapping[str, str], *, fence: str = "", above: int | None = None
) -> RunScript[int | Refused]:
    """Change the ledger of shares that was read at `version` (0: there was none); the new version. With `above` it is made
    anew, under a version that is greater than that."""

    def parse(reply: Any) -> int | Refused:
        word = word_of(reply)
        if word == "TOO_MUCH":
            raise Invalid(
                f"the shares of namespace {shard.namespace!r} would be more than its budgets; this is a fault"
            )
        return int(reply[1]) if word == "OK" else Refused(Refusal(word))

    flat: list[Arg] = [word for item in fields.items() for word in item]
    args: tuple[Arg, ...] = (version, write_id, fence, "" if above is None else above, *flat)
    return RunScript(shard, script("ledger"), (*shard.fixed, shard.quotas), args, parse)


def limit(shard: Shard, version: int, amounts: Sequence[int] = ()) -> RunScript[tuple[int, ...] | Over | Refused]:
    """Set this shard's share as of a version of the ledger; its limits, `Over` where it still holds more."""

    def parse(reply: Any) -> tuple[int, ...] | Over | Refused:
        word = word_of(reply)
        if word == "OVER":
            return over_of(reply)
        return tuple(int(n) for n in reply[1:]) if word == "OK" else refused_of(word, reply)

    return RunScript(shard, script("limit"), shard.fixed, (version, *amounts), parse)


def claim(shard: Shard, worker: str, ttl_ms: int) -> RunScript[int | None]:
    """The fence of this worker's lease of the shard; None where another one has it."""

    def parse(reply: Any) -> int | None:
        return int(reply[1]) if word_of(reply) == "OK" else None

    return RunScript(shard, script("claim"), (*shard.fixed, shard.worker_lease), (worker, ttl_ms), parse)


def heartbeat(shard: Shard, worker: str, ttl_ms: int) -> RunScript[list[str]]:
    """The workers that live, this one among them; 0 ms: it leaves."""

    def parse(reply: Any) -> list[str]:
        word_of(reply)
        return [name.decode() for name in reply[1]]

    return RunScript(shard, script("heartbeat"), (*shard.fixed, shard.workers), (worker, ttl_ms), parse)
