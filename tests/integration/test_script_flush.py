"""Another program flushes the server's script cache all the time, as some tools do, and no call notices."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from distier import Item
from distier.drive import conversation
from distier.errors import ConfigError, RedisUnavailable
from tests.integration.test_connections import face_of
from tests.servers import TestServer, running_server


@contextmanager
def scripts_flushed(server: TestServer, pause_s: float) -> Iterator[None]:
    ended = threading.Event()

    def flush() -> None:
        with server.client() as client:
            while not ended.wait(pause_s):
                client.execute_command("SCRIPT", "FLUSH", "SYNC")

    thread = threading.Thread(target=flush)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[TestServer]:
    with running_server("valkey", tcp=True) as server:
        yield server


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("shards", [1, 3])
async def test_calls_succeed_while_scripts_are_flushed(
    own_server: TestServer, tmp_path: Path, kind: str, shards: int
) -> None:
    namespace = f"{kind}{shards}"
    face = await face_of(kind, own_server.url, tmp_path, namespace=namespace, shards=shards, deadline="30s")
    with scripts_flushed(own_server, 0.0005):
        for i in range(60):
            ids = [f"m{i}.{n}" for n in range(3)]
            await face.put(ids[0], str(i))
            assert all(not isinstance(r, Exception) for r in await face.put_many([Item(id, str(i)) for id in ids]))
            assert (await face.get_many(ids))[ids[2]].text == str(i)
            assert (await face.get(f"none{i}")) is None
            assert await face.promote(ids[0]) and await face.delete(ids[0])
    await face.close()


async def test_server_that_keeps_no_script_is_reported_as_unavailable(
    own_server: TestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    face = await face_of("sync", own_server.url, tmp_path, namespace="never", deadline="300ms")
    monkeypatch.setattr(conversation, "_load", lambda calls: [("PING",)])
    with own_server.client() as client:
        client.execute_command("SCRIPT", "FLUSH", "SYNC")
    with pytest.raises(RedisUnavailable, match="SCRIPT FLUSH"):
        await face.put("a", "a")
    await face.close()


async def test_user_without_script_load_gets_a_config_error(own_server: TestServer, tmp_path: Path) -> None:
    face = await face_of("sync", own_server.url, tmp_path, namespace="acl", deadline="30s")
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "default", "-script|load")
        client.execute_command("SCRIPT", "FLUSH", "SYNC")
        try:
            with pytest.raises(ConfigError, match=r"script\|load"):
                await face.put("a", "a")
        finally:
            client.execute_command("ACL", "SETUSER", "default", "+script|load")
    assert await face.put("a", "a")
    await face.close()
