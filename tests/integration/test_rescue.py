"""After a total loss of Redis the archive alone restores everything: byte-equal, resumable, and without deleted
modules.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from distier import Store
from distier.cli import run
from distier.domain.keys import Shard
from distier.domain.module import Module
from distier.effects import Plan
from distier.errors import ArchiveUnavailable, Corrupt, NotFound
from distier.lua import Opened, state
from distier.plans.fleet.sweep import sweep
from distier.plans.recovery.fsck.check import fsck
from distier.plans.recovery.fsck.findings import KINDS
from distier.plans.recovery.rescue import Rescued, rescue
from distier.stores.archive import Archive
from tests.integration.test_api import ODD_IDS, text_of
from tests.integration.world import Open
from tests.servers import TestServer

ROOT = Path(__file__).parent.parent.parent


def lose(server: TestServer) -> None:
    with server.client() as raw:
        raw.flushall()


def keyspace(server: TestServer) -> dict[bytes, Any]:
    with server.client() as raw:
        return {key: raw.dump(key) for key in raw.keys("*")}


def verified(store: Store) -> bool:
    states = [store.run(shard_state_now(shard)) for shard in store.space.keys.shards]
    return all(s.verified >= s.epoch for s in states)


def shard_state_now(shard: Shard) -> Plan[Opened]:
    return (yield from state(shard))


def forget_manifest(tmp_path: Path) -> None:
    """Leave the objects alone to the rescue."""
    shutil.rmtree(tmp_path / "cold/t/manifest")


def fill(store: Store, n: int = 40) -> dict[str, Module]:
    """Put modules of all kinds, some with several versions; return them as they read."""
    for i, id in enumerate([*ODD_IDS, *(f"m/{i}" for i in range(n))]):
        content = b"" if i % 9 == 0 else bytes(range(256)) * 3 if i % 7 == 0 else text_of(50 + i * 20, id)
        store.put(id, content, keywords=["k", str(i)], meta={"i": i, "ü": [1]})
        if i % 5 == 0:
            store.archive_now()
            store.put(id, content + b"!", keywords=["k", str(i)], meta={"i": i})
    store.archive_now()
    return {id: module for id, module in store.get_many(store.list()).items() if module}


def same(a: Module, b: Module | None) -> bool:
    """Compare everything that a reader may rely on. Tiers and times differ."""
    names = ("id", "content", "content_type", "tokens", "counter", "keywords", "meta", "version", "sha256")
    return b is not None and all(getattr(a, n) == getattr(b, n) for n in names)


def sound(store: Store) -> None:
    found = store.run(fsck(store.space, checksums=1), deadline_s=60)
    assert not [f for f in found.listed if KINDS[f.kind].level != "note"], found.listed


@pytest.mark.parametrize("shards", [1, 3])
def test_rescue_restores_every_module(open_store: Open, server: TestServer, shards: int):
    store = open_store(shards=shards)
    before = fill(store)
    lose(server)
    reported: list[int] = []
    report = store.run(rescue(store.space), deadline_s=60, on_progress=lambda r: reported.append(r.adopted))
    assert (report.adopted, report.known, report.deleted, report.unreadable) == (len(before), 0, 0, {})
    assert reported[-1] == len(before)
    assert verified(store)
    assert sorted(store.list()) == sorted(before)
    after = store.get_many(before)
    assert [id for id, module in before.items() if not same(module, after[id])] == []
    sound(store)
    again = store.run(rescue(store.space), deadline_s=60)
    assert (again.adopted, again.known) == (0, len(before))


def test_dry_run_changes_nothing_and_reports_the_same(open_store: Open, server: TestServer):
    store = open_store()
    before = fill(store, 5)
    lose(server)
    store.get(next(iter(before)))  # the shard has its epoch, and one module is known
    kept = keyspace(server)
    dry = store.run(rescue(store.space, dry_run=True), deadline_s=60)
    assert keyspace(server) == kept
    assert not verified(store)
    wet = store.run(rescue(store.space), deadline_s=60)
    assert (dry.adopted, dry.known, dry.modules) == (wet.adopted, wet.known, wet.modules) == (
        len(before) - 1, 1, len(before),
    )  # fmt: skip


def test_deleted_modules_stay_deleted(open_store: Open, server: TestServer):
    store = open_store()
    before = fill(store, 10)
    for id in ("m/1", "m/2", "m/3"):
        store.delete(id)
    store.archive_now()
    store.run(sweep(store.space), deadline_s=30)
    store.delete("m/4")  # not archived, so this deletion is lost with Redis, as documented for level `redis`
    lose(server)
    assert store.get("m/1") is None  # before the rescue too
    with pytest.raises(NotFound):
        store.promote("m/2")
    report = store.run(rescue(store.space), deadline_s=60)
    assert report.deleted == 3
    assert store.get_many(["m/1", "m/2", "m/3"]) == dict.fromkeys(["m/1", "m/2", "m/3"])
    assert same(before["m/4"], store.get("m/4"))
    assert not {"m/1", "m/2", "m/3"} & set(store.list())
    sound(store)


def test_reads_and_writes_during_a_rescue_are_correct(open_store: Open, server: TestServer):
    """Between any two effects of a rescue, other stores read, put and delete. Every result is right, and no write is
    undone.
    """
    store, others = open_store(), open_store()
    before = fill(store, 30)
    lose(server)
    ids = iter(sorted(before))
    put: dict[str, bytes] = {}
    gone: set[str] = set()

    def meddle() -> None:
        for id in (next(ids, None), next(ids, None), next(ids, None)):
            if id is None:
                return
            assert same(before[id], others.get(id)), id
            if len(put) <= len(gone):
                others.put(id, b"newer " + id.encode())
                put[id] = b"newer " + id.encode()
            else:
                assert others.delete(id)
                gone.add(id)

    plan = rescue(store.space)
    try:
        effect = next(plan)
        while True:
            result = store._driver.perform(effect, 1e12)
            meddle()
            effect = plan.send(result)
    except StopIteration as stop:
        report: Rescued = stop.value
    assert put
    assert gone
    assert report.unreadable == {}
    after = store.get_many(before)
    for id, module in before.items():
        if id in gone:
            assert after[id] is None, id
        elif id in put:
            assert after[id].content == put[id]  # type: ignore[union-attr]
        else:
            assert same(module, after[id]), id
    store.archive_now()
    sound(store)


PROGRAM = """
import sys
from distier import connect
from distier.plans.recovery import rescue as plans
plans.BATCH = 10
store = connect({"counter": "estimate"}, redis__url=sys.argv[1], namespace="t", storage_tiers__cold__directory=sys.argv[2])
def wait(progress):
    print(progress.adopted, progress.known, flush=True)
    sys.stdin.readline()  # continues when the parent writes a line
report = store.run(plans.rescue(store.space), deadline_s=60, on_progress=wait)
"""


def test_killed_rescue_continues_when_run_again(open_store: Open, server: TestServer, redis_url: str, tmp_path: Path):
    store = open_store()
    before = fill(store, 60)
    lose(server)
    adopted = 0
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", PROGRAM, redis_url, str(tmp_path / "cold")], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as process:  # fmt: skip
            assert process.stdout
            assert process.stdin
            while True:
                new, known = map(int, process.stdout.readline().split())
                if new >= 10:
                    break
                process.stdin.write("\n")
                process.stdin.flush()
            process.send_signal(signal.SIGKILL)
        assert known >= adopted
        adopted += new
        assert not verified(store)
        assert same(before["m/7"], store.get("m/7"))
    report = store.run(rescue(store.space), deadline_s=60)
    assert adopted <= report.known < len(before)
    assert report.known + report.adopted == len(before)
    assert all(same(module, store.get(id)) for id, module in before.items())
    assert verified(store)
    sound(store)


def test_rescue_does_not_replace_a_newer_version(open_store: Open, server: TestServer):
    store = open_store()
    fill(store, 3)
    landed = store.put("m/1", "not archived yet")
    report = store.run(rescue(store.space), deadline_s=60)
    assert report.adopted == 0
    assert store.get("m/1").version == landed.version  # type: ignore[union-attr]


def test_unreadable_module_is_reported_and_the_rest_is_restored(open_store: Open, server: TestServer, tmp_path: Path):
    store = open_store()
    before = fill(store, 5)
    (damaged,) = (p for p in (tmp_path / "cold/t/modules/m/1").iterdir() if p.suffix == ".xz")
    damaged.write_bytes(b"not xz")
    for sidecar in damaged.parent.glob("*.json"):
        sidecar.unlink()
    forget_manifest(tmp_path)
    lose(server)
    report: Rescued = store.run(rescue(store.space), deadline_s=60)
    assert list(report.unreadable) == ["m/1"]
    assert report.adopted == len(before) - 1
    assert not verified(store)  # a miss is not proven
    with pytest.raises(Corrupt):
        store.get("m/1")
    assert same(before["m/2"], store.get("m/2"))


def test_rescue_without_sidecars_restores_contents_and_types(open_store: Open, server: TestServer, tmp_path: Path):
    """Content and type are restored; keywords and meta were only in the sidecars and in the manifest."""
    store = open_store()
    before = fill(store, 5)
    for sidecar in (tmp_path / "cold").rglob("*.meta.json"):
        sidecar.unlink()
    forget_manifest(tmp_path)
    lose(server)
    assert store.run(rescue(store.space), deadline_s=60).adopted == len(before)
    for id, module in before.items():
        found = store.get(id)
        assert found is not None
        assert (found.content, found.content_type, found.tokens) == (module.content, module.content_type, module.tokens)
        assert (found.version[:2], found.sha256) == (module.version[:2], module.sha256)


def test_rescue_can_be_repeated_after_an_archive_outage(open_store: Open, server: TestServer, tmp_path: Path):
    store = open_store()
    before = fill(store, 20)
    forget_manifest(tmp_path)
    lose(server)
    driver = store._driver
    archive: Archive = driver.archive
    calls = iter(range(10_000))

    class Fails:
        def __getattr__(self, name: str) -> Any:
            return getattr(archive, name)

        def get(self, key: str, *, max_bytes: int) -> Any:
            if next(calls) > 10:
                raise ArchiveUnavailable("it is away")
            return archive.get(key, max_bytes=max_bytes)

    driver.archive = Fails()
    with pytest.raises(ArchiveUnavailable):
        store.run(rescue(store.space), deadline_s=60)
    assert not verified(store)
    driver.archive = archive
    store.run(rescue(store.space), deadline_s=60)
    assert all(same(module, store.get(id)) for id, module in before.items())


def test_rescue_command_reports_json(
    open_store: Open, server: TestServer, redis_url: str, tmp_path: Path, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    store = open_store()
    before = fill(store, 5)
    lose(server)
    for name, value in {
        "DISTIER_REDIS_URL": redis_url, "DISTIER_NAMESPACE": "t", "DISTIER_COUNTER": "estimate",
        "DISTIER_STORAGE_TIERS__COLD__DIRECTORY": str(tmp_path / "cold"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def cli(*words: str) -> tuple[int, dict[str, Any]]:
        capfd.readouterr()
        code = run([*words, "--json"])
        return code, json.loads(capfd.readouterr().out)

    code, dry = cli("rescue", "--dry-run")
    assert (code, dry["adopted"], dry["dry_run"]) == (0, len(before), True)
    code, wet = cli("rescue")
    assert (code, wet["adopted"], wet["unreadable"]) == (0, len(before), {})
    assert verified(store)
