"""The scripts as Redis receives them: the flags of a verb, the prelude, and the verb's `.lua` file."""

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
    """Return the text of a `.lua` file, with the parts that the schema generates in place of their markers."""
    text = resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
    for marker, generate in _SCHEMA.items():
        if marker in text:
            text = text.replace(marker, generate())
    return text


@cache
def flags_of(verb: str) -> str:
    """Return the `#!lua` flags that a script declares in its first line, separated by commas; may be empty."""
    found = re.match(r"-- flags:[ ]*([a-z, -]*)\n", _text(verb))
    if not found:
        raise AssertionError(f"{verb}.lua does not declare its flags in its first line")
    return found[1].replace(" ", "")


@cache
def script(verb: str) -> Script:
    """Return the whole script of a verb, as Redis receives it."""
    shebang = f"#!lua flags={flags_of(verb)}\n" if flags_of(verb) else "#!lua\n"
    source = (shebang + _text("prelude") + _text(verb)).encode()
    # EVALSHA_RO shows a connection for reads that the script changes nothing (`wire.READS`).
    command = "EVALSHA_RO" if flags_of(verb) == "no-writes" else "EVALSHA"
    return Script(verb, source, sha1(source, usedforsecurity=False).hexdigest(), command)


def library() -> str:
    """Return all verbs as the function library `distier`, for `FCALL distier_where 11 ...` in redis-cli."""
    parts = ["#!lua name=distier"]
    for verb in VERBS:
        flags = ", ".join(f"'{f}'" for f in flags_of(verb).split(",") if f)
        body = _text("prelude") + _text(verb)
        parts.append(
            f"redis.register_function{{function_name='distier_{verb}', flags={{{flags}}}, "
            f"callback=function(KEYS, ARGV)\n{body}\nend}}"
        )
    return "\n".join(parts)
