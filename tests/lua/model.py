"""A model of a shard in plain Python, with which the scripts are compared.

It follows the scripts' headers and DESIGN, not their code. A change is made to a copy, budgets are compared before and after
by a recount, and the copy is kept or dropped as a whole. Times are left out.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distier.domain.order import Order
from distier.domain.schema import VICTIMS_WORTH, WORTH_FIRST, WORTH_MAX, WORTH_STEP
from distier.lua import Move
from distier.policy.admission import is_sampled
from distier.policy.eviction.rank import Policy, Ranked, size_of
from distier.policy.eviction.table import POLICIES

BUDGETS = {"hot_tokens": "hot_tokens", "hot_bytes": "hot_bytes", "warm_count": "warm_modules",
           "warm_frame_bytes": "warm_bytes"}  # fmt: skip


@dataclass(frozen=True)
class Rec:
    """A module, or its tombstone. `frame` is None if there is none. `lost` means that the frame's TTL has expired."""

    tier: str
    write_id: str
    version: str
    tokens: int = 0
    content: bytes = b""
    clean: bool = False
    codec: str = ""
    frame: bytes | None = None
    lost: bool = False
    archived_bytes: int = 0
    fields: tuple[tuple[str, str], ...] = ()
    moved: str = ""

    @property
    def alive(self) -> bool:
        return self.tier != "deleted"


@dataclass
class Over:
    """The result of a call that changed nothing: by how much it would exceed each budget."""

    over: tuple[int, ...]


@dataclass
class Model:
    """One shard. Methods return what the script must return: a word and values, or `Over`."""

    limits: dict[str, int]
    records: dict[str, Rec] = field(default_factory=dict)
    uses: dict[str, float] = field(default_factory=dict)
    pins: dict[str, bool] = field(default_factory=dict)
    done: dict[str, str] = field(default_factory=dict)
    leases: dict[str, str] = field(default_factory=dict)
    events: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    ver: int = 0
    due: Sequence[str] = ()
    """The ids in warm before the call, in the order in which they are due: times are left out of the model."""
    lru: Sequence[str] = ()
    """The ids in hot before the call, in the order of eviction."""
    policy: Policy = POLICIES["lru"]
    ranks: dict[str, dict[str, float]] = field(default_factory=lambda: {"hot": {}, "warm": {}})
    """Under `gdsf`, the rank of each module of hot and warm; other ranks depend on times."""
    floors: dict[str, float] = field(default_factory=lambda: {"hot": 0.0, "warm": 0.0})
    worth: float = WORTH_FIRST
    dictionary: str = ""
    dictionaries: dict[str, bytes] = field(default_factory=dict)
    expired: set[str] = field(default_factory=set)
    """The write ids of the versions that are past their TTL."""
    ghosts: dict[str, str] = field(default_factory=dict)
    """Under `lru`, of the sampled ids, those that warm lately `refused` or `evicted`, the latest last."""

    def ids(self, *tiers: str) -> set[str]:
        return {id for id, r in self.records.items() if r.tier in tiers}

    @property
    def dirty(self) -> set[str]:
        return {id for id, r in self.records.items() if not r.clean}

    def usage(self) -> dict[str, int]:
        """The accounts, by a recount."""
        sums: Counter[str] = Counter()
        for r in self.records.values():
            sums[f"{r.tier}_count"] += 1
            if not r.clean:
                sums["dirty_count"] += 1
                sums["dirty_bytes"] += len(r.content)
            if r.alive:
                sums[f"{r.tier}_tokens"] += r.tokens
                sums[f"{r.tier}_bytes"] += len(r.content)
            if r.tier == "warm":
                sums["warm_frame_bytes"] += len(r.frame or b"")
            if r.alive and r.clean:
                sums["archived_count"] += 1
                sums["archived_bytes"] += r.archived_bytes
        return {name: n for name, n in sums.items() if n}

    def version_of(self, id: str) -> str:
        r = self.records.get(id)
        return r.version if r and r.alive else ""

    def conflicts(self, id: str, expected: str) -> bool:
        """Whether the module is not at the expected version. One that has expired may also count as missing."""
        now = self.version_of(id)
        if expected == "-":
            return bool(now) and not self.has_expired(id)
        return expected not in ("", now)

    def has_expired(self, id: str) -> bool:
        return bool(self.version_of(id)) and self.records[id].write_id in self.expired

    # -- ranks -----------------------------------------------------------------------------------------------------

    def next_rank(self, id: str, tier: str, rec: Rec) -> float:
        amount, size_bytes = (rec.tokens, len(rec.content)) if tier == "hot" else (1, len(rec.frame or b""))
        most = self.limits["hot_tokens" if tier == "hot" else "warm_modules"], self.limits[f"{tier}_bytes"]
        uses = max(1.0, self.uses.get(id, 0.0))
        return self.policy.rank(Ranked(uses, size_of(amount, size_bytes, *most), 0.0, self.floors[tier]))

    def enter(self, id: str) -> None:
        """The module entered its tier, or was used there."""
        rec = self.records[id]
        for tier, ranks in self.ranks.items():
            if rec.tier != tier:
                ranks.pop(id, None)
            elif self.policy.name == "gdsf":
                ranks[id] = self.next_rank(id, tier, rec)

    def remember_ghost(self, id: str, kind: str) -> None:
        if self.policy.name != "lru" or not is_sampled(id):
            return
        self.ghosts.pop(id, None)
        self.ghosts[id] = kind
        for other, part in (("refused", 32), ("evicted", 16)):
            ghosts = [ghost for ghost, was in self.ghosts.items() if was == other]
            for oldest in ghosts[: -max(2, len(self.ids("warm")) // part)]:
                del self.ghosts[oldest]

    # -- changes ---------------------------------------------------------------------------------------------------

    def put(
        self, id: str, write_id: str, tier: str, expected: str, tokens: int, content: bytes, frame: bytes, codec: str,
        fields: tuple[tuple[str, str], ...], moves: Sequence[Move],
    ) -> tuple[object, ...] | Over:  # fmt: skip
        old = self.records.get(id)
        if write_id in self.done:
            return "REPLAYED", self.done[write_id], old.tier if old and old.alive and old.write_id == write_id else ""
        now = self.version_of(id)
        if self.conflicts(id, expected):
            return "CONFLICT", now
        if tier == "hot" and (tokens > self.limits["hot_tokens"] or len(content) > self.limits["hot_bytes"]):
            return ("TOO_LARGE",)
        if tier == "warm" and (len(frame) > self.limits["warm_bytes"] or not self.limits["warm_modules"]):
            return ("TOO_LARGE",)
        version = f"1-{self.ver + 1}"
        source = old.tier if old and now else "none"
        new = Rec(tier, write_id, version, tokens, content, fields=fields, moved=f"{source} {tier} put")
        if tier == "warm":
            new = replace(new, frame=frame, codec=codec)
        evicted = self._change(id, new, moves)
        if isinstance(evicted, Over):
            return evicted
        self.ver += 1
        self.done[write_id] = version
        self.events.append((id, old.tier if old and now else "none", tier, "put", version))
        return "OK", self.ver, evicted

    def promote(
        self, id: str, write_id: str, content: bytes, moves: Sequence[Move], reason: str = "up"
    ) -> tuple[object, ...] | Over:
        old = self.records.get(id)
        if old is None or old.write_id != write_id or not old.alive or len(content) != len(old.content):
            return ("CHANGED",)
        if old.tier == "hot":
            return ("ALREADY",)
        if old.tokens > self.limits["hot_tokens"] or len(content) > self.limits["hot_bytes"]:
            return ("TOO_LARGE",)
        evicted = self._change(
            id,
            replace(old, tier="hot", frame=None, codec="", lost=False, moved=f"{old.tier} hot {reason}"),
            moves,
        )
        if isinstance(evicted, Over):
            admitted = reason != "uses" or self._admits(id, replace(old, tier="hot"), evicted.over)
            return evicted if admitted else ("NOT_ADMITTED",)
        self.events.append((id, old.tier, "hot", reason, old.version))
        return "OK", evicted

    def install(
        self,
        id: str,
        write_id: str,
        codec: str,
        frame: bytes,
        moves: Sequence[Move],
        waited_for: bool = False,
        likely: float = 0.0,
        is_read: bool = False,
    ) -> tuple[object, ...] | Over:
        old = self.records.get(id)
        if old is None or old.write_id != write_id or not old.clean or old.tier not in ("cold", "warm"):
            return ("CHANGED",)
        if not self.allows(codec, old):
            return ("CHANGED",)
        if len(frame) > self.limits["warm_bytes"] or not self.limits["warm_modules"]:
            return ("TOO_LARGE",)
        if is_read and id in self.ghosts:
            step = WORTH_STEP if self.ghosts.pop(id) == "refused" else 1 / WORTH_STEP
            self.worth = min(max(self.worth * step, 1.0), WORTH_MAX)
        worth = None if waited_for else (self.uses.get(id, 0.0) + likely, len(frame))
        reason = "predict" if likely else "get"
        evicted = self._change(
            id,
            replace(old, tier="warm", frame=frame, codec=codec, lost=False, moved=f"{old.tier} warm {reason}"),
            moves,
            worth,
        )
        if isinstance(evicted, tuple) and is_read:
            self.remember_ghost(id, "refused")
        if isinstance(evicted, Over | tuple):
            return evicted
        if old.tier != "warm":
            self.events.append((id, old.tier, "warm", reason, old.version))
        return "OK", evicted

    def demote(self, moves: Sequence[Move]) -> tuple[object, ...] | Over:
        new = copy.deepcopy(self)
        words = new._move(moves, "down", None)
        over = self._over(new)
        if not self._fits(new) and self._drop(new, {m.id for m in moves}) is None:
            return Over(over)
        self._become(new)
        return "OK", tuple(words)

    def archived(self, id: str, order: Order, size_bytes: int) -> tuple[object, ...]:
        old = self.records.get(id)
        if old is None or (old.write_id, old.version) != (order.write_id, str(order)):
            return ("CHANGED",)
        if old.clean:
            return ("ALREADY",)
        if old.alive:
            self.records[id] = replace(old, clean=True, archived_bytes=size_bytes)
            if old.tier == "warm":
                self.enter(id)
        else:
            del self.records[id]
        self.events.append((id, old.tier, old.tier, "archive", old.version))
        return "OK", 0

    def delete(self, id: str, write_id: str, expected: str) -> tuple[object, ...]:
        if write_id in self.done:
            return "OK", self.done[write_id].removesuffix("-")
        now = self.version_of(id)
        if expected and expected != now:
            return "CONFLICT", now
        if not now:
            return "MISSING", ""
        self.ver += 1
        version = f"1-{self.ver}"
        expired = self.has_expired(id)
        self.events.append((id, self.records[id].tier, "deleted", "ttl" if expired else "delete", version))
        self.records[id] = Rec("deleted", write_id, version)
        self.enter(id)
        self.uses.pop(id, None)
        self.pins.pop(id, None)
        self.done[write_id] = version + "-" * expired
        return "OK", version

    def redirty(self, id: str, write_id: str) -> tuple[object, ...]:
        old = self.records.get(id)
        if old is None or old.write_id != write_id or not old.clean or old.tier == "cold" or old.lost:
            return ("CHANGED",)
        if old.codec.startswith("lz4d:"):
            return ("CHANGED",)
        self.records[id] = replace(old, clean=False, archived_bytes=0)
        if old.tier == "warm":
            self.enter(id)
        self.events.append((id, old.tier, old.tier, "repair", old.version))
        return "OK", 0

    def use_dictionary(self, name: str, data: bytes) -> int:
        if self.dictionary == name:
            return 0
        self.dictionaries[name], self.dictionary = data, name
        return 1

    def drop_dictionary(self, name: str) -> int:
        return 0 if name == self.dictionary or self.dictionaries.pop(name, None) is None else 1

    def allows(self, codec: str, rec: Rec) -> bool:
        """A frame that needs a dictionary is of a clean version, and names the current one."""
        return not codec.startswith("lz4d:") or (rec.clean and codec == f"lz4d:{self.dictionary}")

    def reserve(self, id: str, expected: str) -> tuple[object, ...] | int:
        if self.conflicts(id, expected):
            return "CONFLICT", self.version_of(id)
        self.ver += 1
        return self.ver

    def touch(self, uses: Iterable[tuple[str, int]]) -> dict[str, float]:
        counts: dict[str, float] = {}
        for id, n in uses:
            counts[id] = self.count_uses(id, n)
            if counts[id] >= 0 and not self.records[id].lost:
                self.enter(id)
        return counts

    def count_uses(self, id: str, n: int) -> float:
        if not self.version_of(id):
            return -1
        self.uses[id] = self.uses.get(id, 0.0) + n
        return self.uses[id]

    def pin(self, id: str, on: bool) -> bool:
        self.pins = {other: True for other, live in self.pins.items() if live}
        if not on:
            self.pins.pop(id, None)
            return True
        if not self.version_of(id):
            return False
        self.pins[id] = True
        return True

    def expire(self, ids: Iterable[str]) -> int:
        gone = 0
        for id in ids:
            r = self.records.get(id)
            if r and r.tier == "warm" and r.lost and r.clean:
                self.records[id] = replace(r, tier="cold", frame=None, codec="", lost=False, moved="warm cold expire")
                self.enter(id)
                self.events.append((id, "warm", "cold", "expire", r.version))
                gone += 1
        return gone

    def age(self) -> None:
        self.uses = {id: n / 2 for id, n in self.uses.items() if n / 2 >= 0.5}

    # -- room ------------------------------------------------------------------------------------------------------

    def _change(self, id: str, rec: Rec, moves: Sequence[Move], worth: tuple[float, int] | None = None) -> Any:
        """Set a record, and make the moves only if it does not fit without them. All or nothing."""
        new = copy.deepcopy(self)
        new.records[id] = rec
        if self._fits(new):
            self._become(new)
            self.enter(id)
            return 0
        over = self._over(new)
        words = new._move(moves, "evict", id)
        dropped = 0 if self._fits(new) else self._drop(new, {id, *(m.id for m in moves)}, worth, id)
        if isinstance(dropped, tuple):
            return dropped
        if dropped is None:
            return Over(over)
        self._become(new)
        self.enter(id)
        return words.count("moved") + dropped

    def _drop(self, new: Model, taken: set[str], worth: tuple[float, int] | None = None, subject: str = "") -> Any:
        """Drop clean frames of `new` until it fits, those that are due first. None if it still does not fit.

        `worth` are the uses and the size of the module that comes. It must have more uses for each byte than those that
        leave, or rank higher than each of them.
        """
        too_many_bytes = self._over(new)[3] > 0
        rank = self.next_rank(subject, "warm", new.records[subject]) if worth and self.policy.name == "gdsf" else None
        worth = worth if self.policy.name == "lru" else None
        uses = freed = 0.0
        if not self._fits(new, but=("warm_count", "warm_frame_bytes")):
            return None
        dropped = 0
        for id in self.due:
            r = new.records[id]
            if id in taken or self.pins.get(id) or r.tier != "warm" or not r.clean:
                continue
            if rank is not None and rank <= self.ranks["warm"][id]:
                return ("NOT_ADMITTED",)
            new._move_one(Move(id, r.write_id, "cold"), "evict")
            dropped += 1
            uses, freed = uses + self.uses.get(id, 0.0), freed + len(r.frame or b"")
            if self._fits(new):
                if worth is None:
                    return dropped
                mine, theirs = (worth[0] * freed, uses * worth[1]) if too_many_bytes else (worth[0] * dropped, uses)
                return dropped if self.worth * mine >= theirs else ("NOT_ADMITTED",)
        return None

    def _move(self, moves: Sequence[Move], reason: str, subject: str | None) -> list[str]:
        """A victim moves once in a call, and the module of the call is never a victim."""
        words, seen = [], {subject}
        for m in moves:
            word = "changed" if m.id in seen else self._why_not(m)
            if word == "moved":
                self._move_one(m, reason)
                seen.add(m.id)
            words.append(word)
        return words

    def _why_not(self, m: Move) -> str:
        r = self.records.get(m.id)
        if r is not None and r.tier == m.to:
            return "already"
        if r is None or r.write_id != m.write_id:
            return "changed"
        if self.pins.get(m.id):
            return "pinned"
        if m.to == "warm" and r.tier != "hot":
            return "already"
        if m.to == "cold" and not r.clean:
            return "dirty"
        return "moved" if self.allows(m.codec, r) else "changed"

    def _move_one(self, m: Move, reason: str) -> None:
        r = self.records[m.id]
        self.events.append((m.id, r.tier, m.to, reason, r.version))
        frame, codec = (m.frame, m.codec) if m.to == "warm" else (None, "")
        moved = f"{r.tier} {m.to} {reason}"
        self.records[m.id] = replace(r, tier=m.to, frame=frame, codec=codec, lost=False, moved=moved)
        if (r.tier, m.to, reason) == ("warm", "cold", "evict"):
            self.remember_ghost(m.id, "evicted")
        if r.tier == "hot" and self.policy.name == "lru":
            self.uses.pop(m.id, None)
        was = self.ranks.get(r.tier, {}).get(m.id)
        if was is not None and reason == "evict":
            self.floors[r.tier] = max(self.floors[r.tier], was)
            if m.id in self.uses:
                self.uses[m.id] *= self.policy.kept_uses
        self.enter(m.id)

    def _admits(self, id: str, rec: Rec, over: Sequence[int]) -> bool:
        """Hot admits a module by its uses if those that would leave have at most eight times as many for each token or byte."""
        victims = [v for v in self.lru if v != id and not self.pins.get(v)]
        if not victims:
            return True
        if self.policy.name != "lru":
            return self.policy.admits_all or self.next_rank(id, "hot", rec) > self.ranks["hot"][victims[0]]
        tokens, size_bytes, uses = 0, 0, 0.0
        for victim in victims:
            r = self.records[victim]
            tokens, size_bytes, uses = tokens + r.tokens, size_bytes + len(r.content), uses + self.uses.get(victim, 0.0)
            if tokens >= over[0] and size_bytes >= over[1]:
                break
        mine = self.uses.get(id, 0.0)
        if over[0] > 0:
            return VICTIMS_WORTH * mine * tokens >= uses * rec.tokens
        return VICTIMS_WORTH * mine * size_bytes >= uses * len(rec.content)

    def _over(self, new: Model) -> tuple[int, ...]:
        usage = new.usage()
        return tuple(usage.get(name, 0) - self.limits[limit] for name, limit in BUDGETS.items())

    def _fits(self, new: Model, but: Sequence[str] = ()) -> bool:
        """A budget counts only against a change that adds to it. The budgets in `but` are left out."""
        before, after = self.usage(), new.usage()
        return all(
            after.get(name, 0) <= max(before.get(name, 0), self.limits[limit])
            for name, limit in BUDGETS.items()
            if name not in but
        )

    def _become(self, new: Model) -> None:
        self.records, self.uses, self.events = new.records, new.uses, new.events
        self.ranks, self.floors, self.ghosts = new.ranks, new.floors, new.ghosts
