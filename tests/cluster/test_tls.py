"""`clusters://` and `sentinels://` use TLS for all connections, with client certificates."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distier import Item, connect, connect_async
from distier.errors import ConfigError
from tests.certificates import certificates
from tests.cluster.test_moves import near_on
from tests.clusters import SLOTS, TestCluster
from tests.servers import _DIE_WITH_PARENT, READY_S, TestServer, binary, free_port, poll, short_directory, start_server


@pytest.fixture(scope="module", name="certificates")
def _certificates() -> Iterator[Path]:
    with certificates() as at:
        yield at


def args_of(at: Path, port: int) -> list[str]:
    files = {"--tls-cert-file": "server.crt", "--tls-key-file": "server.key", "--tls-ca-cert-file": "ca.crt"}
    return ["--tls-port", str(port), "--tls-auth-clients", "yes", "--tls-replication", "yes",
            *(word for name, file in files.items() for word in (name, str(at / file)))]  # fmt: skip


def settings(url: str, at: Path, archive: Path, ca: str = "ca", **more: Any) -> dict[str, Any]:
    return {"redis__url": url, "redis__ca_file": at / f"{ca}.crt", "redis__cert_file": at / "client.crt",
            "redis__key_file": at / "client.key", "storage_tiers__cold__directory": archive, "counter": "estimate",
            "deadline": "5s", **more}  # fmt: skip


async def works(url: str, at: Path, archive: Path, **more: Any) -> None:
    with connect({}, **settings(url, at, archive, **more)) as store:
        assert all(not isinstance(r, Exception) for r in store.put_many([Item(f"m{i}", "x") for i in range(20)]))
        other = await connect_async({}, **settings(url, at, archive, **more))
        assert all((await other.get_many([f"m{i}" for i in range(20)])).values())
        await other.close()
        near_on(store, "m1")
    with pytest.raises(ConfigError, match="certificate"):
        connect({}, **settings(url, at, archive, "other", **more))


async def test_cluster_over_tls(certificates: Path, tmp_path: Path):
    cluster = TestCluster([])
    with short_directory() as tmp:
        try:
            ports = [free_port() for _ in range(2)]
            for i, port in enumerate(ports):
                (tmp / f"n{i}").mkdir()
                args = ("--cluster-enabled", "yes", "--tls-cluster", "yes", *args_of(certificates, port))
                cluster.nodes.append(start_server("redis", tmp / f"n{i}", args=args))
                cluster.ask(cluster.nodes[i], "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
                cluster.ask(cluster.nodes[i], "CLUSTER", "ADDSLOTSRANGE", SLOTS * i // 2, SLOTS * (i + 1) // 2 - 1)
            cluster.ask(cluster.nodes[0], "CLUSTER", "MEET", "127.0.0.1", ports[1])
            poll(
                lambda: all(cluster.state(n)["cluster_slots_ok"] == str(SLOTS) for n in cluster.nodes),
                what="the cluster",
            )
            poll(lambda: all(cluster.state(n)["cluster_state"] == "ok" for n in cluster.nodes), what="the cluster")
            url = ",".join(f"127.0.0.1:{port}" for port in ports)
            await works(f"clusters://{url}", certificates, tmp_path, shards=16)
        finally:
            cluster.stop()


async def test_sentinels_over_tls(certificates: Path, tmp_path: Path):
    with short_directory() as tmp:
        port, sentinel_port = free_port(), free_port()
        (tmp / "a").mkdir()
        primary: TestServer = start_server("redis", tmp / "a", args=args_of(certificates, port))
        sentinel = None
        try:
            conf = tmp / "sentinel.conf"
            words = args_of(certificates, sentinel_port)
            lines = [f"{name.removeprefix('--')} {value}" for name, value in zip(words[::2], words[1::2], strict=True)]
            conf.write_text("\n".join(["port 0", "bind 127.0.0.1", f"dir {tmp}",
                                       f"sentinel monitor mymaster 127.0.0.1 {port} 1", *lines, ""]))  # fmt: skip
            shim = [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid())]
            with (tmp / "log").open("ab") as log:
                sentinel = subprocess.Popen(
                    [*shim, str(binary("redis")), str(conf), "--sentinel"], stdout=log, stderr=log
                )
            poll(
                lambda: "+monitor master mymaster" in (tmp / "log").read_text(), timeout_s=READY_S, what="the sentinel"
            )
            await works(f"sentinels://127.0.0.1:{sentinel_port}/mymaster", certificates, tmp_path)
        finally:
            if sentinel is not None:
                sentinel.kill()
                sentinel.wait()
            primary.kill9()
