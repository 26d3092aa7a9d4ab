"""Rescue: all records rebuilt from the archive alone, after Redis is lost.

One listing of the namespace is compared with the records, in batches. What Redis lacks, or has in an older version, is
adopted as cold; nothing is ever made older. It may be stopped anywhere and run again: what was adopted is skipped by the
comparison. Reads are correct meanwhile (see `recover`); when it ends, each shard is marked `verified` and reads need no
look into the archive any more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from distier.domain import archived as names
from distier.domain.keys import Shard
from distier.effects import ArchiveList, Command, Parallel, Pipeline, Plan, collect
from distier.errors import Corrupt, Invalid, Recovering
from distier.lua import Adoption, Refused, adopt
from distier.lua import state as shard_state

from .records import chunks
from .recover import newest_of
from .space import Space

BATCH = 512


@dataclass
class Rescued:
    """What a rescue found and did. `adopted`: modules whose records were made or replaced; `known`: those that Redis had
    already; `unreadable`: ids (or directories) whose newest version is damaged, with why."""

    objects: int = 0
    modules: int = 0
    adopted: int = 0
    known: int = 0
    deleted: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


@dataclass
class _Group:
    """The objects of one module, as listed."""

    directory: str
    id: str
    objects: list[names.VersionObject] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def newest(self) -> names.VersionObject | None:
        present = [o for o in self.objects if o.kind != "meta"]
        return max(present, key=lambda o: o.order) if present else None


def rescue(space: Space, tell: Callable[[Rescued], None] = lambda _: None, *, dry_run: bool = False) -> Plan[Rescued]:
    """Rebuild the records of the namespace. `tell` is called after each batch. Raises `Unavailable`; modules that cannot
    be read are reported, and keep the namespace from being marked verified."""
    report = Rescued()
    epochs = {}
    for shard in space.keys.shards:
        epochs[shard] = (yield from shard_state(shard)).epoch
    prefix, after = names.modules_prefix(space.namespace), ""
    groups: list[_Group] = []
    while True:
        page = yield from ArchiveList(prefix, start_after=after)
        for entry in page:
            report.objects += 1
            _sort_in(space, groups, entry.key, entry.size_bytes, report)
        ready = len(groups) if not page else len(groups) - 1  # the last one may go on
        if ready >= BATCH or not page:
            batch, groups = groups[:ready], groups[ready:]
            yield from _reconcile(space, epochs, batch, report, dry_run=dry_run)
            tell(report)
        if not page:
            break
        after = page[-1].key
    if not dry_run and not report.unreadable:
        for shard, epoch in epochs.items():
            yield from _adopt(space, shard, epoch, [], whole=True)
    return report


def _sort_in(space: Space, groups: list[_Group], key: str, size_bytes: int, report: Rescued) -> None:
    found = names.parse_key(key)
    if found is None:
        return
    if not groups or groups[-1].directory != found.directory:
        try:
            id = names.id_of(space.namespace, found.directory)
        except Invalid as e:
            report.unreadable.setdefault(found.directory, str(e))
            return
        groups.append(_Group(found.directory, id))
    groups[-1].objects.append(found)
    groups[-1].sizes[key] = size_bytes


def _reconcile(
    space: Space, epochs: dict[Shard, int], groups: Sequence[_Group], report: Rescued, *, dry_run: bool
) -> Plan[None]:
    wanted = yield from _not_known(space, [g for g in groups if g.newest], report)
    if dry_run:
        report.adopted += len(wanted)
        return
    plans = [newest_of(space, g.id, g.objects, g.sizes) for g in wanted]
    found: dict[Shard, list[Adoption]] = {}
    for group, result in zip(wanted, (yield from Parallel(plans)), strict=True):
        if isinstance(result, Corrupt):
            report.unreadable[group.id] = str(result)
            continue
        found.setdefault(space.shard(group.id), []).append(collect(result))
    for shard, adoptions in found.items():
        for part in chunks(adoptions, 200):
            report.adopted += yield from _adopt(space, shard, epochs[shard], part)


def _not_known(space: Space, groups: Sequence[_Group], report: Rescued) -> Plan[list[_Group]]:
    """The modules of which Redis has no version as great as the archive's."""
    calls: list[Command[tuple[int, int, str]]] = []
    for group in groups:
        shard = space.shard(group.id)
        words = ("HMGET", shard.module(group.id), "epoch", "ver", "tok")
        calls.append(Command(shard, words, lambda r: (int(r[0] or 0), int(r[1] or 0), (r[2] or b"").decode()[:8])))
    wanted = []
    for group, reply in zip(groups, (yield from Pipeline(calls)), strict=True):
        newest = group.newest
        assert newest is not None
        report.modules += newest.kind == "content"
        report.deleted += newest.kind == "deleted"
        if tuple(newest.order) > collect(reply):
            wanted.append(group)
        else:
            report.known += 1
    return wanted


def _adopt(space: Space, shard: Shard, epoch: int, found: Sequence[Adoption], *, whole: bool = False) -> Plan[int]:
    reply = yield from adopt(shard, epoch, found, whole=whole)
    space.states.pop(shard, None)
    if isinstance(reply, Refused):
        raise Recovering("Redis was lost again during the rescue; run it again")
    return reply.adopted
