"""The keyspace as operators see it: a live server holds no undocumented key, and the page is correct.

`python -m tests.integration.test_keyspace` prints the current output of redis-cli for the page's examples.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from distier import Item, Store, connect
from distier.domain.dictionary import name_of
from distier.domain.ids import encode_id
from distier.domain.learned import field_of_keyword
from distier.domain.schema import KEYSPACE
from distier.lua import Lesson, learn, library, use_dictionary
from distier.observe.reads import Recording
from distier.plans.common.leases import take_lease
from distier.plans.common.touches import send_touch
from distier.plans.fleet import nodes
from distier.plans.fleet.leases import join
from distier.plans.fleet.maintain import maintain, rank_modules
from distier.plans.fleet.nodes import answer, heartbeat
from distier.plans.fleet.quotas import balance
from distier.plans.recovery.adopt import need_record
from distier.plans.tier import peers
from distier.plans.tier.peers import Ask, DiskSums, ask
from distier.worker import Worker
from docs.generate.keyspace import EXAMPLES, FCALLS, render
from tests.servers import TestServer

ROOT = Path(__file__).parent.parent.parent
needs_cli = pytest.mark.skipif(not shutil.which("redis-cli"), reason="no redis-cli on PATH")
# The server creates stream ids, times and write ids; digits and hex words in a reply are compared by shape.
_VARIES = re.compile(r"@[0-9]+-[0-9]+-[0-9a-f]{8}|[0-9a-f]{28,64}|[0-9]+(?:[-.][0-9]+)?")


def open_team(url: str, archive: Path, **more: Any) -> Store:
    return connect({"counter": "estimate"}, redis__url=url, namespace="team", near__enabled=False,
                   storage_tiers__cold__directory=archive, **more)  # fmt: skip


def kind_of(key: str, shards: int) -> list[int]:
    """The patterns of KEYSPACE that match a key."""
    tag = r"team" if shards == 1 else r"team\.[0-9]+"

    def fits(pattern: str) -> bool:
        wanted = re.escape(pattern).replace(re.escape("{t}"), rf"\{{{tag}\}}")
        wanted = wanted.replace("ids:<id>", "ids:[!-~]*")  # the first chunk has no id in its name
        return re.fullmatch(re.sub(r"<[a-z]+>", r"[!-~]+", wanted), key) is not None

    return [i for i, kind in enumerate(KEYSPACE) if fits(kind.pattern)]


def broad_workload(store: Store) -> None:
    """Every operation that leaves a key or a field behind."""
    store.put("a b/{c}*?", "text", keywords=["k"], meta={"m": 1})
    store.put_many(
        [Item(f"m/{i}", f"# Title {i}\n\nWords, words.\n" * 20, content_type="text/markdown") for i in range(20)]
    )
    # more than one chunk of the index in each shard
    store.put_many([Item(f"n/{i}", "x", tokens=0) for i in range(180 * len(store.space.keys.shards))])
    store.demote_many([f"m/{i}" for i in range(10)])
    store.demote_many([f"m/{i}" for i in range(5)], to="cold")
    store.get_many([f"m/{i}" for i in range(20)])
    store.put("data.json", '{ "a" : [ 1, 2 ] }')
    store.put("brief", "text", ttl=3600)
    store.pin("m/7", 60)
    store.delete("m/19")
    store.delete("m/3")
    store.put("m/3", "again")
    store.promote("m/4")
    for shard in store.space.keys.shards:
        store.run(maintain(store.space, shard), deadline_s=30)
        store.run(iter(take_lease(shard, shard.lease("m/1"), "another", 60_000)))
        store.run(iter(take_lease(shard, shard.write_back_lease("m/1"), "another", 60_000)))
    store.archive_now()
    assert Worker(store).run_once()
    store.run(join(store.space, "host-1-abc", {}, 60_000))
    store.put("m/18", "dirty again")
    shard = store.space.shard("m/1")
    lesson = Lesson(encode_id("m/1"), 8, 1, {"m/2": 1})
    store.run(iter(learn(shard, [lesson, Lesson(field_of_keyword("mail"), 8, 1, {"m/2": 1})])))
    for each in store.space.keys.shards:
        store.run(iter(use_dictionary(each, "0123abcd", b"what modules have in common")))
    a_node(store)


def a_node(store: Store) -> None:
    """What nodes with copies on their disks leave: one that holds a module, an ask that no node takes, and an answer."""
    store.run(heartbeat(store.space, "web1", DiskSums(1, 2, 3, 4), {}, lambda: ["m/1"], rebuild=False))
    record = store.run(need_record(store.space, "m/0"))
    assert record.clean
    assert store.run(ask(store.space, store.space.shard("m/0"), record, ["web1"], "copy")) is None
    store.run(answer(store.space, "web1", Ask("other", "t", "copy", "k").pack().encode()))


@pytest.mark.parametrize("shards", [1, 4])
def test_every_key_on_a_live_server_is_documented(
    redis_url: str, server: TestServer, tmp_path: Path, shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((nodes, "ALIVE_MS"), (nodes, "ANSWER_TTL_MS"), (peers, "ASKS_TTL_MIN_MS")):
        monkeypatch.setattr(module, name, 600_000)  # no key expires before it is looked at
    more = {"transforms": {"application/json": "json-whitespace"}, "outline": ["text/markdown"]}
    with open_team(
        redis_url,
        tmp_path / "cold",
        shards=shards,
        storage_tiers__hot__max_size=600 * shards,
        storage_tiers__hot__eviction_policy="s3fifo",
        worker__lease="5m",
        **more,
    ) as store:
        store.run(Recording(store.space).begin())
        broad_workload(store)
    met: set[int] = set()
    with server.client() as client:
        for raw in client.scan_iter(count=1000):
            key = raw.decode()
            found = kind_of(key, shards)
            assert len(found) == 1, f"{key} is documented {len(found)} times"
            kind = KEYSPACE[found[0]]
            assert client.type(raw).decode() == kind.type, key
            check_fields(client, raw, kind.what if kind.type in ("hash", "stream") else None)
            met.update(found)
    ledger = {i for i, kind in enumerate(KEYSPACE) if kind.pattern.endswith(":shares")}
    assert met == set(range(len(KEYSPACE))) - (ledger if shards == 1 else set()), [
        KEYSPACE[i].pattern for i in set(range(len(KEYSPACE))) - met
    ]


def check_fields(client: Any, key: bytes, what: str | None) -> None:
    """Check that the description names every field of a hash or an event."""
    if what is None or key.endswith((b":next", b":reads", b":dictionaries")):  # their fields are ids, or names
        return
    named = {word for quoted in re.findall(r"`([^`]*)`", what) for word in re.findall(r"<[^>]*>|[^ =]+", quoted)}
    entries = [client.hgetall(key)] if client.type(key) == b"hash" else [fields for _, fields in client.xrange(key)]
    for entry in entries:
        names = {re.sub(r"^(next[.])?[0-9]+$", r"\1<number>", name.decode()) for name in entry}
        names = {re.sub(r"^[0-9a-f]{28}$", "<write id>", re.sub(r"^#[0-9]+$", "#<n>", name)) for name in names}
        unknown = names - named
        assert not unknown, f"{key!r} has {unknown}, documented are {named}"


def test_keyspace_page_is_generated_from_the_code():
    assert (ROOT / "docs" / "KEYSPACE.md").read_text("utf-8") == render(), "run `make docs`"


# -- the page's commands, typed into redis-cli ---------------------------------------------------------------------


def cli(server: TestServer, command: str) -> str:
    """The output that a person sees after typing `command` into redis-cli."""
    argv = ["redis-cli", "--no-raw", "-s", str(server.socket)]
    done = subprocess.run(argv, input=command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout.rstrip()


def look_at_all(server: TestServer, archive: Path) -> dict[str, str]:
    """The output of each command of the page, on a small namespace."""
    seen: dict[str, str] = {}

    def look(store: Store, *endings: str) -> None:
        for kind in KEYSPACE:
            if kind.pattern.removeprefix("distier:{t}:") in endings:
                seen[kind.pattern] = cli(server, kind.look.replace("<tok>", landed.version.write_id))

    with open_team(server.socket_url, archive) as store:
        store.put("docs/style", "Plain words.", tokens=3)
        store.put("notes/old", "Old words. " * 20, tokens=60)
        store.demote("notes/old")
        landed = store.put("skills/pdf", "# PDF\n\nHow to fill forms.\n", keywords=["pdf"], tokens=9)
        look(store, "dirty", "done")
        store.archive_now()
        store.promote("notes/old")
        store.demote("notes/old")
        store.pin("skills/pdf", 3600)
        store.get("skills/pdf")
    with connect({"counter": "estimate"}, redis__url=server.socket_url, namespace="big", shards=2, near__enabled=False,
                 storage_tiers__cold__directory=archive) as store:  # fmt: skip
        store.run(balance(store.space))
        look(store, "shares")
    with open_team(server.socket_url, archive) as store:
        store.run(join(store.space, "host-4711-a1b2c3", {}, 60_000))
        look(store, "workers")
        shard = store.space.keys.shards[0]
        store.run(iter(take_lease(shard, shard.lease("skills/pdf"), "b1" * 16, 60_000)))
        look(
            store,
            "ids",
            "ids:<id>",
            "hits",
            "ghosts:<tier>",
            "module:<id>",
            "hot",
            "warm",
            "uses",
            "usage",
            "limits",
            "pins",
            "lease:<id>",
            "events",
            "epoch",
        )
        with open_team(server.socket_url, archive, storage_tiers__hot__eviction_policy="gdsf") as ranked:
            ranked.run(rank_modules(ranked.space, shard))
        look(store, "rank:<tier>")
        store.run(Recording(store.space).begin())
        store.get("skills/pdf")
        store.get("docs/style")
        store.run(send_touch(store.space, store._driver.uses.drain()))
        look(store, "reads")
        open_team(server.socket_url, archive, storage_tiers__hot__eviction_policy="lru").close()
        store.unpin("skills/pdf")
        store.demote("skills/pdf")
        look(store, "warm:<id>")
        learned = b"# PDF\n\nHow to fill forms.\n"
        store.run(iter(use_dictionary(shard, name_of(learned), learned)))
        look(store, "dictionaries")
        store.promote("skills/pdf")
        with server.client() as client:
            client.function_load(library("0.0.0"), replace=True)
        for name, command in FCALLS.items():
            seen[name] = cli(server, command)
    return seen


def shape(output: str) -> list[str]:
    """Lines without numbering (hashes have no order), with variable parts replaced."""
    lines = (re.sub(r"^(?: *[0-9]+\) )+", "", line).strip() for line in output.splitlines())
    return sorted(_VARIES.sub("#", line) for line in lines if line)


@needs_cli
def test_commands_of_the_page_print_what_the_page_shows(server: TestServer, redis_url: str, tmp_path: Path):
    seen = look_at_all(server, tmp_path / "cold")
    assert seen.keys() == EXAMPLES.keys()
    for name, output in seen.items():
        assert shape(output) == shape(EXAMPLES[name]), f"{name}:\n{output}"


def test_every_function_of_the_library_is_on_the_page(server: TestServer, redis_url: str):
    with server.client() as client:
        client.function_load(library("0.0.0"), replace=True)
        names = re.findall(r"distier_[a-z]+", str(client.function_list()))
    assert set(names) == {title.split()[0] for title in FCALLS}


def _print() -> None:
    import tempfile

    from tests.servers import running_server

    with running_server("redis", tcp=True) as server, tempfile.TemporaryDirectory() as directory:
        for name, output in look_at_all(server, Path(directory) / "cold").items():
            print(f"    {name!r}: r'''{output}''',")


if __name__ == "__main__":
    _print()
