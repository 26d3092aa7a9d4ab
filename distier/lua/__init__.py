"""The Lua scripts, one for each verb, and the typed Python functions that call them."""

from __future__ import annotations

from distier.lua.loader import VERBS, flags_of, library, script
from distier.lua.moves import age, archived, demote, expire, install, pin, promote, release, touch, where
from distier.lua.quotas import claim, heartbeat, ledger, limit
from distier.lua.recovery import Limit, adopt, look, open_shard, reserve, state
from distier.lua.repair import account, mend, redirty, reindex
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
    "Limit",
    "Mended",
    "Move",
    "Moving",
    "Opened",
    "Over",
    "Put",
    "Refused",
    "Replayed",
    "Reserved",
    "Seen",
    "Unclaimed",
    "Write",
    "account",
    "adopt",
    "age",
    "archived",
    "claim",
    "delete",
    "demote",
    "expire",
    "flags_of",
    "heartbeat",
    "install",
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
    "redirty",
    "reindex",
    "release",
    "reserve",
    "script",
    "state",
    "touch",
    "where",
]
