"""The roles of deploy/redis/users.acl on real servers: the permissions that each has and lacks; TLS; secrets in output;
ids that try to escape from their keys and directories; foreign data in Redis.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import redis

from distier import AsyncStore, Store, connect, connect_async
from distier.cli import run
from distier.config import load_config
from distier.domain.ids import decode_id, encode_id
from distier.domain.keys import Shard
from distier.errors import ConfigError, DistierError, Invalid, Unavailable
from distier.lua.library import READS, WRITES, library
from distier.stores.redis import RedisExchange
from distier.web import app as web_app
from distier.worker import Worker
from tests.certificates import certificates
from tests.servers import TestServer, free_port, poll, start_server
from tests.web.conftest import client as page_client
from tests.web.conftest import needs

ACL_FILE = Path(__file__).parents[2] / "deploy" / "redis" / "users.acl"
SECRET = "s3cr3t-pa55word"
ROLES = ("agent", "worker", "operator", "deployer", "exporter", "health")
TEXT = "what agents load, what agents load, what agents load. " * 40


def rules() -> dict[str, list[str]]:
    """The rules of each user, with the password of the tests in place of each placeholder."""
    found = {}
    for line in ACL_FILE.read_text().splitlines():
        _, user, *words = line.split()
        placeholder = "#" + "0" * 64
        found[user] = ["#" + sha256(SECRET.encode()).hexdigest() if w == placeholder else w for w in words]
    return found


@pytest.fixture
def roles(server: TestServer, redis_url: str) -> Iterator[TestServer]:
    """A server on which the roles exist."""
    with server.client() as client:
        for user, words in rules().items():
            if user != "default":  # the tests' own; test_deploy starts a server with it off
                client.execute_command("ACL", "SETUSER", user, "reset", *words)
        yield server
        client.execute_command("ACL", "DELUSER", *ROLES, "admin")
        client.flushall()


def settings(server: TestServer, role: str, archive: Path, **more: Any) -> dict[str, Any]:
    base = {
        "redis__url": server.url, "redis__username": role, "redis__password": SECRET, "namespace": "team",
        "storage_tiers__cold__directory": archive, "deadline": "3s",
    }  # fmt: skip
    return base | more


def store_of(server: TestServer, role: str, archive: Path, **more: Any) -> Store:
    return connect({"counter": "estimate"}, **settings(server, role, archive, **more))


def raw(server: TestServer, role: str) -> redis.Redis:
    return redis.Redis.from_url(server.url, username=role, password=SECRET, socket_timeout=5)


def refused(server: TestServer, role: str, *command: str | int) -> None:
    """Check that the command is not allowed, by its name or by its key."""
    with raw(server, role) as client, pytest.raises(redis.ResponseError) as caught:
        client.execute_command(*command)
    text = str(caught.value)
    wordings = ("permission", "The user executing the script can't")  # the wording of Redis 7.0 in scripts
    assert isinstance(caught.value, redis.exceptions.NoPermissionError) or any(word in text for word in wordings), text


# -- the roles -------------------------------------------------------------------------------------------------------

FORBIDDEN_TO_ALL: tuple[tuple[str | int, ...], ...] = (
    ("FLUSHALL",), ("FLUSHDB",), ("CONFIG", "SET", "maxmemory", "1"), ("KEYS", "*"), ("SHUTDOWN", "NOSAVE"),
    ("ACL", "LIST"), ("ACL", "SETUSER", "agent", "allcommands"), ("LATENCY", "RESET"), ("MONITOR",),
    ("CLIENT", "KILL", "TYPE", "normal"), ("REPLICAOF", "NO", "ONE"), ("MODULE", "LIST"), ("SCRIPT", "FLUSH"),
    ("FUNCTION", "FLUSH"), ("MIGRATE", "h", 1, "k", 0, 1), ("RESTORE", "distier:{team}:x", 0, "x"), ("SAVE",),
    ("GET", "other"), ("SET", "other", "x"), ("HGETALL", "other:{team}:module:a"), ("DEL", "other"),
    ("RENAME", "distier:{team}:hot", "other"), ("SWAPDB", 0, 1), ("SUBSCRIBE", "x"),
)  # fmt: skip


@pytest.mark.parametrize("role", ROLES)
def test_no_role_can_exceed_its_permissions(roles: TestServer, role: str) -> None:
    for command in FORBIDDEN_TO_ALL:
        refused(roles, role, *command)


def test_administrator_can_do_what_the_page_requires(roles: TestServer) -> None:
    with raw(roles, "admin") as client:
        before = client.config_get("maxmemory")
        assert client.config_set("maxmemory", 1 << 30) and client.config_set("maxmemory", before["maxmemory"])
        assert client.acl_whoami() == "admin" and client.set("other", "x") and client.memory_usage("other")
        assert client.delete("other") and client.client_list() and client.execute_command("ACL", "LOG", "RESET")


async def everything_an_agent_does(store: Store, other: AsyncStore) -> None:
    big = os.urandom(60_000).hex()
    landed = store.put("a/b", TEXT, keywords=["k"], meta={"m": 1})
    assert [r.tier for r in store.put_many([_item(f"many/{i}", TEXT) for i in range(5)])] == ["hot"] * 5  # type: ignore[union-attr]
    assert store.get("a/b").text == TEXT  # type: ignore[union-attr]
    store.put("big", big, if_version=0)
    assert set(store.get_many(["a/b", "big", "none"])) == {"a/b", "big", "none"}
    assert store.demote("a/b").moved and store.get("a/b").tier in ("warm", "hot")  # type: ignore[union-attr]
    assert store.archive_now() >= 1
    assert store.demote("a/b", to="cold").tier == "cold" and store.get("a/b").text == TEXT  # type: ignore[union-attr]
    store.promote_many(["a/b", "big"])
    assert store.pin("a/b", 60) > 0 and store.where("a/b").pinned_until_ms  # type: ignore[union-attr]
    store.unpin("a/b")
    store.demote_many(["many/0", "many/1"])
    assert store.exists("a/b") and "a/b" in set(store.list("a"))
    assert store.stats().count == 7
    assert {e.id for e in store.events(since="0", wait=False)} >= {"a/b", "big"}
    assert (await other.get("a/b")).version == landed.version  # type: ignore[union-attr]
    assert store.delete("a/b")
    async with asyncio.timeout(60):  # the near cache of the other store is invalidated a moment later
        while await other.get("a/b") is not None:
            await asyncio.sleep(0.005)


def _item(id: str, text: str) -> Any:
    from distier import Item

    return Item(id, text)


async def test_agent_can_use_the_whole_store(roles: TestServer, tmp_path: Path) -> None:
    more: dict[str, Any] = {"storage_tiers__promotion_threshold": 2}
    with store_of(roles, "agent", tmp_path, **more) as store:
        other = await connect_async({"counter": "estimate"}, **settings(roles, "agent", tmp_path))
        await everything_an_agent_does(store, other)
        await other.close()
        # Evictions: a budget of three small modules.
        tight = {"storage_tiers__hot__max_size": 2000, "storage_tiers__warm__max_modules": 2}
        with store_of(roles, "agent", tmp_path, namespace="tight", **tight) as small:
            for i in range(12):
                small.put(f"m{i}", TEXT)
            assert all(small.get(f"m{i}").text == TEXT for i in range(12))  # type: ignore[union-attr]
    for command in (("CONFIG", "GET", "*"), ("SLOWLOG", "GET"), ("FUNCTION", "LOAD", "x"), ("EVAL", "return 1", 0)):
        refused(roles, "agent", *command)


def test_agent_has_a_near_cache(roles: TestServer, tmp_path: Path) -> None:
    with store_of(roles, "agent", tmp_path) as store:
        store.put("a", TEXT)

        def hit() -> bool:
            store.get("a")
            return store.stats().near.hits > 0

        poll(hit, what=f"a hit of the near cache ({store.near.status})")
        assert store.near.status == "on"


def test_role_without_tracking_reads_without_a_near_cache(roles: TestServer, tmp_path: Path) -> None:
    with store_of(roles, "worker", tmp_path) as store:
        store.put("a", TEXT)
        assert store.get("a").text == TEXT  # type: ignore[union-attr]
        poll(lambda: store.near.status.startswith("off:"), what="a refused near cache")
        assert store.get("a").text == TEXT and SECRET not in store.near.status  # type: ignore[union-attr]


def test_worker_can_maintain(roles: TestServer, tmp_path: Path) -> None:
    fast = {"storage_tiers__cold__archive_after": "0s", "storage_tiers__demotion_threshold": "1s",
            "storage_tiers__hot__max_size": 1500, "storage_tiers__warm__ttl": "1s",
            "worker__uses_half_life": "1s"}  # fmt: skip
    with store_of(roles, "worker", tmp_path, **fast) as store:
        worker = Worker(store)
        for i in range(8):
            store.put(f"m{i}", TEXT)

        def maintained() -> bool:
            assert worker.run_once(), worker.report.last_failure
            did = worker.report.did
            return did["archived"] > 0 and did["expired"] > 0 and did["aged"] > 0

        poll(maintained, what="archived, expired and aged")
        store.put("m0", TEXT + "2")
        assert worker.run_once() and "swept" in worker.report.did
    for command in (("CONFIG", "GET", "*"), ("FUNCTION", "LOAD", "x"), ("EVAL", "return 1", 0), ("CLIENT", "LIST")):
        refused(roles, "worker", *command)


@pytest.fixture
def filled(roles: TestServer, tmp_path: Path) -> tuple[TestServer, Path]:
    """A namespace with a module in each tier."""
    with store_of(roles, "agent", tmp_path) as store:
        for id in ("hot", "warm", "cold"):
            store.put(id, TEXT)
        store.archive_now()
        store.demote("warm")
        store.demote("cold", to="cold")
    return roles, tmp_path


def test_operator_sees_everything_and_changes_nothing(filled: tuple[TestServer, Path]) -> None:
    server, archive = filled
    with server.client() as client:
        before = _dump(client)
        with store_of(server, "operator", archive) as store:
            assert store.stats().count == 3
            assert {id: store.where(id).tier for id in store.list()} == {i: i for i in ("hot", "warm", "cold")}  # type: ignore[union-attr]
            assert len(list(store.events(since="0", wait=False))) >= 5
            for change in _changes(store):
                with pytest.raises(ConfigError) as caught:
                    change()
                _no_secret(caught.value)
        assert _dump(client) == before
    with raw(server, "operator") as watcher:
        assert watcher.xread({"distier:{team}:events": "0"}) and watcher.info("memory") and watcher.slowlog_len() >= 0
        # Contents of hot modules are fields of their records; a user who must not see them gets the role `exporter`.
        assert watcher.hget("distier:{team}:module:hot", "content") == TEXT.encode()
    for command in (("CONFIG", "GET", "*"), ("SET", "distier:{team}:x", "y"), ("XADD", "distier:{team}:events", "*", "a", 1),
                  ("HSET", "distier:{team}:limits", "hot_tokens", 1), ("FUNCTION", "LOAD", "x")):  # fmt: skip
        refused(server, "operator", *command)


def test_operator_can_use_the_page_and_nothing_is_written(filled: tuple[TestServer, Path]) -> None:
    needs("starlette", "httpx2")
    server, archive = filled
    with server.client() as client, store_of(server, "operator", archive) as store:
        before = _dump(client)
        with page_client(web_app(store, write=True)) as c:
            for path in ("/", "/modules", "/modules?order=lru", "/modules?order=biggest", "/module?id=hot", "/module?id=warm",
                         "/module?id=cold&archived=1", "/fleet", "/archive", "/series.json"):  # fmt: skip
                assert c.get(path).status_code == 200, path
            same = {"origin": "http://127.0.0.1:8080"}
            for action in ("demote?id=hot", "promote?id=cold", "pin?id=hot&for=1%20h", "unpin?id=hot"):
                assert "It was not done" in c.post(f"/do/{action}", headers=same).text
        assert _dump(client) == before


def _changes(store: Store) -> list[Callable[[], object]]:
    return [
        lambda: store.put("hot", "x"), lambda: store.delete("hot"), lambda: store.demote("hot"),
        lambda: store.promote("cold"), lambda: store.pin("hot", 60), lambda: store.put("new", "x"),
    ]  # fmt: skip


def _dump(client: redis.Redis) -> dict[bytes, Any]:
    """All stored data. (DUMP shows the order of a hash's fields, which is not stored data.)"""
    read: dict[Any, Callable[[Any], Any]] = {
        b"hash": client.hgetall, b"string": client.get, b"stream": lambda k: client.xrange(k),
        b"zset": lambda k: client.zrange(k, 0, -1, withscores=True),
    }  # fmt: skip
    return {key: read[client.type(key)](key) for key in client.scan_iter() if b":lease:" not in key}


def _environment(monkeypatch: pytest.MonkeyPatch, server: TestServer, role: str, archive: Path) -> None:
    for name, value in {"REDIS_URL": server.url, "REDIS__USERNAME": role, "REDIS__PASSWORD": SECRET, "NAMESPACE": "team",
                        "STORAGE_TIERS__COLD__DIRECTORY": str(archive)}.items():  # fmt: skip
        monkeypatch.setenv(f"DISTIER_{name}", value)


def test_worker_can_repair_and_rescue(
    filled: tuple[TestServer, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server, archive = filled
    _environment(monkeypatch, server, "worker", archive)
    with server.client() as client:
        client.zrem("distier:{team}:hot", "hot")  # something to repair
    for words in (["fsck", "--repair", "--checksums", "1"], ["rescue"], ["fsck"], ["worker", "--once"]):
        assert run(words) == 0, capfd.readouterr()
    _environment(monkeypatch, server, "operator", archive)
    assert run(["fsck", "--checksums", "1"]) == 0, capfd.readouterr()
    assert SECRET not in "".join(capfd.readouterr())


def test_operator_can_use_the_command_line(
    filled: tuple[TestServer, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server, archive = filled
    _environment(monkeypatch, server, "operator", archive)
    for words in (["stats"], ["ls", "-l"], ["where", "hot", "cold"], ["watch", "--since", "0", "--no-wait"], ["doctor"],
                  ["config", "show"]):  # fmt: skip
        assert run(words) == 0, capfd.readouterr()
    assert run(["put", "x", str(ACL_FILE)]) == 9
    out, err = capfd.readouterr()
    assert SECRET not in out + err and "***" in out


def test_operator_cannot_create_a_namespace(roles: TestServer, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        store_of(roles, "operator", tmp_path, namespace="new")
    _no_secret(caught.value)
    with roles.client() as client:
        assert not list(client.scan_iter("distier:{new}:*"))


def test_deployer_loads_functions_sets_limits_and_reads_no_module(filled: tuple[TestServer, Path]) -> None:
    server, archive = filled
    with raw(server, "deployer") as client:
        client.function_load(library("0.0.0"), replace=True)
        assert client.config_get("maxmemory-policy")
    with store_of(server, "deployer", archive, storage_tiers__hot__max_size=1234) as store:
        assert store.stats().hot.max_tokens == 1234
        for call in (lambda: store.get("hot"), lambda: store.put("a", "x"), lambda: store.where("hot")):
            with pytest.raises(ConfigError):
                call()
    with raw(server, "operator") as client:
        root = "distier:{team}:"
        for name in READS:
            args = [[], ["hot"]][name in ("where", "explain")]
            assert client.fcall_ro(f"distier_{name}", 1, root, *args)
        for name in WRITES.keys() - {"promote", "unpin"}:  # these two have nothing to do here
            with pytest.raises(redis.ResponseError):
                client.fcall(f"distier_{name}", 1, root, "hot", 1000)
    with raw(server, "agent") as client, pytest.raises(redis.ResponseError):
        client.fcall_ro("distier_where", 1, root, "hot")
    for command in (("HGETALL", "distier:{team}:module:hot"), ("GET", "distier:{team}:warm:warm"), ("EVAL", "return 1", 0),
                  ("FUNCTION", "DELETE", "distier"), ("CONFIG", "REWRITE")):  # fmt: skip
        refused(server, "deployer", *command)


def test_roles_are_sufficient_for_several_shards(roles: TestServer, tmp_path: Path) -> None:
    """An agent moves quotas for a large module, a worker balances, a deployer sets totals, and an operator looks."""
    more = {"namespace": "wide", "shards": 4, "storage_tiers__hot__max_size": 1000}
    with store_of(roles, "agent", tmp_path, **more) as store:
        for i in range(20):
            store.put(f"m{i}", TEXT, tokens=20)
        assert store.put("large", TEXT, tokens=700).tier == "hot"
    with store_of(roles, "worker", tmp_path, **more) as store:
        worker = Worker(store)
        assert worker.run_once(), worker.report.last_failure
    with store_of(roles, "deployer", tmp_path, **more | {"storage_tiers__hot__max_size": 700}) as store:
        assert store.stats().hot.max_tokens == 700
    with store_of(roles, "operator", tmp_path, namespace="wide", shards=4) as store:
        assert store.stats().hot.max_tokens == sum(s.max_hot_tokens for s in store.stats().quotas) == 700


def exported(client: redis.Redis, tmp: Path, namespaces: str) -> dict[bytes, float]:
    """Run the script that exporter.sh makes for these namespaces and hands to a redis_exporter; return its figures."""
    tmp = tmp / "exporter"
    tmp.mkdir(exist_ok=True)
    (tmp / "redis_exporter").write_text('#!/bin/sh\n[ "$1" = --script ] && cat "$2"\n')
    (tmp / "redis_exporter").chmod(0o700)
    prometheus = ACL_FILE.parents[1] / "prometheus"
    environment = {"PATH": f"{tmp}:{os.environ['PATH']}", "NAMESPACES": namespaces, "EXPORTER_CONFIG_DIR": str(prometheus),
                   "EXPORTER_SCRIPT": str(tmp / "script.lua")}  # fmt: skip
    done = subprocess.run(
        [prometheus / "exporter.sh"], env=environment, capture_output=True, text=True, check=False, timeout=20
    )
    assert done.returncode == 0, done.stderr
    flat = client.eval(done.stdout, 0)
    return dict(zip(flat[::2], map(float, flat[1::2]), strict=True))


def test_exporter_reports_each_shard_of_each_namespace(roles: TestServer, tmp_path: Path) -> None:
    for namespace, shards in (("team", 1), ("other-1.x", 4)):
        with store_of(roles, "agent", tmp_path, namespace=namespace, shards=shards) as store:
            store.put_many([_item(f"m/{i}", TEXT) for i in range(20)])
    with raw(roles, "exporter") as client:
        found = exported(client, tmp_path, "team other-1.x")
        assert found[b"team.usage.hot_count"] == 20 and found[b"team.epoch"] == 1
        assert sum(found[f"other-1.x.{i}.usage.hot_count".encode()] for i in range(4)) == 20
        assert {key.rpartition(b".")[0] for key in found if key.endswith(b".epoch")} == {
            b"team", *(f"other-1.x.{i}".encode() for i in range(4))
        }  # fmt: skip
        assert not exported(client, tmp_path, "unknown")
        assert set(exported(client, tmp_path, "team")) < set(found)
    with raw(roles, "exporter") as client, pytest.raises(AssertionError, match="not the name of a namespace"):
        exported(client, tmp_path, "x'} redis.call('FLUSHALL') --")


def test_exporter_can_read_only_figures(filled: tuple[TestServer, Path]) -> None:
    server, archive = filled
    with raw(server, "exporter") as client:
        found = exported(client, archive, "none team")
        with store_of(server, "operator", archive) as store:
            stats = store.stats()
        assert found[b"team.usage.hot_tokens"] == stats.hot.tokens and found[b"team.limits.hot_tokens"] == 50_000
        assert found[b"team.usage.archived_count"] == 3 and found[b"team.dirty_oldest_seconds"] == 0
        assert found[b"team.epoch"] == 1
    reads = "return redis.call('HGETALL', 'distier:{team}:module:hot')"
    for command in (("HGETALL", "distier:{team}:module:hot"), ("EVAL", reads, 0), ("SCAN", 0), ("GET", "x"),
                  ("EVAL", "return redis.call('HSET', 'distier:{team}:limits', 'hot_tokens', 1)", 0)):  # fmt: skip
        refused(server, "exporter", *command)


def test_wrong_password_fails_at_once_and_is_not_shown(roles: TestServer, tmp_path: Path) -> None:
    began_s = time.monotonic()
    wrong = SECRET[::-1]  # not written out: tracebacks quote these lines
    with pytest.raises(ConfigError) as caught:
        store_of(roles, "agent", tmp_path, redis__password=wrong, deadline="100s")
    assert time.monotonic() - began_s < 50  # not until the deadline
    _no_secret(caught.value, wrong)
    with pytest.raises(ConfigError):
        connect({"counter": "estimate"}, **settings(roles, "unknown", tmp_path))


# -- TLS -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tls() -> Iterator[tuple[str, Path]]:
    """A server that accepts only TLS with client certificates: its URL, and the directory of the files."""
    with certificates() as at:
        port = free_port()
        files = {"--tls-cert-file": "server.crt", "--tls-key-file": "server.key", "--tls-ca-cert-file": "ca.crt"}
        args = [word for name, file in files.items() for word in (name, str(at / file))]
        server = start_server("redis", at, args=("--tls-port", str(port), "--tls-auth-clients", "yes", *args))
        yield f"rediss://127.0.0.1:{port}/0", at
        server.kill9()


def _tls_settings(tls: tuple[str, Path], archive: Path, ca: str, client: str | None) -> dict[str, Any]:
    url, at = tls
    found: dict[str, Any] = {"redis__url": url, "redis__ca_file": at / f"{ca}.crt", "deadline": "3s",
                             "storage_tiers__cold__directory": archive}  # fmt: skip
    if client:
        found |= {"redis__cert_file": at / f"{client}.crt", "redis__key_file": at / f"{client}.key"}
    return found


async def test_tls_with_a_client_certificate_works(tls: tuple[str, Path], tmp_path: Path) -> None:
    wanted = _tls_settings(tls, tmp_path, "ca", "client")
    with connect({"counter": "estimate"}, **wanted) as store:
        store.put("a", TEXT)
        other = await connect_async({"counter": "estimate"}, **wanted)
        assert (await other.get("a")).text == TEXT  # type: ignore[union-attr]
        await other.close()

        def near_hit() -> bool:
            store.get("a")
            return store.stats().near.hits > 0

        poll(near_hit, what=f"the near cache over TLS ({store.near.status})")


@pytest.mark.parametrize(
    ("ca", "client", "error"),
    [("other", "client", ConfigError), ("ca", None, DistierError), ("ca", "stranger", DistierError)],
    ids=["wrong authority", "no client certificate", "a stranger's certificate"],
)
async def test_wrong_tls_files_raise_a_clear_error_in_time(
    tls: tuple[str, Path], tmp_path: Path, ca: str, client: str | None, error: type[DistierError]
) -> None:
    wanted = _tls_settings(tls, tmp_path, ca, client)
    for open_one in (lambda: connect({"counter": "estimate"}, **wanted), lambda: _open_async(wanted)):
        began_s = time.monotonic()
        with pytest.raises(error) as caught:
            result = open_one()
            if hasattr(result, "__await__"):
                await result
        assert time.monotonic() - began_s < 31
        words = str(caught.value).lower()
        # With TLS 1.3 the server refuses a client's certificate after the client's handshake, and its reset of the
        # connection may overtake the alert with the reason.
        wordings = (
            ("certificate",)
            if ca == "other"
            else ("certificate", "ssl", "tls", "reset by peer", "closed", "broken pipe")
        )
        assert any(word in words for word in wordings), words


async def _open_async(wanted: dict[str, Any]) -> AsyncStore:
    return await connect_async({"counter": "estimate"}, **wanted)


# -- secrets ---------------------------------------------------------------------------------------------------------


def _no_secret(error: BaseException, secret: str = SECRET) -> None:
    """Check that the secret is in neither the message nor any chained error."""
    assert secret not in "".join(traceback.format_exception(error))


def _everything_shown(store: Store | AsyncStore) -> str:
    parts = (store, store.space, store.space.config, store.space.config.redis, store._driver, store._driver.redis,
             store._driver.archive, store.near, store.space.config.dump(), store.space.config.sources())  # fmt: skip
    return "\n".join(f"{part!r} {part!s}" for part in parts)


async def test_no_secret_in_reprs_logs_and_errors(
    roles: TestServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    in_url = f"redis://agent:{SECRET}@127.0.0.1:{roles.port}/0"
    base: dict[str, Any] = {"storage_tiers__cold__directory": tmp_path, "namespace": "team", "deadline": "1s"}
    for more in ({"redis__url": in_url}, settings(roles, "agent", tmp_path)):
        with connect({"counter": "estimate"}, **(base | more)) as store:
            store.put("a", TEXT)
            store.get("a")
            assert SECRET not in _everything_shown(store)
        other = await connect_async({"counter": "estimate"}, **(base | more))
        assert SECRET not in _everything_shown(other)
        await other.close()
    # No server listens there. The errors name its address without the password.
    for url in (f"redis://agent:{SECRET}@127.0.0.1:{free_port()}/0", f"unix://agent:{SECRET}@/nowhere/s.sock"):
        exchange = RedisExchange(load_config(None, **(base | {"redis__url": url})), url)
        assert SECRET not in repr(exchange)
        with pytest.raises(Unavailable) as caught:
            connect(None, **(base | {"redis__url": url}))
        _no_secret(caught.value)
    # An invalid setting next to a secret.
    for wrong in ({"redis__pasword": SECRET}, {"redis__url": f"http://u:{SECRET}@h"}, {"redis": {"password": [SECRET]}},
                  {"storage_tiers__cold__secret_key": SECRET}):  # fmt: skip
        with pytest.raises(ConfigError) as bad:
            load_config(None, **(base | wrong))
        _no_secret(bad.value)
    assert SECRET not in caplog.text
    assert TEXT[:40] not in caplog.text  # no contents either


def test_secret_of_the_archive_is_shown_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from distier.client import archive_of

    logging.getLogger("distier").setLevel(logging.DEBUG)
    caplog.set_level(logging.DEBUG)
    wanted: dict[str, Any] = {
        "redis__url": "redis://127.0.0.1:1/0", "storage_tiers__cold__url": "s3://bucket/p",
        "storage_tiers__cold__endpoint_url": f"http://127.0.0.1:{free_port()}", "storage_tiers__cold__access_key": "AK",
        "storage_tiers__cold__secret_key": SECRET, "storage_tiers__cold__timeout": "200ms",
    }  # fmt: skip
    config = load_config(None, **wanted)
    archive = archive_of(config)
    with pytest.raises(Unavailable) as caught:
        archive.get("team/modules/a/@x", max_bytes=10)
    _no_secret(caught.value)
    assert SECRET not in repr(archive) + repr(config) + str(config.dump()) + repr(vars(archive))
    assert SECRET not in caplog.text


# -- ids ---------------------------------------------------------------------------------------------------------------

HOSTILE_IDS = (
    "../../etc/passwd", "..", ".", "/", "/etc/passwd", "a/../../../b", "a/./b", "a//b", "a/",
    "\0", "a\0b", "a\nb", "a\r\nSET x y\r\n",
    "}", "{other}", "a}:module:b", "*", "?", "[a-z]", "a\\b", "a b", "%", "%2e%2e", "%2E%2E/%2E%2E", "..%2f..",
    "@00000001-00000000000042-9f3a2b1c.md.xz", "@00000009-00000000000001-00000000.deleted",
    "a/@00000009-00000000000001-00000000.md.xz",
    "x" * 256, "/".join("y" * 100), "é", "e\u0301", "\u202e", "ﬁ", "fi", "A", "a", "İ", "\U0001f600", ".tmp", ".tmp/x", "-rf",
    "$(id)", "`id`", "' OR 1", '"', "wb/a", "epochs/0", "con", "nul.", "a.", "~", "~root",
    "C:\\x", "module:a", ":", "\x7f", "\x1b[2J",
)  # fmt: skip


def _outside(directory: Path, archive: Path) -> list[tuple[str, float, int]]:
    found = []
    for path in sorted(directory.rglob("*")):
        if path != archive and archive not in path.parents:
            info = path.lstat()
            found.append((str(path), info.st_mtime, info.st_size))
    return found


def test_ids_cannot_escape_from_their_keys_and_directories(roles: TestServer, tmp_path: Path) -> None:
    archive = tmp_path / "in" / "archive"
    archive.mkdir(parents=True)
    (tmp_path / "in" / "neighbour").write_text("x")
    before = _outside(tmp_path, archive)
    with store_of(roles, "agent", archive) as store, store_of(roles, "agent", archive, namespace="other") as other:
        other.put("a", "of the neighbour")
        for i, id in enumerate(HOSTILE_IDS):
            store.put(id, f"{i} {TEXT}")
        assert sorted(store.list()) == sorted(HOSTILE_IDS)
        assert store.archive_now() == len(HOSTILE_IDS)
        store.demote_many(HOSTILE_IDS, to="cold")
        # Each id is its own module, even where ids differ only by case or by normalisation.
        assert [store.get(id).text for id in HOSTILE_IDS] == [f"{i} {TEXT}" for i in range(len(HOSTILE_IDS))]  # type: ignore[union-attr]
        for id in HOSTILE_IDS:
            assert list(store.list(id)).count(id) == 1 and decode_id(encode_id(id)) == id
        assert _outside(tmp_path, archive) == before
        with roles.client() as client:
            keys = list(client.scan_iter())
            assert all(key.startswith((b"distier:{team}:", b"distier:{other}:")) for key in keys), keys
            mine = [k for k in keys if k.startswith(b"distier:{team}:module:")]
            assert len(mine) == len(HOSTILE_IDS)
        for id in HOSTILE_IDS:
            assert store.delete(id)
        store.archive_now()
        assert Worker(store).run_once() and not list(store.list())
        assert other.get("a").text == "of the neighbour"  # type: ignore[union-attr]
    assert _outside(tmp_path, archive) == before


@pytest.mark.parametrize(
    "id", ["", "x" * 257, "\ud800", "é" * 129], ids=["empty", "too long", "surrogate", "too many bytes"]
)
def test_invalid_ids_are_refused_before_anything_is_written(roles: TestServer, tmp_path: Path, id: str) -> None:
    with store_of(roles, "agent", tmp_path) as store:
        for call in (lambda: store.put(id, "x"), lambda: store.get(id), lambda: store.delete(id), lambda: store.where(id),
                     lambda: store.promote(id), lambda: store.pin(id, 1), lambda: store.exists(id)):  # fmt: skip
            with pytest.raises(Invalid):
                call()
        assert not list(store.list())


# -- foreign data in Redis -----------------------------------------------------------------------------------------------

HUGE = "9" * 400
RECORD_DAMAGE: dict[str, dict[str, str | bytes]] = {
    "tier=banana": {"tier": "banana"}, "tier=empty": {"tier": ""}, "tier=warm": {"tier": "warm"}, "tier=cold": {"tier": "cold"},
    "tier=deleted": {"tier": "deleted"}, "tier not utf-8": {"tier": b"\xff"},
    "epoch=nan": {"epoch": "nan"}, "epoch=inf": {"epoch": "inf"}, "epoch huge": {"epoch": HUGE}, "epoch=-1": {"epoch": "-1"},
    "ver=text": {"ver": "x"}, "ver huge": {"ver": HUGE}, "ver empty": {"ver": ""}, "tok empty": {"tok": ""},
    "tok not utf-8": {"tok": b"\xff\xfe"}, "tok path": {"tok": "../../../../etc"},
    "bytes=1": {"bytes": "1"}, "bytes=-1": {"bytes": "-1"}, "bytes huge": {"bytes": HUGE}, "bytes 2**62": {"bytes": str(2**62)},
    "bytes 2**40": {"bytes": str(2**40)}, "bytes nan": {"bytes": "nan"}, "bytes 1e3": {"bytes": "1e3"},
    "tokens nan": {"tokens": "nan"}, "tokens huge": {"tokens": HUGE}, "tokens -5": {"tokens": "-5"},
    "digits": {"tokens": "9" * 5000}, "meta no json": {"meta": "{"}, "meta list": {"meta": "[1]"},
    "meta deep": {"meta": "[" * 60000},
    "meta nan": {"meta": '{"a": NaN}'}, "keywords no json": {"keywords": "x"}, "keywords map": {"keywords": '{"a": 1}'},
    "keywords number": {"keywords": "5"}, "keywords numbers": {"keywords": "[1]"}, "clean=2": {"clean": "2"},
    "clean=1": {"clean": "1"},
    "clean=0": {"clean": "0"}, "sha256": {"sha256": "0" * 64}, "sha256 text": {"sha256": "x"}, "type": {"type": b"\xff"},
    "type path": {"type": "../../x"}, "archived_key": {"archived_key": "../../../etc/passwd", "tier": "cold"},
    "archived_key nul": {"archived_key": "a\0b", "tier": "cold"}, "codec": {"codec": "zip"}, "seen": {"seen": "nan"},
    "seen far": {"seen": HUGE}, "frame_bytes": {"frame_bytes": "nan"}, "frame_bytes huge": {"frame_bytes": HUGE},
    "archived_bytes": {"archived_bytes": "x"}, "created": {"created": "nan"}, "updated": {"updated": HUGE},
    "content": {"content": "other"}, "content empty": {"content": ""}, "content long": {"content": "x" * 5_000_000},
}  # fmt: skip
MISSING = (
    "tier",
    "epoch",
    "ver",
    "tok",
    "bytes",
    "tokens",
    "sha256",
    "type",
    "clean",
    "seen",
    "content",
    "created",
    "counter",
)


def _bomb(claimed: int) -> bytes:
    """A frame that claims to hold `claimed` bytes."""
    from distier.domain.codec import compress_frame

    frame = bytearray(compress_frame(b"\0" * 2_000_000)[1])
    frame[6:14] = claimed.to_bytes(8, "little")
    return bytes(frame)


def _damages() -> dict[str, Callable[[redis.Redis, str, str], object]]:
    """The changes that a foreign client makes to the record (key) and the frame of one module."""
    found: dict[str, Callable[[redis.Redis, str, str], object]] = {}
    for name, fields in RECORD_DAMAGE.items():
        found[name] = lambda c, key, _, fields=fields: c.hset(key, mapping=dict(fields))  # type: ignore[misc]
    for field in MISSING:
        found[f"no {field}"] = lambda c, key, _, field=field: c.hdel(key, field)  # type: ignore[misc]
    found["a string"] = lambda c, key, _: (c.delete(key), c.set(key, "x"))
    found["a list"] = lambda c, key, _: (c.delete(key), c.rpush(key, "x"))
    found["another hash"] = lambda c, key, _: (c.delete(key), c.hset(key, "a", "b"))
    found["gone"] = lambda c, key, _: c.delete(key)
    for name, frame in {"garbage": b"x" * 100, "empty": b"", "bomb": _bomb(2_000_000), "liar": _bomb(2**62)}.items():
        found[f"frame {name}"] = lambda c, key, f, frame=frame: (c.set(f, frame), c.hset(key, "tier", "warm"))  # type: ignore[misc]
        found[f"frame {name}, huge"] = lambda c, key, f, frame=frame: (  # type: ignore[misc]
            c.set(f, frame), c.hset(key, mapping={"tier": "warm", "bytes": str(2**62), "codec": "lz4"}))  # fmt: skip
    found["frame a list"] = lambda c, key, f: (c.delete(f), c.rpush(f, "x"), c.hset(key, "tier", "warm"))
    return found


SHARD_DAMAGE: dict[str, Callable[[redis.Redis, Shard], object]] = {
    "usage text": lambda c, s: c.hset(s.usage, "hot_tokens", "banana"),
    "usage nan": lambda c, s: c.hset(s.usage, mapping={"hot_tokens": "nan", "hot_bytes": "inf"}),
    "usage huge": lambda c, s: c.hset(s.usage, mapping={"hot_tokens": HUGE, "warm_count": HUGE}),
    "usage negative": lambda c, s: c.hset(s.usage, "hot_tokens", "-999999"),
    "usage not utf-8": lambda c, s: c.hset(s.usage, b"\xff", b"\xff"),
    "usage a string": lambda c, s: (c.delete(s.usage), c.set(s.usage, "x")),
    "limits text": lambda c, s: c.hset(s.limits, "hot_tokens", "banana"),
    "limits zero": lambda c, s: c.hset(s.limits, mapping={"hot_tokens": "0", "warm_modules": "0"}),
    "limits gone": lambda c, s: c.delete(s.limits),
    "ttl text": lambda c, s: c.hset(s.limits, "warm_ttl_ms", "x"),
    "events_max text": lambda c, s: c.hset(s.limits, "events_max", "x"),
    "epoch text": lambda c, s: c.hset(s.epoch, "epoch", "x"),
    "epoch huge": lambda c, s: c.hset(s.epoch, "epoch", HUGE),
    "epoch gone": lambda c, s: c.delete(s.epoch),
    "ver text": lambda c, s: c.hset(s.epoch, "ver", "x"),
    "ver huge": lambda c, s: c.hset(s.epoch, "ver", HUGE),
    "verified text": lambda c, s: c.hset(s.epoch, "verified", "x"),
    "aged text": lambda c, s: c.hset(s.epoch, "aged", "x"),
    "hot a string": lambda c, s: (c.delete(s.hot), c.set(s.hot, "x")),
    "dirty a list": lambda c, s: (c.delete(s.dirty), c.rpush(s.dirty, "x")),
    "events a string": lambda c, s: (c.delete(s.events), c.set(s.events, "x")),
    "events foreign": lambda c, s: c.xadd(s.events, {b"\xff": b"\xff"}),
    "ids that are none": lambda c, s: c.zadd(s.hot, {b"\xff\xfe": 1, b"": 2, b"x" * 5000: 3}),
    "dirty ids that are none": lambda c, s: c.zadd(s.dirty, {b"\xff\xfe": 1, b"": 2}),
    "warm ids that are none": lambda c, s: c.zadd(s.warm, {b"\xff\xfe": 1, b"none": 2}),
    "scores": lambda c, s: c.zadd(s.hot, {"a": float("inf"), "hot": float("-inf")}),
    "keys that are no ids": lambda c, s: (
        c.hset(s.root + "module:%zz", "tier", "hot"), c.hset(s.root + "module:a b", "tier", "hot")),
    "keys not utf-8": lambda c, s: c.hset((s.root + "module:").encode() + b"\xff", "tier", "hot"),
}  # fmt: skip


def _calls(store: Store) -> dict[str, Callable[[], object]]:
    return {
        "get": lambda: store.get("m"), "get_many": lambda: store.get_many(["m", "n"]), "exists": lambda: store.exists("m"),
        "where": lambda: store.where("m"), "list": lambda: list(store.list()), "stats": lambda: store.stats(),
        "events": lambda: list(store.events(since="0", wait=False)), "promote": lambda: store.promote("m"),
        "promote_many": lambda: store.promote_many(["m", "n"]), "demote": lambda: store.demote("m"),
        "demote_many": lambda: store.demote_many(["m"], to="cold"), "pin": lambda: store.pin("m", 1),
        "unpin": lambda: store.unpin("m"),
        "archive_now": lambda: store.archive_now(deadline_s=3), "worker": lambda: Worker(store).run_once(),
        "put new": lambda: store.put("z", TEXT),
        "put_many": lambda: store.put_many([_item("y", "x")]), "put": lambda: store.put("m", TEXT, if_version="1-1"),
        "delete": lambda: store.delete("m"),
    }  # fmt: skip


def _outcome(name: str, call: Callable[[], Any], problems: list[str]) -> None:
    """Check that the result is a typed error or right: content is always exactly the content that was put."""
    began_s = time.monotonic()
    try:
        got = call()
    except DistierError as e:
        assert str(e)
    except Exception as e:
        problems.append(f"{name}: {type(e).__name__}: {e!s:.120} at {traceback.extract_tb(e.__traceback__)[-1][:3]}")
    else:
        modules = {"get": [got], "get_many": list(got.values()) if isinstance(got, dict) else []}.get(name, [])
        problems.extend(f"{name}: wrong content" for m in modules if m is not None and m.text != TEXT)
    if time.monotonic() - began_s > 5:
        problems.append(f"{name}: took {time.monotonic() - began_s:.1f} s")


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _try_damage(server: TestServer, archive: Path, damage: Callable[[redis.Redis], object], clean: bool) -> list[str]:
    problems: list[str] = []
    with server.client() as client:
        client.flushall()
        from shutil import rmtree

        rmtree(archive, ignore_errors=True)
        with connect({"counter": "estimate"}, redis__url=server.url, namespace="team", near={"enabled": False}, deadline="2s",
                     storage_tiers__cold__directory=archive, storage_tiers__hot__max_size=100_000) as store:  # fmt: skip
            store.put_many([_item("m", TEXT), _item("n", TEXT)])
            if clean:
                store.archive_now()
            for name, call in _calls(store).items():
                with suppress(DistierError):
                    damage(client)
                _outcome(name, call, problems)
    return problems


def _harm(damage: Callable[[redis.Redis, str, str], object], shard: Shard, client: redis.Redis) -> None:
    damage(client, shard.module("m"), shard.frame("m"))


@pytest.mark.parametrize("clean", [True, False], ids=["archived", "dirty"])
def test_foreign_data_in_a_record_is_a_typed_error_or_harmless(
    server: TestServer, redis_url: str, tmp_path: Path, clean: bool
) -> None:
    shard = Shard("team", 0, 1)
    before_bytes = _peak_bytes()
    problems = {}
    for name, damage in _damages().items():
        harm = partial(_harm, damage, shard)
        found = _try_damage(server, tmp_path / "a", harm, clean)
        if found:
            problems[name] = found
    assert not problems, "\n".join(f"{name}: {found}" for name, found in problems.items())
    assert _peak_bytes() - before_bytes < 256 << 20


def test_foreign_data_in_a_shard_is_a_typed_error_or_harmless(
    server: TestServer, redis_url: str, tmp_path: Path
) -> None:
    problems = {}
    for name, damage in SHARD_DAMAGE.items():
        found = _try_damage(server, tmp_path / "a", lambda c, d=damage: d(c, Shard("team", 0, 1)), False)  # type: ignore[misc]
        if found:
            problems[name] = found
    assert not problems, "\n".join(f"{name}: {found}" for name, found in problems.items())
