"""Scripts for the leases and heartbeats of workers, and for the ledger of the shards' quotas."""

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
    """Change the ledger of quotas that was read at `version` (0 if there was none). The result is the new version.

    With `above` the ledger is created again, with a version greater than `above`.
    """

    def parse(reply: Any) -> int | Refused:
        word = word_of(reply)
        if word == "TOO_MUCH":
            raise Invalid(
                f"the quotas of namespace {shard.namespace!r} would exceed its budgets; this is a bug in distier"
            )
        return int(reply[1]) if word == "OK" else Refused(Refusal(word))

    flat: list[Arg] = [word for item in fields.items() for word in item]
    args: tuple[Arg, ...] = (version, write_id, fence, "" if above is None else above, *flat)
    return RunScript(shard, script("ledger"), (*shard.fixed, shard.quotas), args, parse)


def limit(shard: Shard, version: int, amounts: Sequence[int] = ()) -> RunScript[tuple[int, ...] | Over | Refused]:
    """Set this shard's quota to that of a version of the ledger.

    The result has the shard's limits, or is `Over` if the shard holds more than the quota.
    """

    def parse(reply: Any) -> tuple[int, ...] | Over | Refused:
        word = word_of(reply)
        if word == "OVER":
            return over_of(reply)
        return tuple(int(n) for n in reply[1:]) if word == "OK" else refused_of(word, reply)

    return RunScript(shard, script("limit"), shard.fixed, (version, *amounts), parse)


def claim(shard: Shard, worker: str, ttl_ms: int) -> RunScript[int | None]:
    """Take or renew the lease of a shard for a worker. The result is the lease's fence; None if another worker has it."""

    def parse(reply: Any) -> int | None:
        return int(reply[1]) if word_of(reply) == "OK" else None

    return RunScript(shard, script("claim"), (*shard.fixed, shard.worker_lease), (worker, ttl_ms), parse)


def heartbeat(shard: Shard, worker: str, ttl_ms: int) -> RunScript[list[str]]:
    """Report that a worker is alive for the next `ttl_ms`; 0 signs it off. The result lists all workers that are alive."""

    def parse(reply: Any) -> list[str]:
        word_of(reply)
        return [name.decode() for name in reply[1]]

    return RunScript(shard, script("heartbeat"), (*shard.fixed, shard.workers), (worker, ttl_ms), parse)
