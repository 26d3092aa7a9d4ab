"""The handshake of a connection: commands that a server may refuse in it, and the errors that a client reports."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError, ResponseError

from distier.errors import ConfigError
from distier.stores.redis.wire import check_greeting
from tests.integration.test_connections import face_of
from tests.servers import TestServer, running_server


@pytest.fixture(scope="module")
def shared_server() -> Iterator[TestServer]:
    with running_server("redis", tcp=True) as server:
        yield server


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def url_of(server: TestServer, user: str = "", db: int = 0, query: str = "") -> str:
    return f"redis://{user}127.0.0.1:{server.port}/{db}{query}"


@pytest.fixture
def user(own_server: TestServer) -> Iterator[str]:
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "+@all", "-client", "-select")
        yield "ann:pw@"
        client.execute_command("ACL", "DELUSER", "ann")


@pytest.mark.parametrize("near", [False, True])
async def test_store_needs_no_permission_for_client_or_select(
    own_server: TestServer, tmp_path: Path, kind: str, user: str, near: bool
) -> None:
    face = await face_of(kind, url_of(own_server, user), tmp_path, namespace=f"n{near:d}", near__enabled=near)
    await face.put("a", "a")
    assert (await face.get("a")).text == "a"
    await face.close()


@pytest.mark.parametrize(
    ("db", "query", "message"),
    [(99, "", "database 99"), (0, "?protocol=2", "RESP3"), (0, "?ssl_cert_reqs=none", "rediss")],
)
async def test_impossible_url_is_a_config_error(
    own_server: TestServer, tmp_path: Path, kind: str, db: int, query: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        await face_of(kind, url_of(own_server, db=db, query=query), tmp_path)


async def test_forbidden_database_is_a_config_error(
    own_server: TestServer, tmp_path: Path, kind: str, user: str
) -> None:
    with pytest.raises(ConfigError, match="database 1"):
        await face_of(kind, url_of(own_server, user, db=1), tmp_path)


async def test_wrong_password_is_a_config_error(own_server: TestServer, tmp_path: Path, kind: str, user: str) -> None:
    with pytest.raises(ConfigError, match="password"):
        await face_of(kind, url_of(own_server, user.replace("pw", "wrong")), tmp_path)


@pytest.mark.parametrize("db", [0, 1])
async def test_busy_server_is_waited_for_while_connecting(
    own_server: TestServer, tmp_path: Path, kind: str, db: int
) -> None:
    with own_server.client() as client:
        client.config_set("busy-reply-threshold", 20)

    def work() -> None:
        with own_server.client(socket_timeout=60) as client, pytest.raises(RedisError):
            client.eval("while true do end", 0)

    def kill() -> None:
        time.sleep(1)
        with own_server.client() as client:
            client.execute_command("SCRIPT", "KILL")

    threads = [threading.Thread(target=work), threading.Thread(target=kill)]
    for thread in threads:
        thread.start()
    time.sleep(0.2)
    face = await face_of(kind, url_of(own_server, db=db), tmp_path, deadline="30s")
    await face.put("a", "a")
    await face.close()
    for thread in threads:
        thread.join()


async def test_server_with_a_renamed_client_command_works(tmp_path: Path, kind: str) -> None:
    with running_server("redis", tcp=True, args=("--rename-command", "CLIENT", "")) as server:
        face = await face_of(kind, url_of(server), tmp_path, near__enabled=True)
        await face.put("a", "a")
        assert (await face.get("a")).text == "a"
        await face.close()


def test_server_without_hello_gets_its_own_error() -> None:
    with pytest.raises(ConfigError, match="renamed"):
        check_greeting(None, [ResponseError("unknown command 'HELLO', with args beginning with: '3'")])
    with pytest.raises(ConfigError, match="RESP3"):
        check_greeting(None, [[b"server", b"redis", b"proto", 2]])
