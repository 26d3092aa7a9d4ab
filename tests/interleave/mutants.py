"""Deliberate bugs: one step of the protocol each, patched in the text of a script or in one plan.

A mutant that the explorer does not catch shows a gap in the explorer. A patch that finds nothing to patch is an error
(`wire.patched`). `scenarios` are those that catch the mutant soonest; `model` is its name in `tests/model`, if it exists there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from distier.domain import archived as names
from distier.domain import codec
from distier.domain.keys import Shard
from distier.domain.module import Record
from distier.domain.packs import Pack
from distier.effects import ArchiveDelete, ArchiveList, Plan
from distier.errors import NotFound, Recovering
from distier.lua import Adoption, Replayed, adopt, archived
from distier.lua import pin as pin_script
from distier.plans.common.commands import record_command
from distier.plans.common.namespace import Located, Namespace
from distier.plans.fleet import dictionaries, maintain, packing, sweep
from distier.plans.fleet.sweep import _records
from distier.plans.get.one import is_still
from distier.plans.put import delete as delete_plans
from distier.plans.put.delete import delete
from distier.plans.put.durable import is_settled, reserve_position
from distier.plans.put.prepare import ArchivedPosition
from distier.plans.recovery import describe, epochs, packs, walk
from distier.plans.recovery.adopt import settle_record
from distier.plans.recovery.adopt import verify as verify_plan
from distier.plans.recovery.epochs import Claim, _claim, list_epochs, shard_state
from distier.plans.recovery.manifest import Replacing, list_manifest
from distier.plans.recovery.walk import Group
from distier.plans.tier import demote, load, writeback
from distier.plans.tier.promote import pin as pin_plan
from distier.plans.tier.promote import promote
from distier.plans.tier.writeback import Archived, Uploaded, put_object
from tests.patching import replace_in

from .wire import Patch

PUT = "distier.plans.put"

Damage = Callable[[pytest.MonkeyPatch], None]


@dataclass(frozen=True)
class Mutant:
    name: str
    scenarios: tuple[str, ...]
    patches: tuple[Patch, ...] = ()
    damage: Damage | None = None
    model: str = ""
    first_seed: int = 0
    """Where the search starts: shortly before the seed that catches a mutant which few seeds catch. It goes on from there, and
    then takes the seeds before it, so that a changed plan costs time and not the result."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            if self.damage:
                self.damage(patch)
            yield


def _no_look(patch: pytest.MonkeyPatch) -> None:
    """No look for a newer epoch before a durable write is acknowledged."""

    def none(*_: Any, **__: Any) -> Plan[list[int]]:
        yield from ()
        return []

    replace_in(PUT, list_epochs, none, patch.setattr)


def _version_only_keys(patch: pytest.MonkeyPatch) -> None:
    """Object names lack the epoch and the write id, so two incarnations of Redis write the same name."""
    real = names.content_key

    def key(namespace: str, record: Record) -> str:
        return real(
            namespace,
            record.__class__(**{**_fields(record), "order": record.order._replace(epoch=1, write_id="0" * 32)}),
        )

    patch.setattr(names, "content_key", key)


def _fields(record: Record) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _sweep_by_reference(patch: pytest.MonkeyPatch) -> None:
    """The sweep deletes every object that no record uses, even the greatest."""

    def unneeded(space: Namespace, groups: Any, now_ms: int, skipped: Any) -> Plan[list[str]]:
        keys: list[str] = []
        for group, (position, _) in zip(groups, (yield from _records(space, groups)), strict=True):
            keys += [o.key for o in group.objects if o.order != position]
        return keys

    patch.setattr(sweep, "unneeded", unneeded)


def _sweep_uncommitted(patch: pytest.MonkeyPatch) -> None:
    """A greater object dominates even without a record of it (an old bug)."""

    def unneeded(space: Namespace, groups: Any, now_ms: int, skipped: Any) -> Plan[list[str]]:
        yield from ()
        return [key for group in groups for key in names.dominated(group.objects)]

    patch.setattr(sweep, "unneeded", unneeded)


def _no_archived_tombstone(patch: pytest.MonkeyPatch) -> None:
    """A delete leaves no tombstone in the archive."""
    real = put_object

    def broken(space: Namespace, record: Record, key: str, body: bytes) -> Plan[None]:
        if not record.deleted:
            yield from real(space, record, key, body)

    replace_in("distier.plans", real, broken, patch.setattr)


def _commit_before_put(patch: pytest.MonkeyPatch) -> None:
    """Write-back marks a version as archived before the object exists."""
    real = put_object

    def broken(space: Namespace, record: Record, key: str, body: bytes) -> Plan[None]:
        yield from archived(space.shard(record.id), record.id, record.order, len(body))
        yield from real(space, record, key, body)

    patch.setattr(writeback, "put_object", broken)


def _no_verify(patch: pytest.MonkeyPatch) -> None:
    """Records of an older epoch are served without a comparison, and marked as checked."""

    def verify(at: Located) -> Plan[None]:
        known = yield from shard_state(at.space, at.shard)
        yield from adopt(at.shard, known.epoch, [Adoption(at.id)])

    replace_in("distier.plans.recovery.adopt", verify_plan, verify, patch.setattr)
    replace_in(PUT, verify_plan, verify, patch.setattr)


def _epoch_found(patch: pytest.MonkeyPatch) -> None:
    """A recovering client installs the greatest epoch that it finds, instead of claiming a new one."""
    real = _claim

    def claim(space: Namespace, shard: Any, replid: str, last: int) -> Plan[Claim | None]:
        known = yield from list_epochs(space, shard, 0)
        if not known:
            return (yield from real(space, shard, replid, last))
        return Claim(max(known), False)

    patch.setattr(epochs, "_claim", claim)


def _claims_fence(patch: pytest.MonkeyPatch) -> None:
    """An epoch that was claimed for the same incarnation and never installed fences durable writes (an old bug)."""
    real = list_epochs
    replace_in(PUT, real, lambda space, shard, above, **_: real(space, shard, above), patch.setattr)


def _takes_back(patch: pytest.MonkeyPatch) -> None:
    """A refused durable write deletes its object, which another client may have adopted (an old bug)."""

    def take_back(at: Located, position: ArchivedPosition) -> Plan[bool]:
        yield from ArchiveDelete([position.key])
        return True

    replace_in(PUT, is_settled, take_back, patch.setattr)


def _not_settled(patch: pytest.MonkeyPatch) -> None:
    """A refused durable write raises `Conflict` at once (an old bug)."""

    def done(*_: Any) -> Plan[bool]:
        yield from ()
        return True

    replace_in(PUT, is_settled, done, patch.setattr)


def _no_write_back(patch: pytest.MonkeyPatch) -> None:
    """A demotion to cold does not write back first."""

    def done(at: Located) -> Plan[Archived]:
        yield from ()
        return Archived(at.id, "", "", 0)

    patch.setattr(demote, "write_back", done)


def _proof_after_read(patch: pytest.MonkeyPatch) -> None:
    """A record, or its absence, is judged by what is known about the shard after the read (an old bug)."""
    real = settle_record

    def settle(at: Located, record: Record | None, known: Any, **how: bool) -> Plan[Record | None]:
        return real(at, record, at.space.process.epochs.get(at.shard), **how)

    replace_in("distier.plans", real, settle, patch.setattr)


def _puts_again(patch: pytest.MonkeyPatch) -> None:
    """A durable write that finds a newer epoch reserves another position and continues (an old bug)."""
    real = reserve_position

    def again(at: Located, expected: str, write_id: str, first: Any = None) -> Plan[Any]:
        return real(at, expected, write_id)

    replace_in(PUT, real, again, patch.setattr)


def _checks_elsewhere(patch: pytest.MonkeyPatch) -> None:
    """A write asks whether its object was adopted after it reserved a position, even on another server (an old bug)."""
    real = reserve_position

    def again(at: Located, expected: str, write_id: str, first: Any = None) -> Plan[Any]:
        reserved = yield from real(at, expected, write_id)
        if first is None:
            return reserved
        record = yield from record_command(at.shard, at.id)
        if record is not None and record.order.write_id[:8] == write_id[:8]:
            return Replayed(*record.order[:2], "cold")
        if (record is not None and record.order[:2] > first[:2]) or reserved.epoch <= first.epoch:
            raise Recovering("not known")
        return reserved

    replace_in(PUT, real, again, patch.setattr)


def _trusts_missing(patch: pytest.MonkeyPatch) -> None:
    """`pin` takes a MISSING of its script for a proof (an old bug)."""

    def pin(space: Namespace, id: str, ttl_ms: int) -> Plan[int]:
        yield from promote(space, id)
        until = yield from pin_script(space.shard(id), id, ttl_ms)
        if until is None:
            raise NotFound(id)
        return until

    replace_in("tests.interleave", pin_plan, pin, patch.setattr)


def _suspect_unread(patch: pytest.MonkeyPatch) -> None:
    """A suspect of the near cache is served whatever the record says."""
    replace_in("distier.plans.get", is_still, lambda suspect, fields, known: bool(fields), patch.setattr)


def _suspect_of_any_epoch(patch: pytest.MonkeyPatch) -> None:
    """A suspect is served if the record has its version, even if that record was never compared with the archive."""
    real = is_still

    def still(suspect: Any, fields: Any, known: Any) -> bool:
        return real(suspect, {**fields, b"seen": b"999999"} if fields else fields, known)

    replace_in("distier.plans.get", real, still, patch.setattr)


def _suspect_by_write_id(patch: pytest.MonkeyPatch) -> None:
    """A suspect is served if the record has its write id. A write that is sent again keeps its id at another position."""

    def still(suspect: Any, fields: Any, known: Any) -> bool:
        current = fields and (known.verified >= known.epoch or int(fields[b"seen"]) >= known.epoch)
        return bool(current) and fields[b"tok"].decode() == suspect.version.write_id

    replace_in("distier.plans.get", is_still, still, patch.setattr)


def _any_frame(patch: pytest.MonkeyPatch) -> None:
    """A reader takes every frame for one of the record's version."""
    replace_in("distier.domain.codec", codec.names_version, lambda frame, write_id: True, patch.setattr)


def _drops_named(patch: pytest.MonkeyPatch) -> None:
    """The search for records that name a dictionary sees none."""
    patch.setattr(dictionaries, "WITH_DICTIONARY", "another:")


UNHELD = "if position ~= ver or holder ~= write_id then return {'UNHELD'} end"


def _commit_before_segment(patch: pytest.MonkeyPatch) -> None:
    """A stop between the two leaves a clean version that the manifest does not name."""
    real = writeback.commit

    def commit(space: Namespace, shard: Shard, uploaded: Sequence[Uploaded]) -> Plan[Any]:
        for one in uploaded:
            yield from archived(shard, one.record.id, one.record.order, one.size_bytes)
        return (yield from real(space, shard, uploaded))

    patch.setattr(writeback, "commit", commit)


def _delete_by_interval(patch: pytest.MonkeyPatch) -> None:
    """A compactor takes away what came since it began."""

    def end(run: Replacing) -> Plan[bool]:
        files = [entry.key for entry in (yield from list_manifest(run._space))]
        if not (yield from run.write()):
            return False
        files += [
            entry.key
            for entry in (yield from list_manifest(run._space))
            if "/seg-" in entry.key or "/row-" in entry.key
        ]
        yield from ArchiveDelete(files)
        return True

    patch.setattr(Replacing, "end", end)


def _packs_unlisted(patch: pytest.MonkeyPatch) -> None:
    """A module is looked for among objects of their own alone."""

    def none(*_: Any) -> Plan[list[Any]]:
        yield from ()
        return []

    replace_in("distier.plans.recovery", packs.packed_rows, none, patch.setattr)


def _packs_first(patch: pytest.MonkeyPatch) -> None:
    """A module is looked for in packs first, and then among objects of their own."""

    def list_module(space: Namespace, id: str) -> Plan[Group]:
        rows = (yield from packs.packed_rows(space, id)) or []
        group = yield from walk._list_objects(space, id)
        group.add_packed(space.namespace, rows)
        return group

    replace_in("distier.plans", walk.list_module, list_module, patch.setattr)


def _empty_without_packs(patch: pytest.MonkeyPatch) -> None:
    """An archive whose modules are all in packs counts as empty (an old bug)."""

    def has_modules(space: Namespace) -> Plan[bool]:
        return bool((yield from ArchiveList(names.modules_prefix(space.namespace), limit=1)))

    replace_in("distier.plans.recovery", packs.has_modules, has_modules, patch.setattr)


def _no_index(patch: pytest.MonkeyPatch) -> None:
    """Objects are deleted although the pack that has their versions is not finished."""
    real = Pack.index_key
    patch.setattr(Pack, "index_key", lambda pack, namespace, paths: f"{real(pack, namespace, paths)}.part")


def _not_looked_for(patch: pytest.MonkeyPatch) -> None:
    """A version that has left its place for a pack is reported as lost."""

    def none(*_: Any) -> Plan[None]:
        yield from ()

    replace_in("distier.plans", load.look_for, none, patch.setattr)


def _replaces_unasked(patch: pytest.MonkeyPatch) -> None:
    """What has a greater version in the archive is left out of packs, whether or not that one is committed."""

    def unneeded(space: Namespace, groups: Any, *_: Any) -> Plan[tuple[list[str], list[str]]]:
        yield from ()
        keys = [key for group in groups for key in names.dominated(group.objects)]
        packed = {key for group in groups for key in group.rows}
        return [key for key in keys if key not in packed], [key for key in keys if key in packed]

    patch.setattr(packing, "unneeded_versions", unneeded)


def _no_late_look(patch: pytest.MonkeyPatch) -> None:
    """A rescue does not look for packs that were made while it listed the objects."""
    real = walk.ArchiveWalk.__init__
    patch.setattr(walk.ArchiveWalk, "__init__", lambda self, space, *, late=False: real(self, space))


def _superseded_unlisted(patch: pytest.MonkeyPatch) -> None:
    """A sweep deletes a pack because of a later one, whose rows are not in the manifest yet (an old bug)."""
    patch.setattr(sweep, "announce", packs.refer_to_packs)


def _deletes_unasked(patch: pytest.MonkeyPatch) -> None:
    """The worker deletes a module that has expired, whatever its version is by then."""

    def unasked(space: Namespace, id: str, version: Any, durability: Any) -> Plan[bool]:
        return delete(space, id, None, durability)

    patch.setattr(maintain, "delete", unasked)


def _nothing_unlooked(patch: pytest.MonkeyPatch) -> None:
    """A durable delete that finds nothing does not look for a newer epoch (an old bug)."""

    def is_primary(at: Located) -> Plan[bool]:
        yield from ()
        return True

    patch.setattr(delete_plans, "_is_primary", is_primary)


def _forgets_ttl(patch: pytest.MonkeyPatch) -> None:
    """A version that is adopted from the archive has no TTL."""
    patch.delitem(describe._FIELDS, "ttl")


MUTANTS: tuple[Mutant, ...] = (
    Mutant("deletes-unasked", ("ttl/put",), (), _deletes_unasked, model="expires_any"),
    Mutant("forgets-ttl", ("ttl/adopt", "ttl/rescue"), (), _forgets_ttl),
    Mutant("packs-unlisted", ("packs/adopt",), (), _packs_unlisted),
    Mutant("packs-first", ("packs/adopt", "packs/rescue"), (), _packs_first, model="packs_first", first_seed=2870),
    Mutant("empty-without-packs", ("packs/get", "packs/sweep"), (), _empty_without_packs),
    Mutant("no-index", ("packs/get", "packs/adopt"), (), _no_index),
    Mutant("not-looked-for", ("packs/get",), (), _not_looked_for, model="reads_once"),
    Mutant("replaces-unasked", ("packs/unapplied", "packs/replace"), (), _replaces_unasked, model="rewrites_unasked"),
    Mutant("superseded-unlisted", ("packs/sweep",), (), _superseded_unlisted,
           model="supersedes_unlisted", first_seed=1900),
    Mutant("no-late-look", ("packs/rescue-alone",), (), _no_late_look, model="no_late_look"),
    Mutant("commit-before-segment", ("put/write-back", "manifest/write-back/compact"), (), _commit_before_segment),
    Mutant("delete-by-interval", ("manifest/write-back/compact", "manifest/compact/sweep"), (), _delete_by_interval),
    Mutant("ttl-on-dirty", ("demote/put", "demote/write-back/expire"), (
        ("prelude", "if clean then call('PEXPIRE', frame_key, ttl) else", "if true then call('PEXPIRE', frame_key, ttl) else"),
    ), model="ttl_on_dirty"),
    Mutant("blind-demote", ("demote/put",), (
        ("prelude", "elseif m.was.write_id ~= m.write_id then m.why = 'changed'", "elseif false then"),
    )),
    Mutant("blind-archived", ("put/write-back",), (
        ("archived", "if old.write_id ~= ARGV[2] or old.version ~= ARGV[3] then return {'CHANGED'} end", ""),
    ), model="no_tok_check"),
    Mutant("blind-promote", ("promote/put", "get-warm/put/expire"), (
        ("promote", "if old.write_id ~= ARGV[2] or old.bytes ~= #ARGV[3] or", "if"),
    )),
    Mutant("blind-install", ("get-cold/put", "get-cold/delete"), (
        ("install", "if old.write_id ~= ARGV[2] or not is_allowed(ARGV[3], old.clean) or not old.clean or "
         "(old.tier ~= 'cold' and old.tier ~= 'warm') then", "if false then"),
    )),
    Mutant("no-replid", ("put-archived/claim/claim", "put-archived/put"), (
        ("prelude", "if not e[1] or incarnation ~= '' and e[3] ~= incarnation then", "if not e[1] then"),
    ), model="no_epoch"),
    Mutant("epoch-found", ("put-archived/claim/claim", "put/write-back"), (
        ("open", "claimed <= epoch", "claimed < epoch"),
    ), _epoch_found, model="epoch_reuse"),
    Mutant("version-only-keys", ("put/write-back", "put-archived/put-archived", "put-archived/put"), (), _version_only_keys,
           model="no_unique_key"),
    Mutant("sweep-by-reference", ("sweep/write-back", "sweep/put-archived"), (), _sweep_by_reference,
           model="gc_any_unreferenced"),
    Mutant("sweep-uncommitted", ("cas-archived/put/sweep", "cas-archived/cas-archived"), (), _sweep_uncommitted),
    Mutant("no-clean-tombstone", ("delete-archived/put-archived", "delete/put-archived"), (
        ("prelude", "  call('PEXPIRE', record, TOMBSTONE_TTL_MS)\nend", "  call('UNLINK', record)\nend"),
    ), model="early_tomb_gc"),
    Mutant("no-archived-tombstone", ("delete/write-back", "delete-archived/put"), (), _no_archived_tombstone,
           model="no_tombstone"),
    Mutant("no-look-for-epochs", ("put-archived/old-primary",), (), _no_look, model="no_validate",
           first_seed=5200),
    Mutant("nothing-unlooked", ("delete-archived/nothing/old-primary",), (), _nothing_unlooked,
           model="nothing_unlooked"),
    Mutant("waits-forever", ("sweep/put-archived/old-primary",), (
        ("adopt", "(holder ~= ARGV[3] or", "(true or"),
    ), model="waits_forever"),
    Mutant("blind-apply", ("put-archived/put", "put-archived/put-archived"), (
        ("prelude", "if comes_after(old, tonumber(epoch), ver) then", "if false then"),
    ), model="blind_apply"),
    Mutant("apply-in-any-epoch", ("put-archived/claim/claim", "put-archived/put-archived"), (
        ("prelude", "if reserved ~= current_epoch then return {'FENCED'} end", ""),
    )),
    Mutant("no-verify", ("adopt/put", "put-archived/put", "put/write-back"), (), _no_verify, model="no_verify"),
    Mutant("put-not-deduplicated", ("cas/cas",), (
        ("put", "if done then", "if false then"),
    )),
    Mutant("no-budget-check", ("two/evict",), (
        ("prelude", "if change > 0 and over[i] > 0 then fits = false end", ""),
    )),
    Mutant("accounting-omitted", ("demote/put",), (
        ("prelude", "add('warm_frame_bytes', sign * p.frame_bytes) add('dirty_count', sign)", "add('dirty_count', sign)"),
    )),
    Mutant("dirty-forgotten-at-put", ("put/put", "put/write-back"), (
        ("put", "else call('ZADD', DIRTY, 'NX', score(), id) end", "end"),
    )),
    Mutant("expire-calls-dirty-cold", ("demote/write-back/expire",), (
        ("prelude", "if clean then call('PEXPIRE', frame_key, ttl) else", "if true then call('PEXPIRE', frame_key, ttl) else"),
        ("expire", "elseif old.clean then", "else"),
        ("expire", "  else -- the only copy was deleted by others; checked again later\n"
         "    call('ZADD', WARM, now + tonumber(call('HGET', LIMITS, 'warm_ttl_ms')), id)\n", ""),
    )),
    Mutant("commit-before-put", ("put/write-back", "sweep/write-back"), (), _commit_before_put),
    Mutant("demote-dirty-to-cold", ("demote-cold/put",), (
        ("prelude", "elseif m.to == 'cold' and not m.was.clean then m.why = 'dirty'", ""),
    ), _no_write_back),
    Mutant("adopt-older", ("adopt/put", "rescue/put"), (
        ("adopt", "e == old.epoch and (v > old.ver\n", "true or e == old.epoch and (v > old.ver\n"),
    )),
    Mutant("claims-fence", ("claim/claim/put-archived",), (), _claims_fence),
    Mutant("archived-is-seen", ("delete/put-archived/replica",), (
        ("archived", "call('HSET', record, 'clean', '1')\n  call('PEXPIRE'",
         "call('HSET', record, 'clean', '1', 'seen', call('HGET', EPOCH, 'epoch'))\n  call('PEXPIRE'"),
    )),
    Mutant("drops-dirty", ("two/drop",), (
        ("prelude", "if m.was.tier == 'warm' and m.was.clean then", "if m.was.tier == 'warm' then"),
    )),
    Mutant("rank-stays", ("ranked/drop", "ranked/promote/delete"), (
        ("prelude", "  local was = tonumber(call('ZSCORE', rank, id) or nil)\n  call('ZREM', rank, id)", "  local was = nil"),
    )),
    Mutant("any-frame", ("get-warm/put/demote",), (), _any_frame),
    Mutant("index-forgets", ("put/write-back", "put/put"), (
        ("put", "    if chunk then divided", "    if false then divided"),
    )),
    Mutant("suspect-unread", ("near/put/demote", "near/many/put"), (), _suspect_unread),
    Mutant("suspect-of-any-epoch", ("near/epoch",), (), _suspect_of_any_epoch),
    Mutant("suspect-by-write-id", ("near/again",), (), _suspect_by_write_id, first_seed=2600),
    Mutant("not-settled", ("cas-archived/put/sweep", "cas-archived/cas-archived"), (), _not_settled, model="not_settled"),
    Mutant("takes-back", ("cas-archived/old-primary", "cas-archived/put/rescue"), (), _takes_back,
           model="takes_back", first_seed=9640),
    Mutant("nothing-reserved", ("delete-if-archived/put-archived", "cas-archived/cas-archived"), (
        ("prelude", UNHELD, ""),
    ), _not_settled, model="nothing_reserved"),
    Mutant("adopts-reserved", ("cas-archived/put/rescue",), (
        ("adopt", "newer and position > 0", "newer and false"),
    ), first_seed=1530),
    Mutant("proof-after-read", ("together/flush", "together/restart"), (), _proof_after_read),
    Mutant("acks-overtaken", ("put-archived/cas",), (
        ("prelude", UNHELD, "if position ~= ver or holder ~= write_id then\n    if comes_after(old, tonumber(epoch), ver) then "
         "return {'SUPERSEDED', old.version, '0'} end\n    return {'UNHELD'}\n  end"),
    ), model="acks_overtaken"),
    Mutant("puts-again", ("put-archived/epoch", "delete-archived/epoch"), (), _puts_again, model="puts_again"),
    Mutant("checks-elsewhere", ("delete-archived/epoch", "put-archived/epoch"), (), _checks_elsewhere,
           model="checks_elsewhere"),
    Mutant("deleted-twice", ("delete-archived/twice",), (("delete", "return {exists and 'OK' or 'GONE', version}",
                                                          "return {'OK', version}"),)),
    Mutant("trusts-missing", ("verbs/flush",), (), _trusts_missing),
    Mutant("install-after-flush", ("claim/claim/flush",), (("open", " or opening ~= ARGV[6] then", " then"),),
           model="install_after_flush"),
    Mutant("any-dictionary", ("dictionary/replace", "dictionary/put"), (
        ("prelude", "or clean and codec == 'lz4d:' .. dictionary", "or clean"),
    )),
    Mutant("drops-named", ("dictionary/replace", "dictionary/put"), (), _drops_named),
)  # fmt: skip
BY_NAME = {m.name: m for m in MUTANTS}
assert len(BY_NAME) == len(MUTANTS)
