"""The Lua scripts, one for each verb, and the typed Python functions that call them."""

from __future__ import annotations

from distier.lua.learning import Lesson, Taught, learn
from distier.lua.library import library
from distier.lua.loader import VERBS, flags_of, script
from distier.lua.moves import Released, age, archived, demote, expire, install, pin, promote, release, touch, where
from distier.lua.quotas import claim, heartbeat, ledger, limit
from distier.lua.recovery import Limit, adopt, look, open_shard, reserve, state
from distier.lua.repair import account, enlist, mend, rank, redirty, reindex
from distier.lua.replies import (
    Adopted,
    Adoption,
    Applied,
    Deleted,
    Installed,
    Mended,
    Move,
    Moving,
    Opened,
    Over,
    Put,
    Ranking,
    Refused,
    Replayed,
    Reserved,
    Seen,
    Unclaimed,
)
from distier.lua.writes import Write, delete, put, put_many

__all__ = [
    "VERBS",
    "Adopted",
    "Adoption",
    "Applied",
    "Deleted",
    "Installed",
    "Lesson",
    "Limit",
    "Mended",
    "Move",
    "Moving",
    "Opened",
    "Over",
    "Put",
    "Ranking",
    "Refused",
    "Released",
    "Replayed",
    "Reserved",
    "Seen",
    "Taught",
    "Unclaimed",
    "Write",
    "account",
    "adopt",
    "age",
    "archived",
    "claim",
    "delete",
    "demote",
    "enlist",
    "expire",
    "flags_of",
    "heartbeat",
    "install",
    "learn",
    "ledger",
    "library",
    "limit",
    "look",
    "mend",
    "open_shard",
    "pin",
    "promote",
    "put",
    "put_many",
    "rank",
    "redirty",
    "reindex",
    "release",
    "reserve",
    "script",
    "state",
    "touch",
    "where",
]
