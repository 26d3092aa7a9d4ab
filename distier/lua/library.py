"""The function library `distier`, with which redis-cli alone answers what operators ask.

Its functions take the root of a shard as their only key (`distier:{team}:`), and print lines for people, or data as a map
where the last argument is `map`. What changes something runs the script of the client's own verb. Clients do not use it.
"""

from __future__ import annotations

import re
from importlib import resources

from distier.domain.schema import FIXED, LAYOUT
from distier.lua.loader import block, needed, text_of

LIBRARY = 2
"""The number of this library. An older one never replaces a newer one."""
LIBRARY_BYTES_MAX = 64 * 1024

READS = ("where", "explain", "tiers", "top", "moves", "health", "nodes", "help")
WRITES = {"demote": "allow-oom", "promote": "", "pin": "allow-oom", "unpin": "allow-oom"}
"""The functions that change something, with their flags."""
_VERBS = ("demote", "promote", "pin")
_FILES = ("common", "where", "look", "move")
_NUMBER = re.compile(r"^local LIBRARY = (\d+)$", re.MULTILINE)


def _short(code: str) -> str:
    """Return Lua code without comments, indentation and empty lines: a library must be small."""
    lines = (
        re.sub(r"\s+--.*$", "", line) if "'" not in line.partition("--")[2] else line for line in code.splitlines()
    )
    kept = (line.strip() for line in lines)
    return "\n".join(line for line in kept if line and not line.startswith("--"))


def library(version: str) -> str:
    """Return the library. `version` is that of the package, which `distier_help` shows."""
    names = ", ".join(f"'{name}'" for name in FIXED)
    parts = [
        "#!lua name=distier",
        f"local LIBRARY = {LIBRARY}",
        f"local VERSION, LAYOUT, FIXED = '{version}', '{LAYOUT}', {{{names}}}",
        _short(block("encode_id")),
    ]
    parts.append(_verbs())
    files = resources.files("distier.lua") / "functions"
    parts += [_short((files / f"{name}.lua").read_text("utf-8")) for name in _FILES]
    for name in READS:
        parts.append(
            f"redis.register_function{{function_name='distier_{name}', flags={{'no-writes'}}, callback={name}}}"
        )
    for name, flag in WRITES.items():
        flags = f"'{flag}'" if flag else ""
        parts.append(f"redis.register_function{{function_name='distier_{name}', flags={{{flags}}}, callback={name}}}")
    return "\n".join(parts) + "\n"


def _verbs() -> str:
    """Return `run_verb`, which runs the script of a verb. The blocks of the prelude are in it once."""
    bodies = [(verb, text_of(verb)) for verb in _VERBS]
    cases = "\nelseif ".join(f"verb == '{verb}' then\n{_short(body)}" for verb, body in bodies)
    blocks = _short("\n".join(needed("\n".join(body for _, body in bodies))))
    return f"local function run_verb(verb, KEYS, ARGV)\n{blocks}\nif {cases}\nend\nend"


def number_of(code: str) -> int:
    """Return the number of a library by its code; 0 for one that has none."""
    found = _NUMBER.search(code)
    return int(found[1]) if found else 0
