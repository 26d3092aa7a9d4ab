"""`docs/KEYSPACE.md`: every key of Redis and every script, from `distier.domain.keys` and the headers of the scripts.

The table comes from `KEYSPACE`, the reference of scripts from the headers of their sources. The examples are what
redis-cli showed; a test types each of them and compares.
"""

from __future__ import annotations

from importlib import resources

from distier.domain.keys import Shard
from distier.domain.schema import KEYSPACE, LAYOUT

LOAD = "python -c 'from distier.lua import library; print(library())' | redis-cli -x FUNCTION LOAD REPLACE"
_KEYS = " ".join(f"'{key}'" for key in Shard("team", 0, 1).fixed)
_PAIR = "'distier:{team}:module:skills/pdf' 'distier:{team}:warm:skills/pdf'"
FCALLS = {
    "distier_where": f"FCALL_RO distier_where 11 {_KEYS} {_PAIR} skills/pdf",
    "distier_pin": f"FCALL distier_pin 10 {_KEYS} 'distier:{{team}}:module:skills/pdf' skills/pdf 60000",
}
# As redis-cli prints; ` 1) ` and all.
EXAMPLES: dict[str, str] = {
    "distier:{t}:dirty": r'''1) "docs/style"
2) "1795833747547.377"
3) "notes/old"
4) "1795833747547.929"
5) "skills/pdf"
6) "1795833747550.5"''',
    "distier:{t}:done": r"""(integer) 6""",
    "distier:{t}:shares": r''' 1) "version"
 2) "8589934593"
 3) "tok"
 4) "67006bdcd839a8a736b7490ec1f104d0"
 5) "total"
 6) "50000 268435456 100 1073741824"
 7) "0"
 8) "25000 134217728 50 536870912"
 9) "1"
10) "25000 134217728 50 536870912"''',
    "distier:{t}:workers": r'''1) "host-4711-a1b2c3"
2) "1795833807740"''',
    "distier:{t}:module:<id>": r''' 1) "tier"
 2) "hot"
 3) "epoch"
 4) "1"
 5) "ver"
 6) "3"
 7) "tok"
 8) "087ff8eb1a904a98f2ff6bd43c5d"
 9) "seen"
10) "1"
11) "bytes"
12) "26"
13) "tokens"
14) "9"
15) "clean"
16) "1"
17) "created"
18) "1795833747550"
19) "updated"
20) "1795833747550"
21) "moved"
22) "1795833747550 none hot put"
23) "sha256"
24) "5bc01ba41825fb88020f6925143392f92cbdf94fc30df580eb47b479d2766c04"
25) "type"
26) "text/plain"
27) "counter"
28) "given"
29) "keywords"
30) "[\"pdf\"]"
31) "content"
32) "# PDF\n\nHow to fill forms.\n"
33) "archived_bytes"
34) "84"''',
    "distier:{t}:hot": r'''1) "docs/style"
2) "1795833747547.377"
3) "skills/pdf"
4) "1795833747691.9399"''',
    "distier:{t}:warm": r'''1) "notes/old"
2) "1795920147689.7209"''',
    "distier:{t}:ghosts:<tier>": r"""(empty array)""",
    "distier:{t}:ids": r"""(empty array)""",
    "distier:{t}:ids:<id>": r'''1) "docs/style"
2) "notes/old"
3) "skills/pdf"''',
    "distier:{t}:uses": r'''1) "skills/pdf"
2) "1"''',
    "distier:{t}:hits": r'''1) "hot"
2) "1"
3) "hot_tokens"
4) "9"''',
    "distier:{t}:usage": r''' 1) "hot_count"
 2) "2"
 3) "hot_tokens"
 4) "12"
 5) "hot_bytes"
 6) "38"
 7) "dirty_count"
 8) "0"
 9) "dirty_bytes"
10) "0"
11) "archived_count"
12) "3"
13) "archived_bytes"
14) "236"
15) "warm_bytes"
16) "220"
17) "warm_tokens"
18) "60"
19) "warm_count"
20) "1"
21) "warm_frame_bytes"
22) "84"''',
    "distier:{t}:limits": r''' 1) "hot_tokens"
 2) "50000"
 3) "hot_bytes"
 4) "268435456"
 5) "warm_modules"
 6) "100"
 7) "warm_bytes"
 8) "1073741824"
 9) "warm_ttl_ms"
10) "86400000"
11) "events_max"
12) "10000"''',
    "distier:{t}:pins": r'''1) "skills/pdf"
2) "1795837347690"''',
    "distier:{t}:lease:<id>": r'''"b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1"''',
    "distier:{t}:events": r'''1) 1) "1795833747689-1"
   2)  1) "id"
       2) "notes/old"
       3) "from"
       4) "hot"
       5) "to"
       6) "warm"
       7) "reason"
       8) "request"
       9) "version"
      10) "1-2"
2) 1) "1795833747689-0"
   2)  1) "id"
       2) "notes/old"
       3) "from"
       4) "warm"
       5) "to"
       6) "hot"
       7) "reason"
       8) "request"
       9) "version"
      10) "1-2"''',
    "distier:{t}:epoch": r''' 1) "archive"
 2) "72952e3f72fa766791f48bb99bfc7101"
 3) "layout"
 4) "2"
 5) "shards"
 6) "1"
 7) "epoch"
 8) "1"
 9) "replid"
10) "8a36679531a1a84bf79819bc7ae863071fef07ca"
11) "verified"
12) "1"
13) "since"
14) "1795833747544"
15) "created"
16) "1795833747544"
17) "ver"
18) "3"
19) "clock"
20) "1795833747691.940"
21) "sampled"
22) "1"
23) "fence"
24) "1"''',
    "distier:{t}:rank:<tier>": r'''1) "skills/pdf"
2) "2.0696057213677301e-05"
3) "docs/style"
4) "6.2088171641031892e-05"''',
    "distier:{t}:warm:<id>": r"""(integer) 86399988""",
    "distier_where": r"""1)  1) "tier"
    2) "warm"
    3) "epoch"
    4) "1"
    5) "ver"
    6) "3"
    7) "tok"
    8) "087ff8eb1a904a98f2ff6bd43c5d"
    9) "seen"
   10) "1"
   11) "bytes"
   12) "26"
   13) "tokens"
   14) "9"
   15) "counter"
   16) "given"
   17) "sha256"
   18) "5bc01ba41825fb88020f6925143392f92cbdf94fc30df580eb47b479d2766c04"
   19) "type"
   20) "text/plain"
   21) "clean"
   22) "1"
   23) "archived_bytes"
   24) "84"
   25) "codec"
   26) "raw"
   27) "frame_bytes"
   28) "26"
   29) "created"
   30) "1795833747550"
   31) "updated"
   32) "1795833747550"
2) ""
3) "1795920147967.2849"
4) ""
5) ""
6) ""
7) (integer) 86399830""",
    "distier_pin": r'''1) "OK"
2) "1795833808145"''',
}

_HEAD = f"""\
# The keyspace

Written by `make docs` from the code; a test compares it, and another one scans a live server for keys that are not here.

This is key layout {LAYOUT}. A namespace has a fixed number of shards. With one shard the tag `{{t}}` is `{{team}}` for the
namespace `team`; with several it is `{{team.0}}`, `{{team.1}}` and so on (a module belongs to shard CRC-32 of its id modulo
their number). All keys of a shard share the tag, so one script sees all of it, on a Redis Cluster too. `<id>` is the
module's id as it is, where safe; other bytes are percent-encoded (`skills/a b` is `skills/a%20b`), so every key can be typed.

Reading with redis-cli is always safe. Writing these keys by hand is not: what the scripts keep (budgets, `usage`, TTLs) is then
wrong until `distier fsck`.

| key | type | what |
|---|---|---|
"""

_SCRIPTS = f"""\
## The scripts

The visible state of a module changes in exactly one script. distier sends them with EVALSHA; for redis-cli the same sources
load as the function library `distier`:

```sh
{LOAD}
```

Each function takes the shard's own nine keys first (`KEYS 1..9 the shard`), in this order:

```
{chr(10).join(Shard("team", 0, 1).fixed)}
```

"""


def render() -> str:
    """The page, as Markdown."""
    table = "".join(f"| `{kind.pattern}` | {kind.type} | {kind.what} |\n" for kind in KEYSPACE)
    looks = "".join(_example(f"`{k.pattern}`", k.look, k.pattern) for k in KEYSPACE)
    return f"{_HEAD}{table}\n## Looking at it\n\n{looks}{_SCRIPTS}{''.join(map(_function, _verbs()))}".rstrip() + "\n"


def _example(title: str, command: str, name: str) -> str:
    return f"{title}\n\n```\n> {command}\n{EXAMPLES.get(name, '')}\n```\n\n"


def _verbs() -> list[str]:
    names = (entry.name for entry in (resources.files("distier") / "lua").iterdir() if entry.name.endswith(".lua"))
    return sorted(name.removesuffix(".lua") for name in names if not name.startswith("prelude"))


def _function(verb: str) -> str:
    """What the header of a script says, and an example where there is one."""
    source = (resources.files("distier") / "lua" / f"{verb}.lua").read_text("utf-8")
    header = []
    for line in source.splitlines():
        if not line.startswith("--"):
            break
        header.append(line[2:].removeprefix(" "))
    name = f"distier_{verb}"
    example = _example("For example:", FCALLS[name], name) if name in FCALLS else ""
    return f"### {name}\n\n```\n" + "\n".join(header) + f"\n```\n\n{example}"
