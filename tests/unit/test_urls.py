"""The meaning of a text: a server, a file, or a directory for an embedded server. A server's address is never taken for
a directory; otherwise a private server would start there and acknowledge puts.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from distier.client import resolve
from distier.config import load_config
from distier.errors import ConfigError

SECRET = "s3cret"
COLD: dict[str, Any] = {"storage_tiers__cold__directory": "cold"}
ACCEPTED = {
    "redis://h:1/2": "redis://h:1/2",
    "REDIS://h:1/2": "redis://h:1/2",
    "  redis://h \n": "redis://h",
    "valkey://u:p@h:1/2": "redis://u:p@h:1/2",
    "Valkeys://h": "rediss://h",
    "redis+sentinel://h:1,i:2/mymaster/3": "sentinel://h:1,i:2/mymaster/3",
    "rediss+sentinel://h/mymaster": "sentinels://h/mymaster",
    "SENTINEL://h/mymaster": "sentinel://h/mymaster",
    "valkey+cluster://h,i": "cluster://h,i",
    "unix:///run/redis.sock?db=3": "unix:///run/redis.sock?db=3",
    "redis+unix:///run/redis.sock": "unix:///run/redis.sock",
    "rediss://h?ssl_cert_reqs=none": "rediss://h?ssl_cert_reqs=none",
    "redis://h?client_name=me&db=2": "redis://h?client_name=me&db=2",
    "redis://[::1]:6379/0": "redis://[::1]:6379/0",
    "redis://": None,
}
REFUSED = [
    "http://h:6379", "s3://bucket/x", "file:///data", "memcached://h", "redis:/h", "redis:h:6379", "//h:6379/0", "redis//h:1", "://h",
    "h:6379", "localhost:6379", " localhost:6379 ", "10.0.0.7:6379/0", "[::1]:6379", "::1", "h:99999", "localhost", "10.0.0.7",
    f"user:{SECRET}@h:6379", f":{SECRET}@h", f"redis@h:{SECRET}@h:1", "cache.example.com", "redis+sentinel://h:1/0/mymaster", "sentinel://h",
    "redis://h:99999", "redis://h:port", "redis://h:0", "redis://h/name", f"redis://:{SECRET}#x@h:6379", "redis://h/0/1",
    "redis://h?protocol=2", "redis://h?no_such=1", "redis://h?ssl_cert_reqs=none", "rediss://h?ssl_cert_reqs=maybe", "redis://h?db=x",
    "redis://h h", "unix://", "unix:///", "redis://[::1", "redis://h?socket_timeout=x", "re dis://h",
]  # fmt: skip
DIRECTORIES = ["data", "./localhost:6379", "./redis.example.com", "a/b", ".hidden", "~/x", "/tmp/x y", "./10.0.0.7"]


@pytest.fixture(autouse=True)
def _nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("DISTIER_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("given", ACCEPTED)
def test_server_url_is_recognised_in_every_source(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meant = ACCEPTED[given]
    if meant is None:
        with pytest.raises(ConfigError):
            resolve(given, **COLD)
        return
    assert resolve(given, **COLD).redis.url == meant
    assert load_config(None, redis__url=given, **COLD).redis.url == meant
    assert load_config({"redis": {"url": given}}, **COLD).redis.url == meant
    monkeypatch.setenv("DISTIER_REDIS__URL", given)
    assert load_config(None, **COLD).redis.url == meant


@pytest.mark.parametrize("given", REFUSED)
def test_text_that_is_neither_url_nor_directory_starts_nothing(given: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(given, **COLD)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        load_config(None, redis__url=given, **COLD)
    assert SECRET not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", DIRECTORIES)
def test_directory_text_is_taken_for_a_directory(given: str) -> None:
    config = resolve(given)
    assert config.redis.url is None and config.home == Path(given).expanduser().absolute()


def test_existing_directory_may_have_any_name(tmp_path: Path) -> None:
    (tmp_path / "redis.example.com").mkdir()
    assert resolve("redis.example.com").home == tmp_path / "redis.example.com"


@pytest.mark.parametrize("key", ["home", "storage_tiers__cold__directory", "storage_tiers__warm__directory"])
@pytest.mark.parametrize("given", ["redis://h/0", "localhost:6379", "s3://bucket/x", f"u:{SECRET}@h:1"])
def test_url_given_as_a_directory_is_refused(key: str, given: str) -> None:
    for value in (given, Path(given)):
        with pytest.raises(ConfigError) as caught:
            load_config(None, **{key: value})
        assert SECRET not in str(caught.value)


def test_socket_given_as_a_directory_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "s"))
        with pytest.raises(ConfigError, match="unix://"):
            resolve("s")
