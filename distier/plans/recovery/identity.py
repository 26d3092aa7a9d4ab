"""Is this the archive of the namespace?

A disk that is not mounted leaves an empty directory, and a wrong URL names an empty bucket. Both reply, hold nothing, and
take every write: all archived modules would seem deleted, and what is archived there is missing when the right one returns.
So an archive is named. The name is an object, `<ns>/identity/<name>`, and the field `archive` of each shard's epoch says
which one it must have. A process that finds no name in a shard takes the least that the archive has, or makes one: first the
object, then the field, by HSETNX. A name in Redis is thus in the archive already, and of several creators each accepts what
the first one wrote; the objects of the others mean nothing. (Rejected: one object that is created by a conditional PUT,
which servers ignore.)

After a total loss of Redis the name of the archive is taken over. A namespace without a name in either is new, or from
before there were names. Then the epochs of its shards must have been claimed in this archive, and it must have modules where
the records say that some are archived.

No read or put asks for the name. It is compared where a store is opened, in the worker's rounds, and by `distier doctor`.
Two more steps notice at no cost that the archive lacks what it must have: a claim of an epoch, and a durable write
(`epochs.list_epochs`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from distier.domain.keys import Shard
from distier.effects import ArchiveList, ArchivePut, Command, Count, NewToken, Pipeline, Plan, collect
from distier.errors import DistierError
from distier.plans.common.namespace import Namespace
from distier.plans.recovery.epochs import WrongArchive, epochs_prefix, list_epochs
from distier.plans.recovery.packs import has_modules

ADVICE = (
    "is its disk not mounted, or its url another one? If this archive is meant to take the place of the old one, say so with "
    "`distier archive adopt`"
)


class _Known(NamedTuple):
    """What Redis has of a shard's archive."""

    epoch: int
    name: str
    replid: str
    archived: int


def identity_prefix(space: Namespace) -> str:
    return f"{space.namespace}/identity/"


def check_archive(space: Namespace, shards: Sequence[Shard] = (), *, name: bool = True) -> Plan[bool]:
    """Raise `WrongArchive` where this is not the archive of these shards (all, if none are given).

    Names it where nobody has, unless told not to. Returns whether it is named now. A shard whose server does not reply at
    once is skipped.
    """
    known = yield from _known(space, shards or space.keys.shards)
    listed = yield from _listed(space)
    missing = sorted({k.name for k in known.values() if k.name} - set(listed))
    if missing:
        what = (
            f"it has another identity ({listed[0]})" if listed else "it is empty, or was never used for this namespace"
        )
        raise WrongArchive(
            f"this is not the archive of namespace {space.namespace!r}: {what}, and Redis says {missing[0]}; {ADVICE}"
        )
    unnamed = {shard: k for shard, k in known.items() if not k.name}
    if unnamed:
        yield from _check_unnamed(space, unnamed)
        if name:
            yield from _name(space, list(unnamed), listed)
    return not unnamed or name


def try_archive(space: Namespace, shards: Sequence[Shard] = ()) -> Plan[None]:
    """Run `check_archive` where the archive may be away or read-only: other calls report that."""
    try:
        yield from check_archive(space, shards)
    except WrongArchive:
        raise
    except DistierError:
        yield Count("archive.not_identified")


def adopt_archive(space: Namespace) -> Plan[str]:
    """Make this the archive of the namespace, whatever it holds. Returns its name.

    Readers lose what only the old one had (`fsck` lists it), and what this one has is compared with the records.
    """
    listed = yield from _listed(space)
    name = listed[0] if listed else (yield from _make(space))
    for shard, known in (yield from _known(space, space.keys.shards)).items():
        fields: tuple[str, ...] = ("archive", name)
        if known.epoch:
            # An empty archive must have the installed epoch too: later claims are above it.
            if not (yield from list_epochs(space, shard, known.epoch - 1)):
                write_id, incarnation = (yield from NewToken())[:8], f"-{known.replid[:16]}" if known.replid else ""
                key = f"{epochs_prefix(space, shard)}{known.epoch:08d}-{write_id}{incarnation}"
                yield from ArchivePut(key, b"", "application/octet-stream", {})
            fields += ("verified", "0")
        yield from Command(shard, ("HSET", shard.epoch, *fields), lambda reply: reply)
    space.process.epochs.clear()
    return name


def _known(space: Namespace, shards: Sequence[Shard]) -> Plan[dict[Shard, _Known]]:
    def epoch(reply: Sequence[bytes | None]) -> tuple[int, str, str]:
        number, name, replid = ((value or b"").decode() for value in reply)
        return int(number or 0), name, replid

    calls = list[Command[Any]]()
    for shard in shards:
        command = ("HMGET", shard.epoch, "epoch", "archive", "replid")
        calls.append(Command(shard, command, epoch, retry=False))
        calls.append(Command(shard, ("HGET", shard.usage, "archived_count"), lambda n: int(n or 0), retry=False))
    replies = yield from Pipeline(calls)
    found: dict[Shard, _Known] = {}
    for shard, first, count in zip(shards, replies[::2], replies[1::2], strict=True):
        if not isinstance(first, DistierError) and not isinstance(count, DistierError):
            number, name, replid = first
            found[shard] = _Known(number, name, replid, count)
    if not found:
        collect(replies[0])
    return found


def _listed(space: Namespace) -> Plan[list[str]]:
    """List the archive's names, in order. Other files there, such as an operating system's, are none."""
    prefix = identity_prefix(space)
    found = [entry.key.removeprefix(prefix) for entry in (yield from ArchiveList(prefix))]
    return [name for name in found if re.fullmatch("[0-9a-f]{32}", name)]


def _check_unnamed(space: Namespace, unnamed: dict[Shard, _Known]) -> Plan[None]:
    """Raise `WrongArchive` where this archive cannot be the one of these shards."""
    for shard, known in unnamed.items():
        if known.epoch and not (yield from list_epochs(space, shard, known.epoch - 1)):
            raise WrongArchive(
                f"this is not the archive of namespace {space.namespace!r}: it has no epoch {known.epoch}, in which shard "
                f"{shard.index} is; {ADVICE}"
            )
    if not any(known.archived for known in unnamed.values()):
        return
    if not (yield from has_modules(space)):
        raise WrongArchive(
            f"this is not the archive of namespace {space.namespace!r}: it has no module, and the records say that some are "
            f"archived; {ADVICE}"
        )


def _make(space: Namespace) -> Plan[str]:
    name = yield from NewToken()
    yield from ArchivePut(identity_prefix(space) + name, b"", "application/octet-stream", {})
    return name


def _name(space: Namespace, shards: Sequence[Shard], listed: Sequence[str]) -> Plan[None]:
    name = listed[0] if listed else (yield from _make(space))
    calls = [Command(shard, ("HSETNX", shard.epoch, "archive", name), bool) for shard in shards]
    first = [collect(reply) for reply in (yield from Pipeline(calls))]
    if not all(first):  # another process was first: its name must be here too, or it has another archive
        yield from check_archive(space, shards, name=False)
