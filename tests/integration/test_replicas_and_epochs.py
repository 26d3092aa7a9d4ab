"""What changes the replication id of a primary without a restart: it costs a new epoch, and no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from distier import connect
from distier.config import Config
from distier.doctor.server import Server, _backlog, _undeclared_keys
from distier.errors import Invalid
from tests.servers import KINDS, available_kinds, poll, running_server, short_directory, start_replica


@pytest.mark.parametrize("kind", KINDS)
def test_first_replica_and_end_of_the_backlog_cost_an_epoch_at_most(kind: Any, tmp_path: Path) -> None:
    if reason := available_kinds()[kind]:
        pytest.skip(reason)
    with (
        running_server(kind, tcp=True, args=("--repl-backlog-ttl", "1", "--repl-diskless-sync-delay", "0")) as primary,
        primary.client() as client,
        short_directory() as tmp,
        connect(
            {},
            redis__url=primary.url,
            namespace="t",
            storage_tiers__cold__directory=tmp_path / "cold",
            counter="estimate",
        ) as store,
    ):
        for n in range(5):
            store.put(f"m/{n}", f"text {n}")
        ids = [client.info("replication")["master_replid"]]
        replica = start_replica(primary, tmp)
        try:
            poll(lambda: client.info("replication")["connected_slaves"] == 1, what="the replica")
            store.put("m/5", "text 5")
            ids.append(client.info("replication")["master_replid"])
        finally:
            replica.kill9()
        poll(lambda: client.info("replication")["connected_slaves"] == 0, what="the end of the replica")
        poll(lambda: client.info("replication")["repl_backlog_active"] == 0, what="the end of the backlog")
        store.put("m/6", "text 6")
        ids.append(client.info("replication")["master_replid"])
        assert [store.get(f"m/{n}").text for n in range(7)] == [f"text {n}" for n in range(7)]  # type: ignore[union-attr]
        assert store.stats().count == 7
        assert store.stats().epochs[0].epoch <= len(set(ids))


class Replies:
    """A server of which only these settings and replies matter."""

    def __init__(self, ttl: str | None, replicas: int = 1, refuses: bool = False) -> None:
        self.shard = Server(Config(), "redis://127.0.0.1:1").shard
        self.info: dict[str, str] = {}
        self._ttl, self._replicas, self._refuses = ttl, replicas, refuses

    def setting(self, name: str) -> str | None:
        assert name == "repl-backlog-ttl"
        return self._ttl

    def number(self, name: str) -> int:
        assert name == "connected_slaves"
        return self._replicas

    def ask(self, *command: Any) -> Any:
        if command[0] == "EVALSHA" and self._refuses:
            raise Invalid("script tried accessing undeclared key")
        return b"0" * 40 if command[0] == "SCRIPT" else 0


@pytest.mark.parametrize(
    ("ttl", "replicas", "level"), [("3600", 1, ["warn"]), ("0", 1, []), (None, 1, []), ("3600", 0, [])]
)
def test_doctor_advises_to_keep_the_backlog_where_there_are_replicas(
    ttl: str | None, replicas: int, level: list[str]
) -> None:
    found = list(_backlog(cast(Server, Replies(ttl, replicas))))
    assert [finding.status for finding in found] == level


@pytest.mark.parametrize("refuses", [False, True])
def test_doctor_fails_where_scripts_may_not_use_undeclared_keys(refuses: bool) -> None:
    found = list(_undeclared_keys(cast(Server, Replies(None, refuses=refuses))))
    assert [finding.status for finding in found] == (["fail"] if refuses else [])
