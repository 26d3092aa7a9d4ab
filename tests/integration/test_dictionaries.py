"""Dictionaries for warm copies: a worker learns one, copies become smaller, and nothing is lost with a dictionary."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from distier import Item, Store
from distier.domain.dictionary import Dictionary, name_of
from distier.errors import ArchiveUnavailable, Corrupt, DistierError
from distier.lua import Refused, redirty, use_dictionary
from distier.plans.fleet import dictionaries
from distier.plans.fleet.dictionaries import keep_dictionaries, learn_if_due
from distier.plans.fleet.sweep import sweep
from distier.plans.get.peek import peek
from distier.plans.recovery.export import export
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.fsck.findings import Finding
from distier.plans.recovery.importing import Imported, place
from distier.plans.recovery.walk import Skipped
from distier.plans.tier.writeback import write_back
from distier.worker import Worker
from tests.integration.test_security import roles, store_of
from tests.integration.world import Open
from tests.servers import TestServer

WORDS = [f"{a}{b}{c}" for a in ("re", "in", "form", "de", "con") for b in ("vis", "put", "tain", "duc") for c in "aeo"]


def text(seed: int, sentences: int = 60) -> bytes:
    """Text of sentences that other modules have too, with some words of its own."""
    chance, shared = Random(seed), Random(0)
    pool = [" ".join(shared.choices(WORDS, k=12)) for _ in range(300)]
    lines = (f"- {chance.choice(pool)} {chance.choice(WORDS)}{seed}" for _ in range(sentences))
    return (f"# module {seed}\n" + "\n".join(lines)).encode()


CONTENTS = {f"skills/{n:03}": text(n) for n in range(100)}
__all__ = ["roles"]  # a fixture
ROOMY = {"storage_tiers__warm__max_modules": 1000, "storage_tiers__hot__max_size": 10_000_000}


@pytest.fixture
def open_roomy(open_store: Open) -> Open:
    return lambda **settings: open_store(**(ROOMY | settings))


def fill(store: Store) -> None:
    store.put_many([Item(id, content) for id, content in CONTENTS.items()])
    store.archive_now()


def learn(store: Store) -> int | None:
    return store.run(learn_if_due(store.space), deadline_s=60)


def keep(store: Store) -> int:
    return sum(store.run(keep_dictionaries(store.space, shard)) for shard in store.space.keys.shards)


def demote_all(store: Store, to: Any = "warm") -> None:
    for result in store.demote_many(list(CONTENTS), to=to):
        assert not isinstance(result, DistierError)


def codecs(server: TestServer, tag: str = "t") -> set[str]:
    with server.client() as raw:
        found = [raw.hget(key, "codec") for key in raw.keys(f"distier:{{{tag}}}:module:*")]
    return {codec.decode() for codec in found if codec}


def codec_of(server: TestServer, id: str) -> str:
    with server.client() as raw:
        return (raw.hget(f"distier:{{t}}:module:{id}", "codec") or b"").decode()


def current(server: TestServer, tag: str = "t") -> str:
    with server.client() as raw:
        return (raw.hget(f"distier:{{{tag}}}:epoch", "dictionary") or b"").decode()


def names(server: TestServer, tag: str = "t") -> set[str]:
    with server.client() as raw:
        return {name.decode() for name in raw.hkeys(f"distier:{{{tag}}}:dictionaries")}


def learned(store: Store, server: TestServer) -> str:
    """All modules are archived, and warm with a dictionary. Returns its name."""
    fill(store)
    assert learn(store) == 1
    demote_all(store)
    name = current(server)
    assert codecs(server) == {f"lz4d:{name}"}
    return name


def another(store: Store) -> Dictionary:
    """Another dictionary becomes the current one, as after another learning."""
    data = b"".join(CONTENTS.values())[-30_000:]
    store.run(iter(use_dictionary(store.space.keys.shards[0], name_of(data), data)))
    return Dictionary(name_of(data), data)


def lose(server: TestServer, archive: Path, *, redis: bool = True) -> None:
    """The dictionaries are gone from the archive, and from Redis."""
    shutil.rmtree(archive / "t/dictionaries")
    if redis:
        with server.client() as raw:
            raw.delete("distier:{t}:dictionaries")


def findings(store: Store, **options: Any) -> dict[str, int]:
    found: list[Finding] = []
    store.run(
        fsck(store.space, **options), deadline_s=60,
        on_progress=lambda one: found.append(one) if isinstance(one, Finding) else None,
    )  # fmt: skip
    return {kind: sum(one.kind == kind for one in found) for kind in {one.kind for one in found}}


def read_all(store: Store) -> dict[str, bytes | None]:
    return {id: module.content if module else None for id, module in store.get_many(CONTENTS).items()}


def test_worker_learns_and_copies_become_smaller(redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path):
    with open_roomy() as store:
        fill(store)
        demote_all(store)
        before = store.stats().warm.ratio or 0
        assert codecs(server) == {"lz4"}
        worker = Worker(store)
        assert worker.run_once(), worker.report
        assert worker.report.did["learned"] == 1
        for id in CONTENTS:
            store.promote(id)
        demote_all(store)
        name = current(server)
        assert codecs(server) == {f"lz4d:{name}"}
        assert (store.stats().warm.ratio or 0) > 1.4 * before
        assert name_of((tmp_path / f"cold/t/dictionaries/{name}.dict").read_bytes()) == name
        assert worker.run_once() and worker.report.did["learned"] == 1, "once a day"
    with open_roomy() as other:
        one = other.get("skills/007")
        assert one is not None and (one.content, one.tier) == (CONTENTS["skills/007"], "warm")
        assert read_all(other) == CONTENTS
        assert other.stats().counters["hits.warm"] == len(CONTENTS) + 1


def test_roles_of_the_acl_file_are_sufficient(roles: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dictionaries, "SEARCH_MS", 0)
    more = {"namespace": "t", "deadline": "60s", **ROOMY}
    with store_of(roles, "agent", tmp_path, **more) as agent, store_of(roles, "worker", tmp_path, **more) as worker:
        agent.put_many([Item(id, content) for id, content in CONTENTS.items()])
        rounds = Worker(worker)
        worker.archive_now()
        assert rounds.run_once(), rounds.report
        assert rounds.report.did["learned"] == 1
        agent.demote_many(list(CONTENTS), to="cold")
        assert read_all(agent) == CONTENTS
        old = current(roles)
        with roles.client() as raw:
            raw.delete("distier:{t}:dictionaries")
    with store_of(roles, "agent", tmp_path, **more) as agent, store_of(roles, "worker", tmp_path, **more) as worker:
        assert read_all(agent) == CONTENTS
        assert names(roles) == {old}
        another(worker)
        agent.demote_many(list(CONTENTS), to="cold")
        assert keep(worker) == 1


def test_cold_read_leaves_a_copy_with_the_dictionary(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store:
        name = learned(store, server)
        demote_all(store, "cold")
        for _ in range(2):
            assert read_all(store) == CONTENTS
        assert codecs(server) == {f"lz4d:{name}"}
        assert store.stats().counters["hits.warm"] == len(CONTENTS)


def test_too_few_modules_are_not_learned_from(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store:
        store.put_many([Item(id, content) for id, content in list(CONTENTS.items())[:40]])
        assert learn(store) == 0
        assert not current(server)
        with server.client() as raw:
            assert raw.pttl("distier:{t}:lease:%dictionary") <= dictionaries.AGAIN_MS


def test_modules_without_anything_in_common_give_no_dictionary(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store:
        store.put_many([Item(f"r/{n}", Random(n).randbytes(5000)) for n in range(80)])
        assert learn(store) == 0
        assert not current(server)
        assert learn(store) is None, "once a day"


def test_second_dictionary_comes_only_if_it_gains(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store:
        name = learned(store, server)
        with server.client() as raw:
            raw.delete("distier:{t}:lease:%dictionary")
        assert learn(store) == 0
        assert current(server) == name


def test_dictionary_gone_from_redis_is_read_from_the_archive(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store:
        name = learned(store, server)
    with server.client() as raw:
        raw.delete("distier:{t}:dictionaries")
    with open_roomy() as other:
        assert read_all(other) == CONTENTS
        assert other.stats().counters["hits.warm"] == len(CONTENTS)
        assert names(server) == {name}, "others find it in Redis again"


def test_damaged_dictionary_in_redis_is_not_used(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store:
        name = learned(store, server)
    with server.client() as raw:
        raw.hset("distier:{t}:dictionaries", name, b"something else")
    with open_roomy() as other:
        assert read_all(other) == CONTENTS
        assert other.stats().counters["hits.warm"] == len(CONTENTS)
    with server.client() as raw:
        assert name_of(raw.hget("distier:{t}:dictionaries", name) or b"") == name


def peeked(store: Store, id: str) -> bytes | None:
    found = store.run(peek(store.space, id, max_bytes=1 << 20, from_archive=True))
    return found.content if found else None


READERS: dict[str, Callable[[Store], Any]] = {
    "get": lambda store: {id: store.get(id).content for id in CONTENTS},  # type: ignore[union-attr]
    "get_many": read_all,
    "promote": lambda store: [store.promote(id) for id in CONTENTS] and read_all(store),
    "promote_many": lambda store: store.promote_many(list(CONTENTS)) and read_all(store),
    "peek": lambda store: {id: peeked(store, id) for id in CONTENTS},
}


@pytest.mark.parametrize("reader", READERS)
def test_dictionary_gone_everywhere_makes_clean_modules_cold(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path, reader: str
):
    with open_roomy() as store:
        learned(store, server)
    lose(server, tmp_path / "cold")
    with open_roomy() as other:
        assert READERS[reader](other) == CONTENTS
        keep(other)
        assert (current(server), names(server)) == ("", set()), "a dictionary that is gone is not the current one"
    with open_roomy() as another_one:
        assert read_all(another_one) == CONTENTS


def test_dictionary_that_is_gone_is_not_looked_for_with_every_module(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with open_roomy() as store:
        learned(store, server)
    lose(server, tmp_path / "cold")
    with open_roomy() as other:
        archive, asked = other._driver.archive, Counter[bool]()
        real = archive.get

        def get(key: str, **options: Any) -> Any:
            asked["/dictionaries/" in key] += 1
            return real(key, **options)

        monkeypatch.setattr(archive, "get", get)
        assert read_all(other) == CONTENTS
    assert asked[False] == len(CONTENTS)
    assert 0 < asked[True] <= 16, "each thread once"


def test_copies_whose_dictionary_is_gone_are_replaced_by_plain_ones(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path
):
    with open_roomy() as store:
        learned(store, server)
    lose(server, tmp_path / "cold")
    with open_roomy() as other:
        assert read_all(other) == CONTENTS
        assert codecs(server) == {"lz4"}
        assert read_all(other) == CONTENTS
        assert other.stats().counters["hits.warm"] == len(CONTENTS)


def test_archive_that_does_not_answer_is_no_missing_dictionary(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with open_roomy() as store:
        learned(store, server)
    with server.client() as raw:
        raw.delete("distier:{t}:dictionaries")
    with open_roomy() as other:

        def fail(key: str, **_: Any) -> None:
            raise ArchiveUnavailable(f"no answer about {key}")

        with monkeypatch.context() as patched:
            patched.setattr(other._driver.archive, "get", fail)
            with pytest.raises(ArchiveUnavailable):
                other.get("skills/001")
            with pytest.raises(ArchiveUnavailable):
                other.get_many(CONTENTS)
        assert read_all(other) == CONTENTS
        assert other.stats().counters["hits.warm"] == len(CONTENTS)


def test_fsck_drops_copies_whose_dictionary_is_gone(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path
):
    with open_roomy() as store:
        learned(store, server)
        assert findings(store, checksums=1) == {}
    lose(server, tmp_path / "cold")
    with open_roomy() as other:
        assert findings(other, checksums=1, repair=True) == {"copy-damaged": len(CONTENTS)}
        assert findings(other, checksums=1) == {}
        assert other.stats().cold.count == len(CONTENTS)


def test_dirty_modules_never_need_a_dictionary(redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path):
    with open_roomy() as store:
        name = learned(store, server)
        store.put("skills/003", CONTENTS["skills/004"])
        store.demote("skills/003", to="warm")
        assert codec_of(server, "skills/003") == "lz4"
        store.put("large", b"large " * 10, tokens=ROOMY["storage_tiers__hot__max_size"] + 1)
        assert codec_of(server, "large") in ("lz4", "raw")
        assert codec_of(server, "skills/004") == f"lz4d:{name}"
        lose(server, tmp_path / "cold")
        with open_roomy() as other:
            assert other.run(write_back(other.space.locate("skills/003"))) is not None
            assert other.get("skills/003").content == CONTENTS["skills/004"]  # type: ignore[union-attr]


def test_module_whose_object_is_gone_is_put_again_and_not_made_dirty(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path
):
    with open_roomy() as store:
        learned(store, server)
        shard = store.space.keys.shards[0]
        placed = store.where("skills/005")
        assert placed is not None
        assert isinstance(store.run(iter(redirty(shard, "skills/005", placed.version.write_id))), Refused)
        for path in (tmp_path / "cold/t/modules/skills/005").iterdir():
            path.unlink()
        assert findings(store) == {"object-gone": 1}
        assert findings(store, repair=True) == {"object-gone": 1}
        store.demote("skills/005", to="warm")
        assert codec_of(server, "skills/005") == "lz4"
        lose(server, tmp_path / "cold")
    with open_roomy() as other:
        other.archive_now()
        assert read_all(other) == CONTENTS
        assert findings(other) == {}


def test_module_that_an_older_client_made_dirty_is_read_and_archived_or_an_error(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path
):
    """The script `redirty` of a client that knows no dictionaries leaves the frame as it is."""
    id = "skills/006"
    with open_roomy() as store:
        learned(store, server)
    with server.client() as raw:
        raw.hset(f"distier:{{t}}:module:{id}", "clean", "0")
        raw.hdel(f"distier:{{t}}:module:{id}", "archived_bytes")
        raw.zadd("distier:{t}:dirty", {id: 1})
        raw.persist(f"distier:{{t}}:warm:{id}")
        saved = raw.hgetall("distier:{t}:dictionaries")
    for path in (tmp_path / f"cold/t/modules/{id}").iterdir():
        path.unlink()
    with open_roomy() as other:
        assert keep(other) == 0
        assert other.get(id).content == CONTENTS[id]  # type: ignore[union-attr]
    shutil.move(tmp_path / "cold/t/dictionaries", tmp_path / "moved")
    with server.client() as raw:
        raw.delete("distier:{t}:dictionaries")
    with open_roomy() as other:
        for read in (lambda: other.get(id), lambda: other.get_many([id]), lambda: other.promote(id)):
            with pytest.raises(Corrupt, match=r"skills/006.*(dictionary|gone or damaged)"):
                read()
        with server.client() as raw:
            raw.hset("distier:{t}:dictionaries", mapping=saved)
        assert other.run(write_back(other.space.locate(id))) is not None
        assert other.get(id).content == CONTENTS[id]  # type: ignore[union-attr]


def test_switched_off_nothing_is_learned_or_used_and_old_copies_are_read(
    redis_url: str, server: TestServer, open_roomy: Open
):
    with open_roomy(storage_tiers__warm__dictionary=False) as store:
        fill(store)
        assert learn(store) is None
        assert not current(server)
    with open_roomy() as on:
        assert learn(on) == 1
        demote_all(on)
    with open_roomy(storage_tiers__warm__dictionary=False) as off:
        assert read_all(off) == CONTENTS
        assert off.stats().counters["hits.warm"] == len(CONTENTS)
        for id in CONTENTS:
            off.promote(id)
        demote_all(off)
        assert codecs(server) == {"lz4"}


def test_old_dictionary_is_dropped_when_no_record_names_it(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(dictionaries, "SEARCH_MS", 0)
    with open_roomy() as store:
        old = learned(store, server)
        new = another(store)
        store.promote("skills/010")
        store.demote("skills/010", to="warm")
        assert codecs(server) == {f"lz4d:{old}", f"lz4d:{new.name}"}
        for _ in range(5):
            assert keep(store) == 0
        assert names(server) == {old, new.name}
        demote_all(store, "cold")
        for _ in range(5):
            keep(store)
        assert names(server) == {new.name}, "the current one stays, although nobody names it"
        assert store.stats().counters["dictionaries.dropped"] == 1
        path = tmp_path / f"cold/t/dictionaries/{old}.dict"
        assert read_all(store) == CONTENTS
        for is_old in (False, True):
            if is_old:
                os.utime(path, (0, 0))
            with server.client() as raw:
                raw.delete("distier:{t}:lease:%dictionary")
            assert learn(store) == 0
            assert path.exists() is not is_old


def test_writer_that_knows_an_older_dictionary_is_told_the_current_one(
    redis_url: str, server: TestServer, open_roomy: Open
):
    with open_roomy() as store, open_roomy() as other:
        old = learned(store, server)
        demote_all(store, "cold")
        assert read_all(other) == CONTENTS
        for id in CONTENTS:
            other.promote(id)
        new = another(store)
        assert other.space.process.dictionary[other.space.keys.shards[0]] == old
        assert other.demote("skills/000", to="warm").moved
        assert codec_of(server, "skills/000") == f"lz4d:{new.name}"


def test_old_dictionary_does_not_keep_a_read_from_its_content(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store, open_roomy() as other:
        learned(store, server)
        demote_all(store, "cold")
        other.get("skills/000")  # knows the dictionary
        another(store)
        assert read_all(other) == CONTENTS
        assert read_all(other) == CONTENTS


def test_evicted_modules_get_the_dictionary(redis_url: str, server: TestServer, open_store: Open):
    with open_store(**ROOMY) as store:
        name = learned(store, server)
        for id in CONTENTS:
            store.promote(id)
    with open_store(**(ROOMY | {"storage_tiers__hot__max_size": 20_000})) as other:
        for n in range(40):
            other.put(f"new/{n}", text(1000 + n))
        clean = {codec_of(server, id) for id in CONTENTS} - {""}
        assert clean == {f"lz4d:{name}"}


def test_lost_redis_gets_the_dictionary_of_the_archive(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy() as store:
        name = learned(store, server)
        with server.client() as raw:
            raw.flushall()
    with open_roomy() as other:
        assert read_all(other) == CONTENTS
        assert not current(server)
        assert learn(other) == 1
        assert current(server) == name, "what was learned again gains nothing over it"


def test_all_shards_get_the_dictionary(redis_url: str, server: TestServer, open_roomy: Open):
    with open_roomy(shards=3) as store:
        fill(store)
        assert learn(store) == 1
        name = current(server, "t.0")
        assert name and {current(server, f"t.{n}") for n in range(3)} == {name}
        with server.client() as raw:
            raw.hdel("distier:{t.1}:epoch", "dictionary")
            raw.delete("distier:{t.1}:dictionaries", "distier:{t.2}:dictionaries")
        assert keep(store) == 2
        assert [names(server, f"t.{n}") for n in range(3)] == [{name}] * 3
        demote_all(store)
        assert [codecs(server, f"t.{n}") for n in range(3)] == [{f"lz4d:{name}"}] * 3
        assert read_all(store) == CONTENTS


def test_other_plans_know_what_the_objects_are(redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path):
    with open_roomy() as store:
        name = learned(store, server)
        store.run(sweep(store.space), deadline_s=60)
        assert findings(store, checksums=1) == {}
        assert (tmp_path / f"cold/t/dictionaries/{name}.dict").exists()
        exported: list[Any] = []
        skipped = Skipped()
        store.run(export(store.space, skipped), deadline_s=60, on_progress=exported.append)
        key = f"t/dictionaries/{name}.dict"
        assert key in {one.key for one in exported} and not skipped.why
        assert place(store.space, f"other/dictionaries/{name}.dict") == Imported(key, b"", False)
        assert place(store.space, "other/dictionaries/README") is None
        exported.clear()
        store.run(export(store.space, skipped, prefix="skills/00"), deadline_s=60, on_progress=exported.append)
        assert key not in {one.key for one in exported}, "it has text of other modules"


@pytest.mark.skipif(not shutil.which("lz4"), reason="the program lz4 is not here")
def test_program_lz4_opens_a_copy_with_its_dictionary(
    redis_url: str, server: TestServer, open_roomy: Open, tmp_path: Path
):
    with open_roomy() as store:
        name = learned(store, server)
    with server.client() as raw:
        (tmp_path / "frame").write_bytes(raw.get("distier:{t}:warm:skills/011") or b"")
    command: list[str | Path] = ["lz4", "-dc", "-D", tmp_path / f"cold/t/dictionaries/{name}.dict", tmp_path / "frame"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == CONTENTS["skills/011"]
