"""The scripts as they are sent to Redis: the flags of a verb, the prelude, then its `.lua` file."""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib import resources

from distier.domain.schema import lua_accounts, lua_constants
from distier.effects import Script

VERBS = (
    "open", "state", "reserve", "adopt", "put", "promote", "install", "demote", "archived", "delete", "touch", "pin",
    "expire", "age", "release", "where", "mend", "reindex", "redirty", "account",
    "ledger", "limit", "claim", "heartbeat",
)  # fmt: skip


_SCHEMA = {"-- @schema constants\n": lua_constants, "-- @schema accounts\n": lua_accounts}


def _text(name: str) -> str:
    """The text of a `.lua` file, with what comes from the schema in its place."""
    text = resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
    for mark, made in _SCHEMA.items():
        if mark in text:
            text = text.replace(mark, made())
    return text


@cache
def flags_of(verb: str) -> str:
    """The `#!lua` flags that a script declares in its first line, separated by commas; may be empty."""
    found = re.match(r"-- flags:[ ]*([a-z, -]*)\n", _text(verb))
    if not found:
        raise AssertionError(f"{verb}.lua does not say its flags in its first line")
    return found[1].replace(" ", "")


@cache
def script(verb: str) -> Script:
    """The whole script of a verb, as it is sent to Redis."""
    shebang = f"#!lua flags={flags_of(verb)}\n" if flags_of(verb) else "#!lua\n"
    source = (shebang + _text("prelude") + _text(verb)).encode()
    # So that a connection for reads knows it (`wire.READS`).
    command = "EVALSHA_RO" if flags_of(verb) == "no-writes" else "EVALSHA"
    return Script(verb, source, sha1(source, usedforsecurity=False).hexdigest(), command)


def library() -> str:
    """All verbs as the function library `distier`: `FCALL distier_where 11 ...` from redis-cli."""
    parts = ["#!lua name=distier"]
    for verb in VERBS:
        flags = ", ".join(f"'{f}'" for f in flags_of(verb).split(",") if f)
        body = _text("prelude") + _text(verb)
        parts.append(
            f"redis.register_function{{function_name='distier_{verb}', flags={{{flags}}}, "
            f"callback=function(KEYS, ARGV)\n{body}\nend}}"
        )
    return "\n".join(parts)
