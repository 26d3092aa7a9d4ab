"""What docs/OPERATIONS.md tells operators to write for Sentinel, tried as it stands there, with the default user off."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from distier import connect
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


def users() -> str:
    """users.acl with passwords put in, and what the page adds to it."""
    page = (ROOT / "docs" / "OPERATIONS.md").read_text()
    added = re.findall(r"^    (user \w+ on #<hash> .*)$", page, re.M)
    assert {line.split()[1] for line in added} == {"replica", "sentinel"}
    kept = (ROOT / "deploy" / "redis" / "users.acl").read_text()
    return re.sub(r"#(0{64}|<hash>)", f"#{HASH}", kept + "\n".join(added) + "\n")


class Server(TestServer):
    """Its default user is off: tests look by the role `worker`."""

    def client(self, **options: object) -> redis.Redis:
        return super().client(username="worker", password=PASSWORD, **options)


def start(kind: Kind, at: Path, *args: str) -> Server:
    at.mkdir()
    (at / "users.acl").write_text(users())
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
def test_sentinel_as_the_page_says(kind: Kind, tmp_path: Path):
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
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
