"""The scripts as Redis receives them: the flags of a verb, the parts of the prelude that it uses, and the verb's `.lua` file.

Each run of a script defines its functions again, which takes the server longer than most commands do. So a script contains only
the blocks of the prelude (separated by blank lines) that it needs.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib import resources

from distier.domain.schema import lua_accounts, lua_constants
from distier.effects import Script
from distier.policy.eviction.table import lua_ranks

VERBS = (
    "open", "state", "reserve", "adopt", "put", "promote", "install", "demote", "archived", "delete", "touch", "pin",
    "expire", "age", "release", "where", "mend", "reindex", "redirty", "account",
    "ledger", "limit", "claim", "heartbeat", "enlist", "rank", "learn", "refer", "dictionary", "lapse", "range",
)  # fmt: skip
PRELUDE = ("prelude", "prelude_moves")
FIRST = {"put": "put_first"}
"""By verb, the file with its common case, which ends the script if it applies and otherwise has changed nothing."""


_SCHEMA = {
    "-- @schema constants\n": lua_constants,
    "-- @schema accounts\n": lua_accounts,
    "-- @schema ranks\n": lua_ranks,
}


def text_of(name: str) -> str:
    """Return the text of a `.lua` file, with the parts that the schema generates in place of their markers."""
    text = resources.files(__package__).joinpath(f"{name}.lua").read_text("utf-8")
    for marker, generate in _SCHEMA.items():
        if marker in text:
            text = text.replace(marker, generate())
    return text


_COMMENT = re.compile(r"--.*")
_DECLARED = re.compile(r"^local (?:function (\w+)|([\w, ]+))", re.MULTILINE)
_WORD = re.compile(r"[A-Za-z_]\w*")


def _declared(code: str) -> frozenset[str]:
    return frozenset(name for pair in _DECLARED.findall(code) for name in _WORD.findall(" ".join(pair)))


@cache
def _blocks() -> tuple[tuple[str, frozenset[str], frozenset[str]], ...]:
    """Return the blocks of the prelude: the text, the names that it declares, and the words of its code."""
    texts = [text for name in PRELUDE for text in text_of(name).strip().split("\n\n")]
    return tuple((text, _declared(text), frozenset(_WORD.findall(_COMMENT.sub("", text)))) for text in texts)


def _source(verb: str) -> str:
    """Return the script of a verb, with the blocks of the prelude that it uses, directly or through each other.

    The common case of a verb in `FIRST` comes before them, with only the blocks that it uses itself.
    """
    first = [*needed(text_of(FIRST[verb])), text_of(FIRST[verb])] if verb in FIRST else []
    body = text_of(verb)
    return "\n\n".join([*first, *(text for text in needed(body) if text not in first), body])


def needed(code: str) -> list[str]:
    used, parts = set(_WORD.findall(_COMMENT.sub("", code))), list[str]()
    used -= _declared(code)
    for text, names, words in reversed(_blocks()):  # a block uses only names from above it
        if names & used:
            used |= words
            parts.insert(0, text)
    return parts


def block(name: str) -> str:
    """Return the block of the prelude that declares `name`."""
    return next(text for text, names, _ in _blocks() if name in names)


@cache
def flags_of(verb: str) -> str:
    """Return the `#!lua` flags that a script declares in its first line, separated by commas; may be empty."""
    found = re.match(r"-- flags:[ ]*([a-z, -]*)\n", text_of(verb))
    if not found:
        raise AssertionError(f"{verb}.lua does not declare its flags in its first line")
    return found[1].replace(" ", "")


@cache
def script(verb: str) -> Script:
    """Return the whole script of a verb, as Redis receives it."""
    shebang = f"#!lua flags={flags_of(verb)}\n" if flags_of(verb) else "#!lua\n"
    source = (shebang + _source(verb)).encode()
    # EVALSHA_RO shows a connection for reads that the script changes nothing (`wire.READS`).
    command = "EVALSHA_RO" if flags_of(verb) == "no-writes" else "EVALSHA"
    return Script(verb, source, sha1(source, usedforsecurity=False).hexdigest(), command)
