"""The function library on a cluster: each master gets it, and redis-cli follows the slot of a shard's root."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from typer.testing import CliRunner

from distier import Item, connect
from distier.cli.app import app
from distier.lua.deploy import loaded
from distier.lua.library import LIBRARY
from distier.plans.recovery.fsck.check import fsck
from tests.cluster.conftest import Stores
from tests.clusters import TestCluster


def redis_cli(cluster: TestCluster, *words: str) -> list[str]:
    """Return the lines that a person sees who types this at the first node: `-c` follows the slot to its master."""
    program = shutil.which("redis-cli")
    if program is None:
        pytest.skip("redis-cli is not installed (Debian: redis-tools)")
    command = [program, "-c", "-p", str(cluster.nodes[0].port), *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_functions_answer_and_move_on_every_master(
    stores: Stores, cluster: TestCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = connect({}, **stores.settings())
    ids = stores.ids(48, "docs")
    store.put_many([Item(id, f"text of {id} " * 5) for id in ids])
    store.archive_now()
    for name, value in stores.settings().items():
        monkeypatch.setenv(f"DISTIER_{name.upper()}", str(value))
    deployed = CliRunner().invoke(app, ["deploy-functions"], catch_exceptions=False)
    assert deployed.exit_code == 0, deployed.output
    assert {store.run(loaded(shard)) for shard in store.space.keys.shards} == {LIBRARY}

    owners = set()
    for id in ids:
        root = store.space.shard(id).root
        owners.add(cluster.owner(store.space.shard(id).slot).port)
        lines = redis_cli(cluster, "FCALL_RO", "distier_where", "1", root, id)
        assert any(line.startswith(f"{id}: hot, archived") for line in lines), lines
    assert len(owners) == 3, "ids of every master were asked for"
    for shard in store.space.keys.shards:
        mine = [id for id in ids if store.space.shard(id) is shard]
        redis_cli(cluster, "FCALL", "distier_demote", "1", shard.root, "docs/*", "100")
        assert {placement.tier for id in mine if (placement := store.where(id))} <= {"warm", "cold"}
    redis_cli(cluster, "FCALL", "distier_promote", "1", store.space.shard(ids[0]).root, ids[0])
    assert store.run(fsck(store.space), deadline_s=60).listed == []
    store.close()
