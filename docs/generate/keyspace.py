"""`docs/KEYSPACE.md`: every key of Redis and every script, from `distier.domain.keys` and the headers of the scripts.

The table comes from `KEYSPACE`, the reference of scripts from the headers of their sources. The examples are what
redis-cli showed; a test types each of them and compares.
"""

from __future__ import annotations

from importlib import resources

from distier.domain.schema import KEYSPACE, LAYOUT

LOAD = "distier deploy-functions --print | redis-cli -x FUNCTION LOAD REPLACE"
ROOT = "'distier:{team}:'"
FCALLS = {
    f"distier_{name} {args}".strip(): f"{call} distier_{name} 1 {ROOT} {args}".strip()
    for call, name, args in (
        ("FCALL_RO", "where", "skills/pdf"),
        ("FCALL_RO", "explain", "docs/style"),
        ("FCALL_RO", "tiers", ""),
        ("FCALL_RO", "top", "lru 3"),
        ("FCALL_RO", "top", "biggest 3"),
        ("FCALL_RO", "top", "dirty"),
        ("FCALL_RO", "moves", "600 notes/"),
        ("FCALL_RO", "health", ""),
        ("FCALL_RO", "nodes", ""),
        ("FCALL_RO", "help", ""),
        ("FCALL", "pin", "skills/pdf 3600"),
        ("FCALL", "unpin", "skills/pdf"),
        ("FCALL", "demote", "docs/style"),
        ("FCALL", "promote", "docs/style"),
        ("FCALL", "demote", "notes/* 100"),
    )
}
"""The calls of the functions on the page, by title."""
QUESTIONS = """\
| question or task | function |
|---|---|
| Where is a module? | `where ID` |
| Why is it there, and what would leave before it? | `explain ID` |
| How full is each tier, and what is the hit ratio? | `tiers` |
| Which modules were used longest ago, last, or most? | `top lru`, `top mru`, `top uses` |
| Which are the biggest, or wait longest to be archived? | `top biggest`, `top dirty` |
| What moved in the last minute, and why? | `moves 60` |
| Is the epoch healthy, and who maintains the shard? | `health` |
| Take a module one tier down, or all with a prefix | `demote ID`, `demote 'PREFIX*' 100` |
| Keep a module from being evicted | `pin ID SECONDS`, `unpin ID` |
"""
# As redis-cli prints; ` 1) ` and all.
EXAMPLES: dict[str, str] = {
    "distier:{t}:dirty": r'''1) "docs/style"
2) "1795834412266.3669"
3) "notes/old"
4) "1795834412266.739"
5) "skills/pdf"
6) "1795834412268.686"''',
    "distier:{t}:done": r"""(integer) 6""",
    "distier:{t}:reads": r'''1) 1) "1795845872248-0"
   2) 1) "docs/style"
      2) "1"
      3) "skills/pdf"
      4) "1"
2) 1) "1795845872247-0"
   2) 1) ""
      2) "0"''',
    "distier:{t}:shares": r''' 1) "version"
 2) "4294967297"
 3) "tok"
 4) "d4aa306d47f681e1547a131ccef49b8a"
 5) "total"
 6) "50000 268435456 100 1073741824"
 7) "0"
 8) "25000 134217728 50 536870912"
 9) "1"
10) "25000 134217728 50 536870912"''',
    "distier:{t}:workers": r'''1) "host-4711-a1b2c3"
2) "1795834472316"''',
    "distier:{t}:module:<id>": r''' 1) "tier"
 2) "hot"
 3) "epoch"
 4) "1"
 5) "ver"
 6) "3"
 7) "tok"
 8) "704a1d04b1551b53eccd6bd43c5d"
 9) "seen"
10) "1"
11) "bytes"
12) "26"
13) "tokens"
14) "9"
15) "clean"
16) "1"
17) "created"
18) "1795834412268"
19) "updated"
20) "1795834412268"
21) "moved"
22) "1795834412268 none hot put"
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
2) "1795834412266.3669"
3) "skills/pdf"
4) "1795834412296.323"''',
    "distier:{t}:warm": r'''1) "notes/old"
2) "1795920812294.4099"''',
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
2) "1795838012295"''',
    "distier:{t}:lease:<id>": r'''"b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1b1"''',
    "distier:{t}:events": r'''1) 1) "1795834412294-1"
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
2) 1) "1795834412294-0"
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
 2) "c5c31dffc4e4338c644022d8eaf50d0b"
 3) "layout"
 4) "2"
 5) "shards"
 6) "1"
 7) "epoch"
 8) "1"
 9) "replid"
10) "d4c968fd412d714df8494a7f41bb12cc0f935ef2"
11) "verified"
12) "1"
13) "since"
14) "1795834412263"
15) "created"
16) "1795834412263"
17) "ver"
18) "3"
19) "clock"
20) "1795834412296.323"
21) "sampled"
22) "1"
23) "fence"
24) "1"''',
    "distier:{t}:rank:<tier>": r'''1) "skills/pdf"
2) "2.0696057213677301e-05"
3) "docs/style"
4) "6.2088171641031892e-05"''',
    "distier:{t}:warm:<id>": r"""(integer) 86399994""",
    "distier:{t}:dictionaries": r"""(integer) 26""",
    "distier_where skills/pdf": r"""1) skills/pdf: hot, archived
2) 9 tokens, 26 B, 26 B stored in hot
3) version 1-3, text/plain, written 0 s ago
4) it went from warm to hot 0 s ago because it was requested
5) last used 0 s ago
6) 0 uses""",
    "distier_explain docs/style": r"""1) docs/style is hot: it came to hot 0 s ago because it was written.
2) 0 modules of 2 would leave hot before it.""",
    "distier_tiers": r"""1) tier  modules  tokens  bytes  stored             of budget
2) hot         2      12   38 B    38 B   0% tokens, 0% bytes
3) warm        1      60  220 B    84 B  1% modules, 0% bytes
4) cold        0       0    0 B       -                     -
5) archived: 3 modules, 236 B stored
6) not archived yet: 0 modules, 0 B
7) reads: 100.0% without the archive (hot 1, warm 0, cold 0); 0 modules evicted too early
8) eviction policy: lru""",
    "distier_top lru 3": r"""1) id          tier  tokens  bytes  last used
2) docs/style  hot        3   12 B    0 s ago
3) skills/pdf  hot        9   26 B    0 s ago""",
    "distier_top biggest 3": r"""1) id          tier  tokens  bytes  bytes
2) notes/old   warm      60  220 B  220 B
3) skills/pdf  hot        9   26 B   26 B
4) docs/style  hot        3   12 B   12 B
5) the 3 modules that were used last in hot and warm were looked at, of 3""",
    "distier_top dirty": r"""1) there is none""",
    "distier_moves 600 notes/": r"""1) when     id         move         reason
2) 0 s ago  notes/old  hot -> warm  request
3) 0 s ago  notes/old  warm -> hot  request
4) 0 s ago  notes/old  hot -> warm  request
5) 0 s ago  notes/old  none -> hot  put""",
    "distier_health": r"""1) healthy
2) ok    epoch 1 since 0 s ago
3) ok    all records were compared with the archive in this epoch
4) ok    worker host-4711-a1b2c3 maintains this shard
5) ok    everything is archived
6) ok    Redis uses 2.0 MiB, and has no maxmemory""",
    "distier_nodes": r"""1) no node keeps copies on a disk""",
    "distier_help": r""" 1) distier functions, version 0.0.0 (library 1, layout 2)
 2) FCALL_RO distier_where 1 'distier:{team}:' skills/pdf    where a module is
 3) the one key is the root of a shard; a last argument `map` asks for data
 4) FCALL_RO  where ID          where a module is
 5) FCALL_RO  explain ID        why it is there, and what would leave before it
 6) FCALL_RO  tiers             how full each tier is, and the hit ratio
 7) FCALL_RO  top KIND [N]      lru, mru, uses, due, dirty, pins, biggest
 8) FCALL_RO  moves [S] [PREFIX]  what moved in the last S seconds (60)
 9) FCALL_RO  health            epoch, worker, archive lag, memory
10) FCALL_RO  nodes             nodes that keep copies on their disks
11) FCALL     demote ID         one tier down; PREFIX* [MOST] for many
12) FCALL     promote ID        to hot, where its copy in Redis is not compressed
13) FCALL     pin ID SECONDS    keep it from being evicted
14) FCALL     unpin ID          end the pin""",
    "distier_pin skills/pdf 3600": r"""1) skills/pdf is pinned for 60 min""",
    "distier_unpin skills/pdf": r"""1) skills/pdf is not pinned any more""",
    "distier_demote docs/style": r"""1) docs/style is now cold""",
    "distier_promote docs/style": r"""1) docs/style stays cold: it is in the archive only; distier promote fetches it""",
    "distier_demote notes/* 100": r"""1) 1 module of 1 module with this prefix moved one tier down""",
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

"""

_KEYS = """\
## The keys

| key | type | what |
|---|---|---|
"""

_FUNCTIONS = f"""\
## With redis-cli alone

distier has a library of functions for people. Load it once for each server, with the role `deployer`; an older library never
replaces a newer one:

```sh
distier deploy-functions
```

Without distier on that machine, `{LOAD}` does the same.

The one key of a call is the root of a shard. A call never looks at all modules, so it is safe in a large namespace. With a last
argument `map` the reply is data. Reads need the role `operator`; what changes something
needs `admin`. `agent` may call no function.

{QUESTIONS}
"""
_SCRIPTS = """\
## The scripts

The visible state of a module changes in exactly one script. distier sends them with EVALSHA. The functions that change
something run the same scripts.

"""


def render() -> str:
    """The page, as Markdown."""
    table = "".join(f"| `{kind.pattern}` | {kind.type} | {kind.what} |\n" for kind in KEYSPACE)
    looks = "".join(_example(f"`{k.pattern}`", k.look, k.pattern) for k in KEYSPACE)
    calls = "".join(_example(f"`{name}`", command, name) for name, command in FCALLS.items())
    scripts = "".join(map(_script, _verbs()))
    return f"{_HEAD}{_FUNCTIONS}{calls}{_KEYS}{table}\n## Looking at it\n\n{looks}{_SCRIPTS}{scripts}".rstrip() + "\n"


def _example(title: str, command: str, name: str) -> str:
    return f"{title}\n\n```\n> {command}\n{EXAMPLES.get(name, '')}\n```\n\n"


def _verbs() -> list[str]:
    names = (entry.name for entry in (resources.files("distier") / "lua").iterdir() if entry.name.endswith(".lua"))
    return sorted(name.removesuffix(".lua") for name in names if not name.startswith("prelude"))


def _script(verb: str) -> str:
    """Return what the header of a script says."""
    source = (resources.files("distier") / "lua" / f"{verb}.lua").read_text("utf-8")
    header = []
    for line in source.splitlines():
        if not line.startswith("--"):
            break
        header.append(line[2:].removeprefix(" "))
    return f"### {verb}\n\n```\n" + "\n".join(header) + "\n```\n\n"
