"""The instructions of docs/OPERATIONS.md for Sentinel and for a cluster work as written, with the default user off."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from distier import connect
from distier.domain.keys import Keyspace
from tests.clusters import ARGS, MASTERS, TestCluster, join
from tests.servers import (
    _DIE_WITH_PARENT,
    KINDS,
    READY_S,
    Kind,
    TestServer,
    available_kinds,
    binary,
    free_port,
    poll,
    short_directory,
)

ROOT = Path(__file__).parents[2]
PASSWORD = "secret"
HASH = hashlib.sha256(PASSWORD.encode()).hexdigest()


def section(title: str) -> str:
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    found = re.search(rf"^## {title}$(.*?)^## ", page, re.M | re.S)
    assert found, title
    return found[1]


def users(title: str) -> str:
    """Return users.acl with passwords, and with the lines that this section of the page adds."""
    added = re.findall(r"^    (user \w+ on #<hash> .*)$", section(title), re.M)
    kept = (ROOT / "deploy" / "redis" / "users.acl").read_text()
    return re.sub(r"#(0{64}|<hash>)", f"#{HASH}", kept + "\n".join(added) + "\n")


def added(title: str) -> set[str]:
    return {line.split()[1] for line in users(title).splitlines()} - {
        "default", "health", "agent", "worker", "operator", "deployer", "exporter", "admin",
    }  # fmt: skip


class Server(TestServer):
    """A server whose default user is off. The tests use the role `worker`."""

    def client(self, **options: object) -> redis.Redis:
        return super().client(username="worker", password=PASSWORD, **options)


def start(kind: Kind, at: Path, *args: str) -> Server:
    at.mkdir()
    (at / "users.acl").write_text(users("With Sentinel"))
    server = Server(kind, at, free_port(), ("--aclfile", str(at / "users.acl"), "--masteruser", "replica", "--masterauth",
                                            PASSWORD, "--repl-diskless-sync-delay", "0", *args))  # fmt: skip
    server.start()
    return server


def role(server: TestServer) -> str:
    with server.client() as client:
        info: dict[str, str] = client.info("replication")
    return info["role"] if info["role"] == "master" else str(info["master_link_status"])


def online(server: TestServer) -> bool:
    with server.client() as client:
        return "online" in str(client.info("replication").get("slave0"))


@pytest.mark.parametrize("kind", KINDS)
def test_sentinel_setup_of_the_page_works(kind: Kind, tmp_path: Path):
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
    assert added("With Sentinel") == {"replica", "sentinel"}
    with short_directory() as tmp:
        sentinel, servers = None, list[TestServer]()
        try:
            servers.append(start(kind, tmp / "a"))
            servers.append(start(kind, tmp / "b", "--replicaof", f"127.0.0.1 {servers[0].port}"))
            poll(lambda: role(servers[1]) == "up", timeout_s=READY_S, what="the replica")
            poll(lambda: online(servers[0]), timeout_s=READY_S, what="the replica, to its primary")
            page = (ROOT / "docs" / "OPERATIONS.md").read_text()
            lines = re.findall(r"^    (sentinel [a-z].*?)(?: +#.*)?$", page, re.M)
            conf = (
                "\n".join(lines)
                .replace("10.0.0.1 6379 2", f"127.0.0.1 {servers[0].port} 1")
                .replace("<password>", PASSWORD)
            )
            conf = conf.replace("milliseconds mymaster 5000", "milliseconds mymaster 400")
            port = free_port()
            (tmp / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp}\n{conf}\n")
            shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
            program = [str(binary(kind)), str(tmp / "sentinel.conf"), "--sentinel"]
            with (tmp / "log").open("ab") as log:
                sentinel = subprocess.Popen([*shim, *program], stdout=log, stderr=log)
            poll(
                lambda: "+slave slave" in (tmp / "log").read_text(),
                timeout_s=READY_S,
                what="the replica, to the sentinel",
            )
            settings: dict[str, Any] = {"redis__url": f"sentinel://127.0.0.1:{port}/mymaster", "redis__username": "agent",
                        "redis__password": PASSWORD, "counter": "estimate", "deadline": "20s",
                        "storage_tiers__cold__directory": tmp_path / "cold"}  # fmt: skip
            with connect({}, **settings) as store:
                store.put("a", "1", durability="replicated")
                servers[0].kill9()
                assert store.put("b", "2").tier == "hot"
                assert store.get("a").text == "1"  # type: ignore[union-attr]
            assert role(servers[1]) == "master"
        finally:
            if sentinel is not None:
                sentinel.kill()
                sentinel.wait()
            for server in servers:
                server.kill9()


# -- a cluster ---------------------------------------------------------------------------------------------------------


class Node(TestServer):
    """As above, for tests that act as an administrator."""

    def client(self, **options: object) -> redis.Redis:
        return super().client(username="admin", password=PASSWORD, **options)


@contextmanager
def nodes(kind: Kind, acl: str) -> Iterator[TestCluster]:
    """Six nodes that do not know each other yet, with the page's lines for redis.conf."""
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
    lines = re.findall(r"^    ([a-z-]+ \S+)(?: +#.*)?$", section("Redis Cluster"), re.M)
    written = {f"--{name}": value.replace("<password>", PASSWORD) for name, value in map(str.split, lines)}
    assert {"--cluster-enabled", "--masteruser", "--masterauth"} <= set(written)
    written |= dict(zip(ARGS[::2], ARGS[1::2], strict=True))  # a short node timeout
    with short_directory() as tmp:
        cluster = TestCluster([])
        try:
            for i in range(2 * MASTERS):
                at = tmp / f"n{i}"
                at.mkdir()
                (at / "users.acl").write_text(acl)
                args = [word for pair in written.items() for word in pair]
                node = Node(kind, at, free_port(), (*args, "--aclfile", str(at / "users.acl")))
                cluster.nodes.append(node)
                node.start()
            yield cluster
        finally:
            cluster.stop()


def cli(*words: str, password: str = PASSWORD) -> str:
    """Run redis-cli as the page says, with the password in the environment."""
    program = shutil.which("redis-cli")
    assert program
    environment = {"PATH": os.environ["PATH"], "REDISCLI_AUTH": password}
    done = subprocess.run([program, *words], env=environment, capture_output=True, text=True, check=False, timeout=60)
    output = done.stdout + done.stderr
    assert done.returncode == 0 and not re.search("NOAUTH|NOPERM|WRONGPASS|\\[ERR\\]", output), (words, output)
    return output


def exported_shards(node: TestServer) -> set[str]:
    """Return the shards that redis_exporter finds at one master."""
    script = (ROOT / "deploy" / "prometheus" / "distier.lua").read_text().replace("'default'", "'m'")
    with TestServer.client(node, username="exporter", password=PASSWORD) as client:
        names = [name.decode() for name in client.eval(script, 0)[::2]]
    return {name.removesuffix(".epoch") for name in names if name.endswith(".epoch")}


def settings(cluster: TestCluster, archive: Path) -> dict[str, Any]:
    return {"redis__url": cluster.url, "redis__username": "agent", "redis__password": PASSWORD, "namespace": "m",
            "shards": 16, "counter": "estimate", "deadline": "15s", "near__enabled": False,
            "storage_tiers__cold__directory": archive}  # fmt: skip


def a_move(cluster: TestCluster) -> tuple[int, TestServer, TestServer]:
    """Return the slot of the first shard, the master that serves it, and another master."""
    slot = Keyspace("m", 16).shards[0].slot
    source = cluster.owner(slot)
    return slot, source, next(node for node in cluster.masters() if node is not source)


@pytest.mark.parametrize("kind", KINDS)
def test_cluster_setup_of_the_page_works(kind: Kind, tmp_path: Path):
    if not shutil.which("redis-cli"):
        pytest.skip("no redis-cli")
    acl = users("With Sentinel") if kind == "redis" else users("Redis Cluster")
    with nodes(kind, acl) as cluster:
        addresses = [f"127.0.0.1:{node.port}" for node in cluster.nodes]
        admin = ("--user", "admin")
        cli(*admin, "--cluster", "create", *addresses, "--cluster-replicas", "1", "--cluster-yes")
        cluster.await_agreement()
        with connect({}, **settings(cluster, tmp_path / "cold")) as store:
            for i in range(50):
                store.put(f"a/{i}", "x" * 100)
            slot, source, target = a_move(cluster)
            before = cluster.topology()
            first = min(s for s in range(slot + 1) if before.owner(s) == ("127.0.0.1", source.port))
            cli(*admin, "--cluster", "reshard", addresses[0], "--cluster-from", cluster.id_of(source), "--cluster-to",
                cluster.id_of(target), "--cluster-slots", "2", "--cluster-pipeline", "100", "--cluster-yes")  # fmt: skip
            poll(lambda: cluster.owner(first) is target, timeout_s=READY_S, what="two slots, elsewhere")
            cluster.await_agreement()
            assert "All 16384 slots covered" in cli(*admin, "--cluster", "check", addresses[0])
            assert "distier:" in cli(*admin, "-h", "127.0.0.1", "-p", str(source.port), "--memkeys")
            found = set[str]()
            for master in cluster.masters():
                found |= exported_shards(master)
            assert found == {f"m.{i}" for i in range(16)}
            assert not set[str]().union(*map(exported_shards, cluster.replicas()))
            replica = cluster.at(cluster.topology().replicas_of(("127.0.0.1", source.port))[0])
            at = (*admin, "-h", "127.0.0.1", "-p", str(replica.port))
            assert cli(*at, "CLUSTER", "FAILOVER", "TAKEOVER").strip() == "OK"
            poll(lambda: cluster.owner(slot) is replica, timeout_s=READY_S, what="the takeover")
            assert cli(*at, "CONFIG", "SET", "maxmemory", "1gb").strip() == "OK"
            path = replica.directory / "users.acl"
            another = hashlib.sha256(b"another").hexdigest()
            path.write_text(path.read_text().replace(f"user operator on #{HASH}", f"user operator on #{another}"))
            assert cli(*at, "ACL", "LOAD").strip() == "OK"
            operator = ("--user", "operator", "-p", str(replica.port), "PING")
            assert cli(*operator, password="another").strip() == "PONG"
            assert all(store.get(f"a/{i}") for i in range(50))


def test_atomic_slot_migration_of_the_page_works(tmp_path: Path):
    """CLUSTER MIGRATESLOTS moves slots while an agent writes. Without the page's line for `replica` the slots stay."""
    with nodes("valkey", users("Redis Cluster")) as cluster:
        assert added("Redis Cluster") == {"replica"}
        join(cluster)
        with connect({}, **settings(cluster, tmp_path / "cold")) as store:
            for i in range(100):
                store.put(f"a/{i}", "x" * 1000)
            slot, source, target = a_move(cluster)
            with writing(store), target.client() as client:  # as with Sentinel
                client.execute_command(
                    "ACL", "SETUSER", "replica", "resetkeys", "-@all", "+psync", "+replconf", "+ping"
                )
                assert moved(cluster, slot, target) == "failed" and cluster.owner(slot) is source
                client.execute_command("ACL", "LOAD")
                client.execute_command("ACL", "LOG", "RESET")
                assert moved(cluster, slot, target) == "success"
                poll(lambda: cluster.owner(slot) is target, timeout_s=READY_S, what="the slot, elsewhere")
                assert "replica" not in str(client.execute_command("ACL", "LOG"))
            assert all(store.get(f"a/{i}") for i in range(100))


@contextmanager
def writing(store: Any) -> Iterator[None]:
    ended = threading.Event()

    def write() -> None:
        while not ended.is_set():
            for i in range(100):
                store.put(f"b/{i}", "y" * 500)
            store.demote("b/1")
            store.delete("b/2")

    with ThreadPoolExecutor(1) as pool:
        writes = pool.submit(write)
        try:
            yield
        finally:
            ended.set()
            writes.result(60)


def moved(cluster: TestCluster, slot: int, target: TestServer) -> str:
    """Move a slot while keys of all kinds are written in it; return the final state."""
    source = cluster.owner(slot)
    shard = Keyspace("m", 16).shards[0]
    with source.client() as client:
        client.sadd(f"{shard.root}held:n", "a")
        client.rpush(f"{shard.root}asks:n", "a")
        client.set(f"{shard.root}done:x", "1", px=60_000)
        client.pexpire(f"{shard.root}asks:n", 60_000)
        cluster.ask(source, "CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", cluster.id_of(target))

        def state() -> str:
            (last, *_) = cluster.ask(source, "CLUSTER", "GETSLOTMIGRATIONS")
            return str(dict(zip(last[::2], last[1::2], strict=True))[b"state"].decode())

        poll(lambda: state() in ("failed", "success"), timeout_s=READY_S, what="the end of a migration")
        return state()
